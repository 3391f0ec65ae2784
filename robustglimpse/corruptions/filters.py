"""Filters that several corruptions share: Gaussians, motion, and the reference's clipped zoom."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# Vector units handle so many f32 at once: an array of a whole number of them has no ragged end, and so
# the same arithmetic for every image, whatever the batch.
LANES = 16
NEGLIGIBLE = 1e-7


@lru_cache(maxsize=64)
def gaussian_taps(sigma: float, truncate: float) -> tuple[float, ...]:
    """Return the weights of a Gaussian out to truncate * sigma, summing to 1 (as scipy's)."""
    radius = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 / max(sigma, 1e-15) ** 2 * np.arange(-radius, radius + 1) ** 2)
    return tuple((weights / weights.sum()).tolist())


def gaussian_blur(v: Tensor, sigma: float) -> Tensor:
    """Return floats [B,H,W,C] blurred along H and W, edges repeated, the kernel cut at 4 sigma."""
    taps = gaussian_taps(sigma, 4.0)
    if len(taps) == 1:
        return v
    reach = len(taps) // 2
    height, width = v.shape[1:3]
    rows = F.pad(v.flatten(2)[None], (0, 0, reach, reach), mode="replicate")[0]
    v = sum_shifted([rows[:, k : k + height] for k in range(len(taps))], taps).view(v.shape)
    columns = repeat_edges(v, reach, axis=2)
    return sum_shifted([columns[:, :, k : k + width] for k in range(len(taps))], taps)


def repeat_edges(v: Tensor, reach: int, axis: int) -> Tensor:
    """Return v with its first and last slice along the axis repeated `reach` times."""
    first, last = v.narrow(axis, 0, 1), v.narrow(axis, v.shape[axis] - 1, 1)
    shape = list(v.shape)
    shape[axis] = reach
    return torch.cat([first.expand(shape), v, last.expand(shape)], axis)


def sum_shifted(views: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    """Return the weighted sum of equally shaped views, added up in their order."""
    total = views[0] * weights[0]
    for view, weight in zip(views[1:], weights[1:], strict=True):
        total.add_(view, alpha=weight)
    return total


@lru_cache(maxsize=64)
def reflecting_gaussian(size: int, sigma: float, truncate: float) -> Tensor:
    """Return the matrix f64 [size,size] of a Gaussian blur with half-sample reflection at both ends.

    However wide the kernel, it is one matrix product: sigma may exceed the image.
    """
    taps = gaussian_taps(sigma, truncate)
    reach = len(taps) // 2
    matrix = np.zeros((size, size))
    for offset, weight in enumerate(taps, -reach):
        at = (np.arange(size) + offset) % (2 * size)
        matrix[np.arange(size), np.minimum(at, 2 * size - 1 - at)] += weight
    return torch.from_numpy(matrix)


def motion_blur(v: Tensor, radius: float, sigma: float, angles: NDArray[np.float64]) -> Tensor:
    """Return levels f32 [B,H,W,C], each image smeared along its own angle, in levels u8.

    A half Gaussian along a line, at whole pixels, edges repeated, as ImageMagick 6 (Q16) computes it:
    rounded to 16 bits, then cut to 8.  angles: f64 [B] in degrees, 0 along the rows.
    """
    width = 2 * math.ceil(radius) + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2.0 * sigma**2))
    weights /= weights.sum()
    reach = int(np.flatnonzero(weights >= NEGLIGIBLE)[-1])
    height, length = v.shape[1:3]
    padded = repeat_edges(repeat_edges(v, reach, axis=1), reach, axis=2)
    out = torch.empty_like(v)
    for image, target, angle in zip(padded, out, np.deg2rad(angles).tolist(), strict=True):
        first = True
        for (dy, dx), weight in _line(angle, weights[: reach + 1]).items():
            view = image[reach + dy : reach + dy + height, reach + dx : reach + dx + length]
            if first:
                torch.mul(view, weight, out=target)
                first = False
            else:
                target.add_(view, alpha=weight)
    return (out.add_(1 / 514 + 1e-4)).clamp_(0, 255).to(torch.uint8)


def _line(angle: float, weights: NDArray[np.float64]) -> dict[tuple[int, int], float]:
    """Return the whole-pixel offsets (down, right) along a line, with the weights that fall on each."""
    line: dict[tuple[int, int], float] = {}
    for i, weight in enumerate(weights.tolist()):
        at = math.ceil(i * math.sin(angle) - 0.5), math.ceil(i * math.cos(angle) - 0.5)
        line[at] = line.get(at, 0.0) + weight
    return line


def clipped_zoom(v: Tensor, factor: float) -> Tensor:
    """Return floats [H,W,C] enlarged about the centre and cut to H x W again.

    The centre ceil(H/factor) pixels go to round(that * factor), first and last sample kept in place,
    between them linearly; the surplus is cut evenly.  C is a whole number of LANES.
    """
    height, width = v.shape[:2]
    ch, cw = (math.ceil(side / factor) for side in (height, width))
    top, left = (height - ch) // 2, (width - cw) // 2
    size = round(ch * factor), round(cw * factor)
    crop = v[top : top + ch, left : left + cw].permute(2, 0, 1)[None]
    crop = crop.contiguous(memory_format=torch.channels_last)
    large = F.interpolate(crop, size, mode="bilinear", align_corners=True)[0].permute(1, 2, 0)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[top : top + height, left : left + width]


def side_by_side(v: Tensor) -> Tensor:
    """Return floats [B,H,W,C] as [H,W,B*C and zeros up to whole LANES]: pixels of all images together."""
    batch, height, width, channels = v.shape
    spare = -batch * channels % LANES
    packed = v.permute(1, 2, 0, 3).reshape(height, width, batch * channels)
    return F.pad(packed, (0, spare)) if spare else packed.contiguous()


def one_by_one(packed: Tensor, batch: int, channels: int) -> Tensor:
    """Return [H,W,B*C and what fills the lanes] as [B,H,W,C] again; the inverse of side_by_side."""
    height, width = packed.shape[:2]
    used = packed[:, :, : batch * channels]
    return used.reshape(height, width, batch, channels).permute(2, 0, 1, 3).contiguous()
