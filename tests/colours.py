"""Classes that are colours, and a classifier that names the nearest one: its answers need no training."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robustglimpse import pairs
from robustglimpse.records import Classifier

IDENTITY = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def colour_of(name: str) -> NDArray[np.float64]:
    """Return the colour of the class called name, [3] in [0,1]."""
    return np.random.default_rng(zlib.crc32(name.encode())).uniform(0.1, 0.9, 3)


def colour_classifier(
    classes: Sequence[str], *, name: str = "colours", size_px: int = 32, dataset: str = "", glances: int = 2
) -> Classifier:
    """Return a classifier that names the class whose colour is nearest to the image's mean.

    Its first exit looks at the red alone, its second and last at all three channels; with one glance it
    has the last alone.
    """
    palette = torch.from_numpy(np.stack([colour_of(c) for c in classes])).float()

    def exits(x: Tensor) -> Tensor:
        apart = (x.mean((2, 3))[:, None] - palette).square()
        return -torch.stack([apart[..., 0], apart.sum(2)])[-glances:]

    return Classifier(
        name, lambda x: exits(x)[-1], exits, {}, lambda x: torch.ones(glances, len(x), 3), tuple(classes),
        size_px, f"weights of {name}", IDENTITY, {"dataset": dataset, "backbone": "none", "family": name},
    )  # fmt: skip


def save_colours(
    root: Path,
    classes: Sequence[str],
    *,
    count: int = 2,
    size_px: int = 32,
    name: str = "{}.png",
    seed: int = 0,
) -> None:
    """Write count images of each class into root/CLASS/, without loss whatever name they are given.

    An image is its class's colour, shifted as a whole so that some are nearer to another, and grained.
    """
    rng = np.random.default_rng(seed)
    for c in classes:
        (root / c).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = colour_of(c) + rng.normal(0, 0.15, 3) + rng.normal(0, 0.1, (size_px, size_px, 3))
            levels = (pixels.clip(0, 1) * 255).astype(np.uint8)
            Image.fromarray(levels).save(root / c / name.format(i), "PNG")


def offer(monkeypatch: pytest.MonkeyPatch, *classifiers: Classifier) -> None:
    """Make `--model NAME` find these classifiers, and no others."""
    known = {c.name: c for c in classifiers}
    monkeypatch.setattr(pairs, "load_model", lambda name, *, device="cpu": known[name])


def save_level(path: Path, level: int, size_px: int = 16) -> None:
    """Write a picture of one red level, without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size_px, size_px, 3), 128, np.uint8)
    pixels[..., 0] = level
    Image.fromarray(pixels).save(path)
