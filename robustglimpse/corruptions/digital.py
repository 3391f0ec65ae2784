"""The digital family: images u8 [B,H,W,3] in and out. Constants and source as in noise.py."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from robustglimpse.corruptions import filters
from robustglimpse.corruptions.hue import with_saturation
from robustglimpse.corruptions.levels import levels, unit
from robustglimpse.rng import Draws

Array = NDArray[Any]

CONTRAST = {
    32: (0.75, 0.5, 0.4, 0.3, 0.15),
    64: (0.4, 0.3, 0.2, 0.1, 0.05),
    224: (0.4, 0.3, 0.2, 0.1, 0.05),
}
ELASTIC = {  # displacement, its sigma, jitter of three points: in units of the image's side
    32: ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    64: ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
    224: ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
}
# The ImageNet script takes 244 for the side of its 224 px images: a slip that made the published set.
ELASTIC_SIDE = {224: 244}
PIXELATE = {
    32: (0.95, 0.9, 0.85, 0.75, 0.65),
    64: (0.9, 0.8, 0.7, 0.6, 0.5),
    224: (0.6, 0.5, 0.4, 0.3, 0.25),
}
JPEG_QUALITY = {32: (80, 65, 58, 50, 40), 64: (65, 58, 50, 40, 25), 224: (25, 18, 15, 10, 7)}
SATURATE = {
    32: ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    64: ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
    224: ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
}
BOX_BITS = 22  # of the fixed-point weights in Pillow's resampling


def contrast(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images drawn towards the mean of each channel."""
    # Whole numbers add up exactly, so the mean does not depend on the batch or the machine.
    mean = x.sum((1, 2), keepdim=True, dtype=torch.int64).double() / (x.shape[1] * x.shape[2] * 255)
    mean = mean.float()
    return levels((unit(x) - mean).mul_(CONTRAST[preset][severity - 1]).add_(mean))


def elastic_transform(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images under a random affine map, then moved about by smooth random displacements."""
    height, width = x.shape[1:3]
    shorter = min(height, width)
    side = ELASTIC_SIDE.get(preset, shorter) if shorter == preset else shorter
    alpha, sigma, jitter = (c * side for c in ELASTIC[preset][severity - 1])
    moved = draws.uniform("points", (3, 2), -jitter, jitter).numpy().astype(np.float32)
    planes = unit(x).permute(0, 3, 1, 2).contiguous()
    at = np.stack([_affine_places(m, height, width) for m in moved])
    planes = _sample(planes, torch.from_numpy(at).to(x.device))
    fields = [draws.uniform(axis, (height, width), -1, 1).to(x.device) for axis in ("right", "down")]
    grid_y, grid_x = torch.meshgrid(
        *(torch.arange(n, device=x.device, dtype=fields[0].dtype) for n in (height, width)), indexing="ij"
    )
    right, down = (_smooth(field, sigma) * alpha for field in fields)
    places = torch.stack([_fold(grid_x + right, width), _fold(grid_y + down, height)], -1).float()
    return levels(_sample(planes, places)).permute(0, 2, 3, 1)


def _affine_places(moved: Array, height: int, width: int) -> Array:
    """Return where each target pixel comes from, f32 [H,W,2] of (x,y), rounded to 1/32 px as OpenCV does.

    moved: f32 [3,2], how far three points about the centre go.
    """
    centre, reach = np.array([width // 2, height // 2], np.float32), min(height, width) // 3
    corners = np.array([[1, 1], [1, -1], [-1, -1]], np.float32)
    old = centre + corners * np.float32(reach)
    new = (old + moved).astype(np.float64)
    # The map takes old to new; a target pixel asks where it came from.
    forward = np.linalg.solve(np.column_stack([old.astype(np.float64), np.ones(3)]), new).T
    inverse = np.linalg.inv(forward[:, :2])
    shift = -inverse @ forward[:, 2]
    columns, rows = np.arange(width), np.arange(height)
    places = np.empty((height, width, 2), np.float32)
    for axis in (0, 1):
        of_column = np.rint(inverse[axis, 0] * columns * 1024).astype(np.int64)
        of_row = np.rint((inverse[axis, 1] * rows + shift[axis]) * 1024).astype(np.int64)
        places[..., axis] = ((of_row[:, None] + of_column + 16) >> 5) / 32
    return places


def _smooth(field: Tensor, sigma: float) -> Tensor:
    """Return floats [B,H,W] blurred by a Gaussian, its edges reflected, the kernel cut at 3 sigma."""
    if sigma == 0:
        return field
    down, across = (
        filters.reflecting_gaussian(n, sigma, 3.0).to(field.device, field.dtype) for n in field.shape[1:]
    )
    # One image at a time: a product of another shape may add up in another order.
    return torch.stack([down @ one @ across.T for one in field])


def _fold(at: Tensor, size: int) -> Tensor:
    """Return places folded back into (-1, size) by half-sample reflection, as scipy did before 1.6.

    It left places in the outermost half pixels where they were; interpolation then mirrors them about
    the outer pixels (scipy pull request 12767).
    """
    below = torch.remainder(-at - 1, 2 * size)
    above = torch.remainder(at, 2 * size)
    folded = torch.where(at < 0, below, above)
    # Past the far end the way leads back.
    turned = 2 * size - 1 - folded
    return torch.where((at < 0) & (at > -1), -at - 1, torch.where(folded >= size, turned, folded))


def _sample(planes: Tensor, places: Tensor) -> Tensor:
    """Return planes [B,C,H,W] at places [B,H,W,2] of (x,y) px, bilinear, mirrored about the outer pixels."""
    scale = places.new_tensor([max(1, planes.shape[3] - 1), max(1, planes.shape[2] - 1)])
    grid = places * (2 / scale) - 1
    return F.grid_sample(planes, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def pixelate(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images shrunk by averaging and enlarged by repeating, as Pillow's BOX filter does both."""
    factor = PIXELATE[preset][severity - 1]
    height, width = x.shape[1:3]
    small = max(1, int(height * factor)), max(1, int(width * factor))
    return _pixelate_by_pillow(x, *small) if x.device.type == "cpu" else _pixelate_in_batch(x, *small)


def _pixelate_by_pillow(x: Tensor, rows: int, columns: int) -> Tensor:
    from PIL import Image

    height, width = x.shape[1:3]
    out = np.empty(tuple(x.shape), np.uint8)
    for target, pixels in zip(out, x.numpy(), strict=True):
        small = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BOX)
        target[:] = np.asarray(small.resize((width, height), Image.Resampling.BOX))
    return torch.from_numpy(out)


def _pixelate_in_batch(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return the same levels on any device, without a way through the host."""
    height, width = x.shape[1:3]
    # Pillow resamples the rows first and rounds to levels in between.
    pixels = _box(x.double().transpose(1, 2), width, columns).transpose(1, 2)
    pixels = _box(pixels, height, rows).to(torch.uint8)
    # In f64: where a target pixel's centre falls between two source pixels, f32 takes the wrong one.
    places = [
        (torch.arange(big, dtype=torch.float64, device=x.device) + 0.5).mul_(little / big).long()
        for big, little in ((height, rows), (width, columns))
    ]
    return pixels.index_select(1, places[0]).index_select(2, places[1])


def _box(pixels: Tensor, old: int, new: int) -> Tensor:
    """Return levels f64 [B,old,...] averaged down to [B,new,...] along that axis, rounded as Pillow does."""
    matrix = _box_matrix(old, new).to(pixels.device)
    total = torch.matmul(matrix, pixels.flatten(2)).view(len(pixels), new, *pixels.shape[2:])
    return total.add_(2.0 ** (BOX_BITS - 1)).div_(2.0**BOX_BITS).floor_().clamp_(0, 255)


@lru_cache(maxsize=64)
def _box_matrix(old: int, new: int) -> Tensor:
    """Return Pillow's 22-bit weights of BOX resampling, whole numbers as f64 [new,old].

    Every product and sum of them stays below 2**53, so f64 is exact in any order.
    """
    scale = old / new
    reach = max(scale, 1.0)
    matrix = np.zeros((new, old))
    for k in range(new):
        centre = (k + 0.5) * scale
        first = max(0, int(centre - 0.5 * reach + 0.5))
        stop = min(old, int(centre + 0.5 * reach + 0.5))
        distance = (np.arange(first, stop) - centre + 0.5) / reach
        weights = ((distance > -0.5) & (distance <= 0.5)).astype(np.float64)
        matrix[k, first:stop] = np.floor(0.5 + weights / weights.sum() * 2**BOX_BITS)
    return torch.from_numpy(matrix)


def jpeg_compression(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images after JPEG compression."""
    return through_jpeg(x, JPEG_QUALITY[preset][severity - 1])


def through_jpeg(x: Tensor, quality: int) -> Tensor:
    """Return images u8 [B,H,W,3] written as JPEG (4:2:0) and read again, by Pillow."""
    from PIL import Image

    out = np.empty(tuple(x.shape), np.uint8)
    for target, pixels in zip(out, x.cpu().numpy(), strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        target[:] = np.asarray(Image.open(file))
    return torch.from_numpy(out).to(x.device)


def saturate(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images with the saturation of HSV scaled and shifted."""
    return with_saturation(x, *SATURATE[preset][severity - 1])
