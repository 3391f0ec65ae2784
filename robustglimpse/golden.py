"""Does this machine corrupt images as the one where the reference was matched? Small bundled answers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robustglimpse.corruptions import CORRUPTIONS, SEVERITIES
from robustglimpse.files import write_file
from robustglimpse.records import UserError

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = Path(__file__).with_name("golden.npz")
IMAGES = 2
SIZES = (64, 32)
STRIDE = 3  # every third pixel of each axis is kept


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
    """Yield how each corruption here compares with the bundled answers, on replayed draws.

    Raises UserError where there are none of a corruption.
    """
    expected = _stored(path)
    lacking = [name for name in CORRUPTIONS if not expected.keys() >= set(_keys(name))]
    if lacking:
        raise UserError(
            f"expected answers of every corruption in {path.name}, got none of {', '.join(lacking)}; "
            "robustglimpse.golden.make_golden() adds them"
        )
    for name, row in CORRUPTIONS.items():
        levels, share = 0, 0.0
        for size, images in _images().items():
            for severity in SEVERITIES:
                found = _answer(images, name, severity)
                difference = np.abs(found.astype(int) - expected[f"{size}/{name}/{severity}"])
                levels = max(levels, int(difference.max()))
                share = max(share, float((difference > 0).mean()))
        yield Check(name, levels, share, *row.rounding)


def make_golden(path: Path = GOLDEN, *, anew: Sequence[str] = ()) -> None:
    """Write this machine's answers of the corruptions that lack some, and of those in anew; keep the others.

    Run it only where tests/corruptions matches the reference.
    """
    stored, images = _stored(path) if path.is_file() else {}, _images()
    answers = {}
    for name in CORRUPTIONS:
        for key in _keys(name):
            size, _, severity = key.split("/")
            is_kept = key in stored and name not in anew
            answers[key] = stored[key] if is_kept else _answer(images[int(size)], name, int(severity))
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **answers)
    write_file(path, content.getvalue())


def _keys(name: str) -> list[str]:
    """Return what the answers of a corruption are called: "64/fog/3"."""
    return [f"{size}/{name}/{severity}" for size in SIZES for severity in SEVERITIES]


def _stored(path: Path) -> dict[str, NDArray[np.uint8]]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


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
