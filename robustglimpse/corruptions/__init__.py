"""Common corruptions: 15 types and 4 extras of Hendrycks & Dietterich 2019, in batches.

Equal to the reference code of 2018 within the tolerances of its own arithmetic (tests/corruptions), the
JPEG codec aside: that is today's Pillow, where the reference had another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import log
from os import PathLike
from typing import TYPE_CHECKING, Literal, TypeVar

from robustglimpse import arguments
from robustglimpse.notes import tell
from robustglimpse.records import UserError
from robustglimpse.registry import find, resolve

if TYPE_CHECKING:
    from robustglimpse.rng import Draws

ImagesT = TypeVar("ImagesT")
Family = Literal["noise", "blur", "weather", "digital"]
FAMILIES: tuple[Family, ...] = ("noise", "blur", "weather", "digital")
SEVERITIES = (1, 2, 3, 4, 5)
PRESETS = (32, 64, 224)
STORES = ("exact", "jpeg85")


@dataclass(frozen=True)
class CorruptionRow:
    """One line of the table of corruptions.

    target: a function (images u8 [B,H,W,3], severity, preset, draws) -> images u8 [B,H,W,3].
    short: as it heads a column; "" for its name.
    extra: not one of the 15 that means are taken over.
    least_px: the shortest side that it works on.
    options: the keyword arguments of corrupt() that it takes beside: "frost_dir".
    rounding: by how many levels another machine's values may differ, and what share of them.  What only
        compares, counts or repeats whole levels is exact, (0, 0.0); the rest may turn a level where it
        truncates.
    """

    target: str
    family: Family
    is_random: bool
    summary: str
    short: str = ""
    extra: bool = True
    least_px: int = 1
    options: tuple[str, ...] = ()
    rounding: tuple[int, float] = (1, 0.005)


_NOISE, _BLUR, _WEATHER, _DIGITAL = (f"robustglimpse.corruptions.{family}" for family in FAMILIES)
_EXACT = (0, 0.0)
CORRUPTIONS: dict[str, CorruptionRow] = {
    "gaussian_noise": CorruptionRow(
        f"{_NOISE}:gaussian_noise", "noise", True, "Gaussian noise per channel", "Gauss.", extra=False
    ),
    "shot_noise": CorruptionRow(
        f"{_NOISE}:shot_noise", "noise", True, "counted in few photons", "Shot", extra=False, rounding=_EXACT
    ),
    "impulse_noise": CorruptionRow(
        f"{_NOISE}:impulse_noise", "noise", True, "values set to 0 or 255", "Impulse", extra=False,
        rounding=_EXACT,
    ),
    "defocus_blur": CorruptionRow(
        f"{_BLUR}:defocus_blur", "blur", False, "a disk: out of focus", "Defocus", extra=False
    ),
    "glass_blur": CorruptionRow(
        f"{_BLUR}:glass_blur", "blur", True, "pixels scattered between two blurs", "Glass", extra=False,
        rounding=(2, 0.03),
    ),
    "motion_blur": CorruptionRow(
        f"{_BLUR}:motion_blur", "blur", True, "smeared along a line", "Motion", extra=False
    ),
    "zoom_blur": CorruptionRow(
        f"{_BLUR}:zoom_blur", "blur", False, "mean of enlargements", "Zoom", extra=False
    ),
    "snow": CorruptionRow(f"{_WEATHER}:snow", "weather", True, "falling flakes", "Snow", extra=False),
    "frost": CorruptionRow(
        f"{_WEATHER}:frost", "weather", True, "a frosted pane on top", "Frost", extra=False,
        options=("frost_dir",), rounding=(1, 0.001),
    ),
    "fog": CorruptionRow(
        f"{_WEATHER}:fog", "weather", True, "a diamond-square cloud on top", "Fog", extra=False
    ),
    "brightness": CorruptionRow(
        f"{_WEATHER}:brightness", "weather", False, "HSV value raised", "Bright", extra=False, rounding=_EXACT
    ),
    "contrast": CorruptionRow(
        f"{_DIGITAL}:contrast", "digital", False, "drawn towards the mean", "Contrast", extra=False,
        rounding=_EXACT,
    ),
    "elastic_transform": CorruptionRow(
        f"{_DIGITAL}:elastic_transform", "digital", True, "an affine map and displacements", "Elastic",
        extra=False, least_px=3, rounding=(1, 0.01),
    ),
    "pixelate": CorruptionRow(
        f"{_DIGITAL}:pixelate", "digital", False, "shrunk and enlarged", "Pixel", extra=False, rounding=_EXACT
    ),
    "jpeg_compression": CorruptionRow(
        f"{_DIGITAL}:jpeg_compression", "digital", False, "JPEG, 4:2:0", "JPEG", extra=False, rounding=_EXACT
    ),
    "speckle_noise": CorruptionRow(
        f"{_NOISE}:speckle_noise", "noise", True, "noise in proportion to the value", "Speckle"
    ),
    "gaussian_blur": CorruptionRow(f"{_BLUR}:gaussian_blur", "blur", False, "a Gaussian", "G. blur"),
    "spatter": CorruptionRow(
        "robustglimpse.corruptions.spatter:spatter", "weather", True, "drops of water or mud", "Spatter"
    ),
    "saturate": CorruptionRow(
        f"{_DIGITAL}:saturate", "digital", False, "HSV saturation changed", "Saturate", rounding=_EXACT
    ),
}  # fmt: skip


def names(*, extras: bool = False) -> tuple[str, ...]:
    """Return the 15 corruptions in the paper's order, with the extras behind them if asked for."""
    paper = tuple(name for name, row in CORRUPTIONS.items() if not row.extra)
    return (*paper, *(name for name in CORRUPTIONS if name not in paper)) if extras else paper


def takes_textures(corruption: str) -> bool:
    """Return whether one of ours is made of the frost textures, which a user may choose."""
    return "frost_dir" in CORRUPTIONS[corruption].options


def preset_for(height: int, width: int) -> int:
    """Return whose constants an image takes: 32 (CIFAR), 64 (Tiny ImageNet) or 224 (ImageNet).

    The one nearest to the shorter side, in octaves: 96 px take those of 64, 128 px those of 224.
    """
    shorter = max(1, min(height, width))
    return min(PRESETS, key=lambda preset: abs(log(shorter / preset)))


def corrupt(
    images: ImagesT,
    corruption: str,
    severity: int,
    *,
    draws: Draws | int = 0,
    preset: int | None = None,
    store: str = "exact",
    frost_dir: str | PathLike[str] | None = None,
) -> ImagesT:
    """Return images under a corruption of a severity from 1 to 5, in the form in which they came.

    images: a tensor u8 [B,3,H,W], whose device does the work; or another form that layouts.as_batch knows:
        arrays, channels last, one image, Pillow's images.
    draws: KeyedDraws(seed, index), so that an image is corrupted alike in any batch, order or shard; or
        LegacyDraws(seeds), which replays numpy's global stream as the reference used it.  A seed alone is for
        images that are the first of their set.
    preset: whose constants to take, 32, 64 or 224; by default preset_for the size.
    store: "jpeg85" puts the result through the JPEG (quality 85, 4:2:0) that the published sets were
        saved in.
    frost_dir: the folder of the frost textures; without one those of an installed imagecorruptions are
        taken, and without that our own (always ours with weather.PROCEDURAL).
    Raises UserError for an unknown corruption, severity, preset or store, or other images, or too small ones.
    """
    from robustglimpse.corruptions.layouts import as_batch

    corruption = arguments.text(corruption, "corruption", example="'fog'")
    row = find(CORRUPTIONS, corruption, kind="corruption", listing="corruptions")
    severity = arguments.whole(severity, "severity")
    preset = None if preset is None else arguments.whole(preset, "preset")
    check_choices(severity=severity, preset=preset, store=store)
    batch, back = as_batch(images)
    draws = _draws_for(len(batch), draws)
    if not len(batch):
        empty: ImagesT = back(batch.clone())
        return empty
    height, width = batch.shape[2:]
    if min(height, width) < row.least_px:
        side = row.least_px
        raise UserError(
            f"{corruption} needs images of at least {side} x {side} px, got {height} x {width}; leave it out"
        )
    given = {} if frost_dir is None else {"frost_dir": arguments.path(frost_dir, "frost_dir")}
    options = {key: value for key, value in given.items() if key in row.options}
    chosen = preset or preset_for(height, width)
    pixels = batch.permute(0, 2, 3, 1).contiguous()
    result = resolve(row)(pixels, severity, chosen, draws.named(f"{corruption} {severity}"), **options)
    if store == "jpeg85":
        from robustglimpse.corruptions.digital import through_jpeg

        result = through_jpeg(result, 85)
    corrupted: ImagesT = back(result.permute(0, 3, 1, 2))
    return corrupted


def _draws_for(count: int, draws: Draws | int) -> Draws:
    """Return the draws for so many images, made of a seed where that is given."""
    import numpy as np
    import torch

    from robustglimpse.rng import KeyedDraws

    if isinstance(draws, int | np.integer):
        seed = arguments.seed(draws, "draws")
        _tell_of_places()
        return KeyedDraws(seed, torch.arange(count))
    if not hasattr(draws, "named"):
        got = arguments.shown(draws)
        raise UserError(f"draws must be KeyedDraws(seed, index), LegacyDraws(seeds) or a seed, got {got}")
    if len(draws) != count:
        raise UserError(f"draws are for {len(draws)} images, got {count}; give one index per image")
    return draws


@cache  # once, however many batches come
def _tell_of_places() -> None:
    tell(
        "corrupt: of a seed alone, images are taken for the first of their set; for batches further on give "
        "draws=KeyedDraws(seed, index)"
    )


def check_choices(
    *,
    corruptions: Sequence[str] = (),
    severity: int = 1,
    preset: int | None = None,
    store: str = "exact",
) -> None:
    """Raise UserError unless all of these exist."""
    for name in corruptions:
        find(CORRUPTIONS, name, kind="corruption", listing="corruptions")
    if severity not in SEVERITIES or not isinstance(severity, int):
        raise UserError(f"severity must be 1, 2, 3, 4 or 5, got {severity}")
    if preset is not None and preset not in PRESETS:
        raise UserError(f"preset must be 32, 64 or 224, got {preset}; leave it out to choose by size")
    if store not in STORES:
        raise UserError(f"store must be {' or '.join(STORES)}, got {store!r}")
