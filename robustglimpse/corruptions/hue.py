"""Changes of value and saturation in HSV, in closed form: no hue is ever computed."""

from __future__ import annotations

import torch
from torch import Tensor

from robustglimpse.corruptions.levels import levels, unit


def grey_of(v: Tensor) -> Tensor:
    """Return the luma of floats [...,3] as [...,1], with the weights of ITU-R BT.601."""
    return v[..., 0:1] * 0.299 + v[..., 1:2] * 0.587 + v[..., 2:3] * 0.114


def with_value(x: Tensor, raised: float) -> Tensor:
    """Return levels u8 [...,3] with HSV's value raised, clipped to 1.

    Hue and saturation stay, so all channels grow in proportion; black becomes grey.
    """
    brightest = _largest(x)
    old = unit(brightest)
    new = (old + raised).clamp_(max=1)
    is_black = brightest == 0
    factor = new / torch.where(is_black, torch.ones_like(old), old)
    return levels(torch.where(is_black, new, unit(x) * factor))


def with_saturation(x: Tensor, factor: float, shift: float) -> Tensor:
    """Return levels u8 [...,3] with HSV's saturation s replaced by factor * s + shift, clipped to [0,1].

    Grey has hue 0, so saturating it gives red, as in the reference.
    """
    v = unit(x)
    brightest, darkest = unit(_largest(x)), unit(_smallest(x))
    spread = brightest - darkest
    is_grey = spread == 0
    saturation = spread / torch.where(brightest > 0, brightest, torch.ones_like(spread))
    new = (saturation * factor + shift).clamp_(0, 1)
    scaled = brightest - (brightest - v) * (new / torch.where(is_grey, torch.ones_like(new), saturation))
    faded = brightest * (1 - new)
    reddened = torch.cat([brightest, faded, faded], -1)
    return levels(torch.where(is_grey, reddened, scaled))


def _largest(x: Tensor) -> Tensor:
    return torch.maximum(torch.maximum(x[..., 0:1], x[..., 1:2]), x[..., 2:3])


def _smallest(x: Tensor) -> Tensor:
    return torch.minimum(torch.minimum(x[..., 0:1], x[..., 1:2]), x[..., 2:3])
