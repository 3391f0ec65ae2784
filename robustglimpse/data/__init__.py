"""Data sets: u8 images in one fixed, class-mixed order, with a fingerprint. The only reader of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustglimpse.data.archives import CIFAR10, TINY_IMAGENET, Archive, files_of
from robustglimpse.records import Batch, UserError
from robustglimpse.registry import find, resolve

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class DatasetRow:
    """One line of the table of data sets. archive: what --download fetches, None where nothing is public."""

    target: str
    classes: str
    size_px: int
    default_split: str
    needs: str
    summary: str
    is_corrupted: bool = False
    archive: Archive | None = None


DATASETS: dict[str, DatasetRow] = {
    "glimpse-digits": DatasetRow(
        "robustglimpse.data:_glimpse_digits", "10", 64, "test", "nothing: embedded",
        "handwritten digits hidden in two photographs among coloured fragments",
    ),
    "tiny-imagenet": DatasetRow(
        "robustglimpse.data.folders:tiny_imagenet", "200 or a subset", 64, "val",
        "--data-dir: the official zip or its folder (or --download)",
        "Tiny ImageNet in its official layout", archive=TINY_IMAGENET,
    ),
    "tiny-imagenet-20": DatasetRow(
        "robustglimpse.data.folders:tiny_imagenet_20", "20", 64, "val",
        "--data-dir: as for tiny-imagenet",
        "its first 20 classes, in the order of wnids.txt", archive=TINY_IMAGENET,
    ),
    "imagefolder": DatasetRow(
        "robustglimpse.data.folders:image_folder", "its folders", 224, "",
        "imagefolder:PATH",
        "any folder of class folders; resized to 8/7 of the size, then centre-cropped",
    ),
    "imagenet100": DatasetRow(
        "robustglimpse.data.folders:imagenet100", "its folders", 224, "val",
        "--data-dir: train/WNID/ and val/WNID/ below it",
        "100 classes of ImageNet; to train on, squares of 256 px (25 GB decoded, mapped from the cache)",
    ),
    "cifar10": DatasetRow(
        "robustglimpse.data.folders:cifar10", "10", 32, "test",
        "--data-dir: its python or binary batches (or --download)",
        "CIFAR-10", archive=CIFAR10,
    ),
    "imagenet-c": DatasetRow(
        "robustglimpse.data:_imagenet_c", "its folders", 224, "",
        "--data-dir: CORRUPTION/SEVERITY/WNID/ below it",
        "ImageNet-C, or any set in its layout", True,
    ),
    "tiny-imagenet-c": DatasetRow(
        "robustglimpse.data:_tiny_imagenet_c", "its folders", 64, "",
        "--data-dir: CORRUPTION/SEVERITY/WNID/ below it",
        "Tiny-ImageNet-C", True,
    ),
    "cifar10-c": DatasetRow(
        "robustglimpse.data:_cifar10_c", "10", 32, "",
        "--data-dir: CORRUPTION.npy and labels.npy",
        "CIFAR-10-C", True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """One split in its fixed order: images u8 [N,3,H,W], labels i64 [N], class names by label.

    fingerprint: SHA-256 over the class names, the labels and the images; what two runs must share.
    total: how many the whole split holds (labels may be the first `limit` of them).
    """

    name: str
    split: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    total: int

    @property
    def size_px(self) -> int:
        """The height of the images in pixels."""
        return int(self.images.shape[2])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the class names, the labels and the pixels, in their order."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        digest.update(self.labels.tobytes())
        for start in range(0, len(self.images), 1024):
            digest.update(self.images[start : start + 1024].tobytes())
        return digest.hexdigest()

    def first(self, limit: int | None) -> Dataset:
        """Return the first `limit` images of the set, all when None."""
        if limit is not None and limit < 1:
            raise UserError(f"limit must be at least 1, got {limit}; leave it out for the whole set")
        return replace(self, images=self.images[:limit], labels=self.labels[:limit])

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield the split in order, batch_size at a time, the last one shorter."""
        import numpy as np

        for start in range(0, len(self.labels), batch_size):
            yield self.batch(np.arange(start, min(start + batch_size, len(self.labels))))

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return the samples at those places, as copies: the images may be a read-only file map."""
        import torch

        images, labels = (torch.from_numpy(values[rows]) for values in (self.images, self.labels))
        return Batch(images, labels, torch.from_numpy(rows))


def load_data(
    name: str,
    *,
    split: str | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    size_px: int | None = None,
    download: bool = False,
) -> Dataset:
    """Return the first `limit` images of a split, in its fixed class-mixed order.

    name: a row of DATASETS; "imagefolder:PATH" carries its own path.
    split: the row's default when None.  data_dir: where the files are, or the archive itself.
    size_px: side of the images, for image folders.  download: fetch the public archive where it is missing.
    Raises UserError for a name, a split or files that do not exist or cannot be read.
    """
    kind, _, path = name.partition(":")
    row = find(DATASETS, kind, kind="data set", listing="data")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}; leave it out for the whole split")
    if size_px is not None and size_px < 1:
        raise UserError(f"size must be at least 1 px, got {size_px}")
    if download:
        check_download(kind, row)
    where = Path(path) if path else data_dir
    options: Mapping[str, Any] = {
        "split": row.default_split if split is None else split,
        "data_dir": files_of(kind, row.archive, where, download=download) if row.archive else where,
        "limit": limit,
        "size_px": size_px or row.size_px,
    }
    dataset = resolve(row)(**options)
    assert isinstance(dataset, Dataset)
    return dataset


def check_download(name: str, row: DatasetRow) -> None:
    """Raise UserError where a data set has no archive to fetch."""
    if row.archive is None:
        able = ", ".join(known for known, other in DATASETS.items() if other.archive)
        raise UserError(
            f"--download fetches the archive of a public set ({able}), and {name} has none; leave it out"
        )


def from_tensors(
    images: Tensor, labels: Tensor, *, name: str, classes: Sequence[str] | None = None
) -> Dataset:
    """Return images u8 [N,3,H,W], or f32 in [0,1], and labels i64 [N] as a data set, in their order.

    f32 images are rounded to the 256 levels that a stored image has.  classes: names by label; the
    numbers 0 to the highest label when None.  Raises UserError for other shapes, types or ranges.
    """
    import numpy as np
    import torch

    if images.ndim != 4 or images.shape[1] != 3 or labels.shape != images.shape[:1] or not len(labels):
        raise UserError(
            f"{name}: expected images [N,3,H,W] and labels [N], got {list(images.shape)} and "
            f"{list(labels.shape)}"
        )
    if images.dtype != torch.uint8:
        if not (images.is_floating_point() and float(images.min()) >= 0 and float(images.max()) <= 1):
            raise UserError(f"{name}: images must be u8, or floats in [0,1] before any normalisation")
        images = images.mul(255).round().to(torch.uint8)
    names = tuple(classes) if classes else tuple(str(k) for k in range(int(labels.max()) + 1))
    if int(labels.min()) < 0 or int(labels.max()) >= len(names):
        raise UserError(f"{name}: labels must be from 0 to {len(names) - 1}")
    pixels, numbers = images.cpu().numpy(), labels.cpu().numpy().astype(np.int64)
    return Dataset(name, "all", pixels, numbers, names, len(numbers))


def from_loader(
    batches: Iterable[tuple[Tensor, Tensor]], *, name: str, classes: Sequence[str] | None = None
) -> Dataset:
    """Return what a loader of (images, labels) yields as a data set, as from_tensors."""
    import torch

    images, labels = zip(*((x, y) for x, y in batches), strict=True)
    return from_tensors(torch.cat(images), torch.cat(labels), name=name, classes=classes)


def _glimpse_digits(*, split: str, limit: int | None, **_: Any) -> Dataset:
    from robustglimpse.data import digits

    if split not in digits.COUNTS:
        raise UserError(f"glimpse-digits has the splits {', '.join(digits.COUNTS)}, not {split!r}")
    images, labels = digits.draw(split, limit=limit)
    return Dataset("glimpse-digits", split, images, labels, digits.CLASSES, digits.COUNTS[split])


def _precomputed(name: str, **options: Any) -> Dataset:
    from robustglimpse.data.precomputed import by_split

    return by_split(name, **options)


_imagenet_c = partial(_precomputed, "imagenet-c")
_tiny_imagenet_c = partial(_precomputed, "tiny-imagenet-c")
_cifar10_c = partial(_precomputed, "cifar10-c")
