"""The blur family: images u8 [B,H,W,3] in and out. Constants and source as in noise.py."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustglimpse.corruptions import filters
from robustglimpse.corruptions.levels import levels, unit
from robustglimpse.rng import Draws

Array = NDArray[Any]

# Kernels of so many weights are added up shift by shift, larger ones go through Fourier space.
FEW_TAPS = 32
DEFOCUS = {  # radius, sigma of its soft edge
    32: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    64: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    224: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
}
GLASS = {  # sigma, how far pixels travel, how often
    32: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    64: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    224: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
}
MOTION = {  # radius, sigma
    32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
}
_SMALL_ZOOM = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))
ZOOM = {  # where the factors end, and their step
    32: _SMALL_ZOOM,
    64: _SMALL_ZOOM,
    224: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
}
GAUSSIAN_SIGMA = {
    32: (0.4, 0.6, 0.7, 0.8, 1),
    64: (0.5, 0.75, 1, 1.25, 1.5),
    224: (1, 2, 3, 4, 6),
}


def defocus_blur(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images through a lens out of focus: a disk with a soft edge."""
    kernel = _disk(*DEFOCUS[preset][severity - 1])
    reach = len(kernel) // 2
    height, width = x.shape[1:3]
    rows, columns = (_reflect(side, reach).to(x.device) for side in (height, width))
    padded = x.index_select(1, rows).index_select(2, columns)
    taps = {at: weight for at, weight in np.ndenumerate(kernel) if weight > filters.NEGLIGIBLE}
    if len(taps) > FEW_TAPS:
        return levels(_by_fourier(unit(padded), kernel)[:, :height, :width])
    # In f64: the few weights do not add up to exactly 1, and flat areas show on which side they miss it.
    padded = unit(padded, torch.float64)
    views = [padded[:, y : y + height, x : x + width] for y, x in taps]
    return levels(filters.sum_shifted(views, tuple(float(weight) for weight in taps.values())))


def _by_fourier(v: Tensor, kernel: Array) -> Tensor:
    """Return floats [B,H,W,C] correlated with the kernel f64 [k,k], but for the last k-1 rows and columns."""
    size = tuple(_fast_length(side) for side in v.shape[1:3])
    spectrum = _spectrum(kernel.tobytes(), len(kernel), size).to(v.device)
    # One image at a time: transforms of another batch end in other last bits, and are slower here.
    planes = [one.permute(2, 0, 1).contiguous() for one in v]
    out = torch.stack([torch.fft.irfft2(torch.fft.rfft2(p, size) * spectrum, size) for p in planes])
    return out.permute(0, 2, 3, 1)


@lru_cache(maxsize=64)
def _spectrum(kernel: bytes, side: int, size: tuple[int, int]) -> Tensor:
    """Return the factor c64 that correlates with a kernel, for images of that size."""
    array = torch.from_numpy(np.frombuffer(kernel).reshape(side, side).copy())
    factor: Tensor = torch.fft.rfft2(array, size).conj().to(torch.complex64)
    return factor


def _fast_length(side: int) -> int:
    """Return the next length that is a product of 2, 3 and 5."""
    length = side
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


def _reflect(size: int, reach: int) -> Tensor:
    """Return the places -reach..size+reach-1 mirrored about the first and the last pixel."""
    period = max(1, 2 * size - 2)
    at = np.arange(-reach, size + reach) % period
    return torch.from_numpy(np.minimum(at, period - at) if size > 1 else at * 0)


@lru_cache(maxsize=64)
def _disk(radius: float, sigma: float) -> Array:
    """Return the reference's kernel, f32 values as f64 [k,k], cut to where it is not 0.

    Computed in f32 like the original: its sum is not exactly 1, and flat areas show it.
    """
    side = np.arange(-8, 9) if radius <= 8 else np.arange(-radius, radius + 1)
    taps = 3 if radius <= 8 else 5
    disk = (side[:, None] ** 2 + side**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    soft = np.exp(-0.5 / sigma**2 * (np.arange(taps) - (taps - 1) / 2) ** 2).astype(np.float32)
    soft = (soft * (1 / soft.astype(np.float64).sum())).astype(np.float32)
    reach = taps // 2
    for axis in (1, 0):
        padded = np.pad(disk, reach, mode="reflect")
        keep = slice(reach, -reach)
        views = [np.roll(padded, reach - k, axis)[keep, keep] for k in range(taps)]
        middle = soft[reach] * views[reach]
        for k in range(1, reach + 1):
            middle = middle + soft[reach + k] * (views[reach + k] + views[reach - k])
        disk = middle
    used = np.flatnonzero(disk.any(0))
    return disk[used[0] : used[-1] + 1, used[0] : used[-1] + 1].astype(np.float64)


def glass_blur(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images through frosted glass: blurred, pixels scattered locally, blurred again."""
    sigma, reach, rounds = GLASS[preset][severity - 1]
    soft = levels(filters.gaussian_blur(unit(x), sigma))
    batch, height, width = x.shape[:3]
    rows, columns = max(0, height - 2 * reach), max(0, width - 2 * reach)
    # The reference scans rows and columns downwards; its draws come in that order, right before down.
    moves = draws.integers("moves", (rounds, rows, columns, 2), -reach, reach).to(x.device).flip(2, 3)
    pixels = soft.view(batch, height * width, 3)
    for k in range(rounds):
        source = _scatter(moves[:, k], height, width, reach)
        pixels = pixels.gather(1, source[:, :, None].expand(-1, -1, 3))
    return levels(filters.gaussian_blur(unit(pixels.view(x.shape)), sigma))


def _scatter(moves: Tensor, height: int, width: int, reach: int) -> Tensor:
    """Return which pixel every pixel shows after one round, i64 [B,H*W].

    moves: i64 [B,rows,columns,2] of (right, down) for the pixels from (reach+1, reach+1) on.
    The reference means to swap two pixels, but its two sides are views of one array: a pixel is
    overwritten by its neighbour, which stays as it is.  So every pixel points at one: where that was
    visited earlier in the scan it shows what that one shows, else what it held before.
    """
    batch, rows, columns = moves.shape[:3]
    device = moves.device
    source = torch.arange(height * width, device=device).expand(batch, -1).clone()
    here = source.view(batch, height, width)[:, reach + 1 :, reach + 1 :][:, :rows, :columns]
    there = here + moves[..., 1] * width + moves[..., 0]
    row = torch.arange(reach + 1, reach + 1 + rows, device=device)[:, None] + moves[..., 1]
    column = torch.arange(reach + 1, reach + 1 + columns, device=device) + moves[..., 0]
    is_inside = (row > reach) & (row <= height - reach) & (column > reach) & (column <= width - reach)
    goes_on = torch.zeros(batch, height, width, dtype=torch.bool, device=device)
    goes_on[:, reach + 1 :, reach + 1 :][:, :rows, :columns] = is_inside & (there > here)
    source.view(batch, height, width)[:, reach + 1 :, reach + 1 :][:, :rows, :columns] = there
    # Pointers double in length every round, for those that still go on.
    offset = torch.arange(batch, device=device)[:, None] * (height * width)
    source, goes_on = (source + offset).view(-1), goes_on.view(-1)
    going = torch.nonzero(goes_on)[:, 0]
    while len(going):
        via = source[going]
        source[going], still = source[via], goes_on[via]
        goes_on[going] = still
        going = going[still]
    return source.view(batch, -1) - offset


def motion_blur(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images smeared along a direction within 45 degrees of the rows."""
    radius, sigma = MOTION[preset][severity - 1]
    angles = draws.uniform("angle", (), -45, 45).double().numpy()
    return filters.motion_blur(x.float(), radius, sigma, angles)


def zoom_blur(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the mean of the images and of their enlargements about the centre."""
    end, step = ZOOM[preset][severity - 1]
    factors = np.arange(1, end, step).tolist()  # its rounding decides how many there are
    packed = filters.side_by_side(unit(x))
    total = torch.zeros_like(packed)
    for factor in factors:
        total += filters.clipped_zoom(packed, factor)
    mean = (packed + total).div_(len(factors) + 1)
    return levels(filters.one_by_one(mean, len(x), 3))


def gaussian_blur(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images blurred by a Gaussian."""
    return levels(filters.gaussian_blur(unit(x), GAUSSIAN_SIGMA[preset][severity - 1]))
