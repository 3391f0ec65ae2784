"""From the 256 levels of a stored image to numbers and back, as the reference does it."""

from __future__ import annotations

import torch
from torch import Tensor

# A level computed in f32 lands a hair under the whole number that the reference's f64 reaches, and
# truncation would make a level of that hair.
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-6}


def unit(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return levels u8 as numbers in [0,1]."""
    return x.to(dtype).div_(255)


def levels(v: Tensor) -> Tensor:
    """Return numbers in [0,1] as levels u8: clipped, then truncated, never rounded.

    The reference truncates, and so darkens every image by half a level on average.
    """
    return whole_levels(v * 255)


def whole_levels(v: Tensor) -> Tensor:
    """Return numbers in [0,255] as levels u8: clipped, then truncated."""
    return (v + ROUNDING[v.dtype]).clamp_(0, 255).to(torch.uint8)
