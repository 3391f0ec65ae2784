"""Does this machine corrupt images as the one where the reference was matched? Small bundled answers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robustglimpse.corruptions import CORRUPTIONS, SEVERITIES
from robustglimpse.files import write_file

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = Path(__file__).with_name("golden.npz")
IMAGES = 2
STRIDE = 3  # every third pixel of each axis is kept
# The largest difference in levels, and the largest share of values that differ, per corruption. What only
# compares, counts or repeats whole levels is exact; the rest may turn a level where it truncates.
EXACT = {
    "shot_noise", "impulse_noise", "brightness", "contrast", "pixelate", "jpeg_compression", "saturate",
}  # fmt: skip
LOOSE = {"glass_blur": (2, 0.03), "elastic_transform": (1, 0.01), "frost": (1, 0.001)}


@dataclass(frozen=True)
class Check:
    """How one corruption compares over its severities and both sizes."""

    corruption: str
    worst_levels: int
    worst_share: float
    allowed_levels: int
    allowed_share: float

    @property
    def is_equal(self) -> bool:
        """Whether the differences are those of rounding."""
        return self.worst_levels <= self.allowed_levels and self.worst_share <= self.allowed_share


def verify_corruptions(path: Path = GOLDEN) -> Iterator[Check]:
    """Yield how each corruption here compares with the bundled answers, on replayed draws."""
    with np.load(path) as stored:
        expected = {name: stored[name] for name in stored.files}
    for name in CORRUPTIONS:
        levels, share = 0, 0.0
        for size, images in _images().items():
            for severity in SEVERITIES:
                found = _answer(images, name, severity)
                difference = np.abs(found.astype(int) - expected[f"{size}/{name}/{severity}"])
                levels = max(levels, int(difference.max()))
                share = max(share, float((difference > 0).mean()))
        allowed = LOOSE.get(name, (0, 0.0) if name in EXACT else (1, 0.005))
        yield Check(name, levels, share, *allowed)


def make_golden(path: Path = GOLDEN) -> None:
    """Write the answers of this machine. Run it only where tests/corruptions matches the reference."""
    answers = {
        f"{size}/{name}/{severity}": _answer(images, name, severity)
        for size, images in _images().items()
        for name in CORRUPTIONS
        for severity in SEVERITIES
    }
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **answers)
    write_file(path, content.getvalue())


def _images() -> dict[int, Tensor]:
    """Return the first test digits by size: whole at 64 px, and their middles at 32 px."""
    import torch

    from robustglimpse.data import load_data

    whole = torch.from_numpy(np.array(load_data("glimpse-digits", limit=IMAGES).images))
    return {64: whole, 32: whole[:, :, 16:48, 16:48].contiguous()}


def _answer(images: Tensor, name: str, severity: int) -> NDArray[np.uint8]:
    from robustglimpse.corruptions import corrupt
    from robustglimpse.corruptions.weather import PROCEDURAL
    from robustglimpse.rng import LegacyDraws

    draws = LegacyDraws([1000 * severity + k for k in range(len(images))])
    out = corrupt(images, name, severity, draws=draws, frost_dir=PROCEDURAL)
    return out[:, :, ::STRIDE, ::STRIDE].contiguous().numpy()
