"""The weather family: images u8 [B,H,W,3] in and out. Constants and source as in noise.py."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustglimpse.corruptions import filters
from robustglimpse.corruptions.hue import grey_of, with_value
from robustglimpse.corruptions.levels import levels, unit, whole_levels
from robustglimpse.records import UserError
from robustglimpse.rng import Draws

Array = NDArray[Any]

_SMALL_SNOW = (
    (0.1, 0.2, 1, 0.6, 8, 3), (0.1, 0.2, 1, 0.5, 10, 4), (0.15, 0.3, 1.75, 0.55, 10, 4),
    (0.25, 0.3, 2.25, 0.6, 12, 6), (0.3, 0.3, 1.25, 0.65, 14, 12),
)  # fmt: skip
SNOW = {  # mean, standard deviation, zoom, threshold, radius and sigma of its fall
    32: _SMALL_SNOW,
    64: _SMALL_SNOW,
    224: (
        (0.1, 0.3, 3, 0.5, 10, 4), (0.2, 0.3, 2, 0.5, 12, 4), (0.55, 0.3, 4, 0.9, 12, 8),
        (0.55, 0.3, 4.5, 0.85, 12, 8), (0.55, 0.3, 2.5, 0.85, 12, 12),
    ),
}  # fmt: skip
SNOW_MIX = {  # how much of the image stays as it was
    32: (0.95, 0.9, 0.9, 0.85, 0.8),
    64: (0.8, 0.8, 0.7, 0.65, 0.6),
    224: (0.8, 0.7, 0.7, 0.65, 0.55),
}
FROST = {  # weight of the image, weight of the frost
    32: ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    64: ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
    224: ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
}
FROST_SCALE = {32: 0.2, 64: 0.3, 224: 1.0}
# Stands for our own textures where a folder is expected.
PROCEDURAL = Path("procedural:")
# The reference lists six textures and draws among the first five.
FROST_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
FOG = {  # strength, decay of its roughness
    32: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    64: ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    224: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
}
BRIGHTNESS = {
    32: (0.05, 0.1, 0.15, 0.2, 0.3),
    64: (0.1, 0.2, 0.3, 0.4, 0.5),
    224: (0.1, 0.2, 0.3, 0.4, 0.5),
}


def snow(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images in falling snow: bright flakes smeared downwards over a paler image."""
    mean, deviation, zoom, threshold, radius, sigma = SNOW[preset][severity - 1]
    batch, height, width = x.shape[:3]
    flakes = draws.normal("flakes", (height, width)).to(x.device).mul_(deviation).add_(mean)
    packed = filters.clipped_zoom(filters.side_by_side(flakes[..., None]), zoom)
    layer = filters.one_by_one(packed, batch, 1)
    layer = levels(torch.where(layer < threshold, torch.zeros_like(layer), layer))
    angles = draws.uniform("angle", (), -135, -45).double().numpy()
    layer = unit(filters.motion_blur(layer.float(), radius, sigma, angles))
    v, mix = unit(x), SNOW_MIX[preset][severity - 1]
    v = mix * v + (1 - mix) * torch.maximum(v, grey_of(v) * 1.5 + 0.5)
    return levels(v + (layer + layer.flip(1, 2)))


def frost(x: Tensor, severity: int, preset: int, draws: Draws, *, frost_dir: Path | None = None) -> Tensor:
    """Return the images behind a frosted pane: a random crop of one of five textures on top."""
    batch, height, width = x.shape[:3]
    textures = [_texture(frost_dir, k, FROST_SCALE[preset], height, width) for k in range(len(FROST_FILES))]
    which = draws.integers("texture", (), 0, len(textures)).numpy()
    room = np.array([[len(t) - height, t.shape[1] - width] for t in textures])[which]
    top = draws.integers("top", (), np.zeros(batch, int), room[:, 0]).tolist()
    left = draws.integers("left", (), np.zeros(batch, int), room[:, 1]).tolist()
    crops = [
        textures[k][y : y + height, z : z + width] for k, y, z in zip(which.tolist(), top, left, strict=True)
    ]
    of_image, of_frost = FROST[preset][severity - 1]
    panes = torch.stack(crops).to(x.device).float() * of_frost
    return whole_levels(panes.add_(x.float(), alpha=of_image))


def frost_source(frost_dir: Path | None = None) -> str:
    """Return where the frost textures come from: "dir:HASH", "imagecorruptions" or "procedural".

    HASH: of the files in frost_dir, so that results made with others are not taken for these.  Raises
    UserError where one of them is missing or no image.
    """
    if frost_dir == PROCEDURAL:
        return "procedural"
    if frost_dir is not None:
        digest = hashlib.sha256()
        for name in FROST_FILES:
            digest.update(_read_texture(frost_dir / name).tobytes())
        return f"dir:{digest.hexdigest()[:12]}"
    return "imagecorruptions" if _installed_textures() else "procedural"


def _installed_textures() -> Path | None:
    """Return the folder of textures of an installed imagecorruptions, found without importing it."""
    from importlib.util import find_spec

    spec = find_spec("imagecorruptions")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "frost" / FROST_FILES[0]).is_file():
            return Path(place) / "frost"
    return None


@lru_cache(maxsize=64)
def _texture(frost_dir: Path | None, number: int, scale: float, height: int, width: int) -> Tensor:
    """Return a texture u8 [h,w,3], scaled, with room for a random crop of height x width."""
    folder = None if frost_dir == PROCEDURAL else frost_dir or _installed_textures()
    whole = _read_texture(folder / FROST_FILES[number]) if folder else _procedural_texture(number)
    enough = max((height + 1) / len(whole), (width + 1) / whole.shape[1])
    scale = max(scale, enough)
    return torch.from_numpy(whole if scale == 1.0 else _resize(whole, scale))


def _read_texture(path: Path) -> Array:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except OSError:
        raise UserError(
            f"{path}: no such texture, or not an image; --frost-dir needs {', '.join(FROST_FILES)}"
        ) from None


def _resize(image: Array, scale: float) -> Array:
    """Return u8 [h,w,3] scaled bilinearly in 11-bit fixed point, without smoothing, as OpenCV does."""
    rows, row_weights = _linear_taps(len(image), scale)
    columns, column_weights = _linear_taps(image.shape[1], scale)
    wide = image.astype(np.int64)
    last = image.shape[1] - 1
    a, b = (w[:, None] for w in column_weights)
    across = wide[:, columns] * a + wide[:, np.minimum(columns + 1, last)] * b
    last = len(image) - 1
    a, b = (w[:, None, None] for w in row_weights)
    top, bottom = across[rows] >> 4, across[np.minimum(rows + 1, last)] >> 4
    down = ((a * top) >> 16) + ((b * bottom) >> 16)
    small: Array = ((down + 2) >> 2).astype(np.uint8)
    return small


def _linear_taps(size: int, scale: float) -> tuple[Array, tuple[Array, Array]]:
    """Return the first of the two source places of every target place, and both 11-bit weights."""
    target = np.arange(round(size * scale))
    at = ((target + 0.5) * (1 / scale) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    share = at - first.astype(np.float32)
    share[(first < 0) | (first >= size - 1)] = 0
    weights = [np.rint(w * 2048).astype(np.int64) for w in (np.float32(1) - share, share)]
    return first.clip(0, size - 1), (weights[0], weights[1])


@lru_cache(maxsize=len(FROST_FILES))
def _procedural_texture(number: int) -> Array:
    """Return a texture u8 [h,w,3] of ours: ridges of fractal noise in pale blue, the same every time.

    Not the reference's pictures: rows made with it say so.
    """
    height, width = ((600, 900), (630, 1120), (350, 527), (495, 660), (480, 640))[number]
    stream = np.random.Generator(np.random.Philox(key=[20210, number]))
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    frequency = np.hypot(fy * (1.0 + 0.35 * number), fx)
    frequency[0, 0] = 1.0
    fields = []
    for roughness in (1.5, 1.15, 2.2):
        spectrum = np.fft.rfft2(stream.standard_normal((height, width))) / frequency**roughness
        field = np.fft.irfft2(spectrum, (height, width))
        fields.append((field - field.mean()) / field.std())
    needles = np.exp(-2.2 * np.abs(fields[0])) + 0.7 * np.exp(-3.0 * np.abs(fields[1]))
    cover = 1 / (1 + np.exp(-1.6 * fields[2]))
    light = np.clip(0.12 + 0.75 * needles * (0.25 + 0.75 * cover), 0, 1)
    tint = np.array([0.84, 0.93, 1.0])
    texture: Array = (light[..., None] ** (1.25 - 0.25 * tint) * tint * 255).astype(np.uint8)
    return texture


def fog(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images in fog: a random cloud on top, the whole darkened to its old maximum."""
    strength, decay = FOG[preset][severity - 1]
    height, width = x.shape[1:3]
    cloud = _clouds(draws, max(height, width, 2), decay)[:, :height, :width, None].to(x.device)
    v = unit(x, cloud.dtype)
    brightest = v.amax((1, 2, 3), keepdim=True)
    return levels((v + strength * cloud).mul_(brightest / (brightest + strength)))


def _clouds(draws: Draws, longest: int, decay: float) -> Tensor:
    """Return height maps in [0,1], floats [B,n,n], n the power of two from `longest` up.

    Diamond-square on a torus, jitter shrinking by decay**2 every level: the reference multiplies a
    half-width by a draw of that same half-width.  Source: Fournier, Fussell & Carpenter 1982.
    """
    side = 1 << (longest - 1).bit_length()
    jitter = draws.uniform("jitter", (side * side - 1,), -1.0, 1.0)
    cloud = jitter.new_zeros(len(jitter), side, side)
    step, spread, used = side, 100.0, 0
    while step >= 2:
        half, cells = step // 2, side // step
        corners = cloud[:, ::step, ::step]
        squares, across, down = (
            jitter[:, used + k * cells * cells : used + (k + 1) * cells * cells].view(-1, cells, cells)
            * (spread * spread)
            for k in range(3)
        )
        two = corners + corners.roll(-1, 1)
        middles = squares + (two + two.roll(-1, 2)) / 4
        cloud[:, half::step, half::step] = middles
        cloud[:, ::step, half::step] = (
            across + (middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)) / 4
        )
        cloud[:, half::step, ::step] = (
            down + (middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)) / 4
        )
        used += 3 * cells * cells
        step, spread = half, spread / decay
    cloud -= cloud.amin((1, 2), keepdim=True)
    return cloud.div_(cloud.amax((1, 2), keepdim=True))


def brightness(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images with the value of HSV raised."""
    return with_value(x, BRIGHTNESS[preset][severity - 1])
