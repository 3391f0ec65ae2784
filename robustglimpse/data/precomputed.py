"""Corrupted sets that others have saved: ImageNet-C and Tiny-ImageNet-C folders, CIFAR-10-C arrays."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robustglimpse.data import Dataset
from robustglimpse.data.folders import (
    CIFAR10_CLASSES,
    Sample,
    class_mixed,
    decode,
    folder_images,
)
from robustglimpse.records import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# Some copies keep the published archives' folders, some hold the corruptions side by side.
ARCHIVES = ("", "noise", "blur", "weather", "digital", "extra")


def find_cell(name: str, data_dir: Path | None, corruption: str, severity: int) -> Path:
    """Return the folder (or array) of one cell. Raises UserError where it is missing."""
    if data_dir is None:
        raise UserError(f"{name} needs its files: give the folder that holds them as --data-dir")
    if not data_dir.is_dir():
        raise UserError(f"{data_dir}: no such folder; give the one that holds {name} as --data-dir")
    below = f"{corruption}.npy" if name == "cifar10-c" else f"{corruption}/{severity}"
    for archive in ARCHIVES:
        path = data_dir / archive / below
        if path.is_file() if name == "cifar10-c" else path.is_dir():
            return path
    raise UserError(
        f"{data_dir}: {below} is missing (looked there and under {', '.join(ARCHIVES[1:])}); "
        "leave that cell out with --corruption and --severity, or complete the set"
    )


def load_cell(
    name: str,
    *,
    corruption: str,
    severity: int,
    data_dir: Path | None,
    limit: int | None = None,
    known: Collection[str] | None = None,
    size_px: int | None = None,
) -> tuple[Dataset, tuple[str, ...]]:
    """Return one cell as a data set whose split is "corruption/severity", and the classes left out.

    known: the class names that a model has; images of others are left out, by name, never by rank.
    size_px: images larger than it are centre-cropped, never resized: the sets are saved at their size.
    Raises UserError where the cell is missing, broken, or has no known class.
    """
    path = find_cell(name, data_dir, corruption, severity)
    split = f"{corruption}/{severity}"
    if name == "cifar10-c":
        return _cifar_cell(path, split, severity, limit), ()
    source, files = folder_images(path)
    samples = [Sample(file, file.partition("/")[0]) for file in files]
    classes = tuple(sorted({s.wnid for s in samples}))
    kept = tuple(c for c in classes if known is None or c in known)
    if not kept:
        raise UserError(
            f"{path}: the model knows none of its {len(classes)} classes (the first is {classes[0]!r}); "
            "class folders must be named as the model's classes are, by wnid"
        )
    samples = [s for s in samples if s.wnid in set(kept)]
    dataset = decode(source, name, split, samples, kept, limit, _centre(size_px, path))
    return dataset, tuple(c for c in classes if c not in set(kept))


def _centre(size_px: int | None, path: Path) -> tuple[str, Callable[[Image], Image]]:
    def prepare(image: Image) -> Image:
        width, height = image.size
        if size_px is None or (width, height) == (size_px, size_px):
            return image
        if min(width, height) < size_px:
            raise UserError(
                f"{path}: an image is {width} x {height} px, the model needs {size_px}; "
                "choose a model trained at the set's size"
            )
        left, top = (width - size_px) // 2, (height - size_px) // 2
        return image.crop((left, top, left + size_px, top + size_px))

    return f"centre {size_px}", prepare


def _cifar_cell(path: Path, split: str, severity: int, limit: int | None) -> Dataset:
    """Return a fifth of an array u8 [5N,32,32,3]: severities lie one after the other."""
    try:
        images = np.load(path, mmap_mode="r")
        labels = np.load(path.with_name("labels.npy")).reshape(-1).astype(np.int64)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read with its labels.npy ({reason}); fetch it again") from None
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[1:] != (32, 32, 3) or shape[0] % 5:
        raise UserError(f"{path}: expected u8 [5N,32,32,3], got {images.dtype} {list(shape)}")
    count = shape[0] // 5
    start = (severity - 1) * count
    labels = labels if len(labels) == count else labels[start : start + count]
    if len(labels) != count or not np.isin(labels, np.arange(10)).all():
        raise UserError(f"{path}: labels.npy must hold a label from 0 to 9 for each of {count} images")
    order = class_mixed(labels)[:limit]
    pixels = np.ascontiguousarray(images[start : start + count][order].transpose(0, 3, 1, 2))
    return Dataset("cifar10-c", split, pixels, labels[order], CIFAR10_CLASSES, count)


def by_split(
    name: str, *, split: str, data_dir: Path | None, limit: int | None, size_px: int | None = None
) -> Dataset:
    """Return the cell named by a split such as "fog/3"."""
    corruption, _, severity = split.partition("/")
    if severity not in {"1", "2", "3", "4", "5"}:
        raise UserError(
            f"{name} is one set per corruption and severity: name it with --split fog/3, "
            "or run them all with `robustglimpse corruptions`"
        )
    found, _ = load_cell(
        name, corruption=corruption, severity=int(severity), data_dir=data_dir, limit=limit, size_px=size_px
    )
    return found
