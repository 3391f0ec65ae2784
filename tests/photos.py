"""Images on the disk for tests to read, and what such a test asks."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from robustglimpse.data import Dataset, load_data
from robustglimpse.records import UserError

Pixels = NDArray[np.uint8]


def refusal(call: Callable[[], object]) -> str:
    """Return the message of the UserError that the call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save_image(path: Path, width: int = 40, height: int = 40, seed: int = 0) -> Pixels:
    """Write a random image losslessly or as JPEG, by its ending, and return its pixels [H,W,3]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def two_classes(root: Path, *, size_px: int = 32) -> Path:
    """Write two class folders of two images each; return the folder that holds them."""
    for wnid in "a", "b":
        for i in range(2):
            save_image(root / wnid / f"{i}.png", size_px, size_px, seed=ord(wnid) + 10 * i)
    return root


def tiny_folder(root: Path) -> Path:
    """Write a Tiny ImageNet of two classes with one train and one val image each; return its folder."""
    for wnid in "n01", "n02":
        save_image(root / f"train/{wnid}/images/{wnid}_0.JPEG", 64, 64)
    for i in range(2):
        save_image(root / f"val/images/val_{i}.JPEG", 64, 64, seed=i)
    rows = "val_0.JPEG\tn02\t0\t0\t62\t62\nval_1.JPEG\tn01\t0\t0\t62\t62\n"
    (root / "val/val_annotations.txt").write_text(rows)
    return root


def packed(root: Path, out: Path) -> Path:
    """Zip a folder's files and return the archive."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(root.parent).as_posix())
    return out


def load(root: Path, size_px: int = 32, **options: object) -> Dataset:
    """Return an image folder at a size."""
    return load_data(f"imagefolder:{root}", size_px=size_px, **options)  # type: ignore[arg-type]


def pixels_of(data: Dataset, i: int = 0) -> Pixels:
    """Return an image of a set as [H,W,3]."""
    return np.asarray(data.images[i]).transpose(1, 2, 0)


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every decoding fail from here on, so that pixels can only come from the cache."""
    monkeypatch.delattr("robustglimpse.data.images.open_image")
