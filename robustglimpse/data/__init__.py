"""Data sets: u8 images in one fixed, class-mixed order, with a fingerprint. The only reader of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os import PathLike
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any

from robustglimpse import arguments
from robustglimpse.data.archives import CIFAR10, TINY_IMAGENET, Archive, files_of
from robustglimpse.data.sources import mode_of
from robustglimpse.records import Batch, UserError
from robustglimpse.registry import find, resolve

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


MOST_CLASSES = 1_000_000  # a label beyond is a mistake, and would be a table of names as long


@dataclass(frozen=True)
class DatasetRow:
    """One line of the table of data sets.

    takes_size: whether its images are prepared at the size that a model asks for.
    archive: what --download fetches, None where nothing is public.
    """

    target: str
    classes: str
    size_px: int
    default_split: str
    needs: str
    summary: str
    is_corrupted: bool = False
    takes_size: bool = False
    archive: Archive | None = None


DATASETS: dict[str, DatasetRow] = {
    "glimpse-digits": DatasetRow(
        "robustglimpse.data:_glimpse_digits", "10", 64, "test", "nothing: embedded",
        "handwritten digits hidden in two photographs among coloured fragments",
    ),
    "cluttered-digits": DatasetRow(
        "robustglimpse.data:_cluttered_digits", "10", 112, "test", "nothing: embedded",
        "a white digit somewhere on black, among pieces of others; one channel, given as three equal ones",
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
        "any folder of class folders; resized to 8/7 of the size, then centre-cropped", takes_size=True,
    ),
    "imagenet100": DatasetRow(
        "robustglimpse.data.folders:imagenet100", "its folders", 224, "val",
        "--data-dir: train/WNID/ and val/WNID/ below it",
        "100 classes of ImageNet; to train on, squares of 256 px (25 GB decoded, mapped from the cache)",
        takes_size=True,
    ),
    "cifar10": DatasetRow(
        "robustglimpse.data.cifar:cifar10", "10", 32, "test",
        "--data-dir: its python or binary batches (or --download)",
        "CIFAR-10", archive=CIFAR10,
    ),
    "cifar100": DatasetRow(
        "robustglimpse.data.cifar:cifar100", "100", 32, "test",
        "--data-dir: its python or binary batches",
        "CIFAR-100 with its fine labels",
    ),
    "imagenet-c": DatasetRow(
        "robustglimpse.data:_imagenet_c", "its folders", 224, "",
        "--data-dir: CORRUPTION/SEVERITY/WNID/ below it",
        "ImageNet-C, or any set in its layout", True, True,
    ),
    "tiny-imagenet-c": DatasetRow(
        "robustglimpse.data:_tiny_imagenet_c", "its folders", 64, "",
        "--data-dir: CORRUPTION/SEVERITY/WNID/ below it",
        "Tiny-ImageNet-C", True, True,
    ),
    "cifar10-c": DatasetRow(
        "robustglimpse.data:_cifar10_c", "10", 32, "",
        "--data-dir: CORRUPTION.npy and labels.npy",
        "CIFAR-10-C", True,
    ),
    "cifar100-c": DatasetRow(
        "robustglimpse.data:_cifar100_c", "100", 32, "",
        "--data-dir: CORRUPTION.npy and labels.npy",
        "CIFAR-100-C", True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """One split in its fixed order: images u8 [N,3,H,W], labels i64 [N], class names by label.

    fingerprint: SHA-256 over the class names, the labels and the images; what two runs must share.
    total: how many the whole split holds (labels may be the first `limit` of them).
    preparation: what was done to each image after it was decoded.
    is_named: whether classes are names, or numbers that stand for none (labels are then places of logits).
    identity: SHA-256 of the content of the image files and their classes, in order, whatever was done to the
        pixels after.  "" where there are no files: then the fingerprint tells.
    listing: SHA-256 of the files' names without ending and their classes, in order: what the cells of a set
        that is saved corrupted must share.  "" where there are no files.
    numbering: how the labels were matched to a model's logits, "" before they are (labels.match_classes).
    original: the fingerprint of the set before that, "" where it is this one.
    notes: lines for the user, of what was decided or passed over on the way.
    """

    name: str
    split: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    total: int
    preparation: str = "as stored"
    is_named: bool = True
    identity: str = ""
    listing: str = ""
    numbering: str = ""
    original: str = ""
    notes: tuple[str, ...] = ()

    @property
    def size_px(self) -> int:
        """The height of the images in pixels."""
        return int(self.images.shape[2])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the set's own class names, labels and pixels, in their order."""
        if self.original:
            return self.original
        digest = hashlib.sha256("\n".join(self.classes).encode())
        digest.update(self.labels.tobytes())
        for start in range(0, len(self.images), 1024):
            digest.update(self.images[start : start + 1024].tobytes())
        return digest.hexdigest()

    def first(self, limit: int | None) -> Dataset:
        """Return the first `limit` images of the set, all when None."""
        if limit is not None and limit < 1:
            raise UserError(f"limit must be at least 1, got {limit}; leave it out for the whole set")
        if limit is None or limit >= len(self.labels):
            return self
        return replace(
            self, images=self.images[:limit], labels=self.labels[:limit], original="",
            identity=self.identity and f"{self.identity} first {limit}",
            listing=self.listing and f"{self.listing} first {limit}",
        )  # fmt: skip

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
    name: str | PathLike[str],
    *,
    split: str | None = None,
    data_dir: str | PathLike[str] | None = None,
    limit: int | None = None,
    size_px: int | None = None,
    download: bool = False,
) -> Dataset:
    """Return the first `limit` images of a split, in its fixed class-mixed order.

    name: a row of DATASETS; "imagefolder:PATH", or a Path alone, carries its own path.
    split: the row's default when None.  data_dir: where the files are, or the archive itself.
    size_px: side of the images, for folders of them; 0 takes them as they are stored.
    download: fetch the public archive where it is missing.
    Raises UserError for a name, a split or files that do not exist or cannot be read.
    """
    if isinstance(name, Dataset):
        raise arguments.loaded_already(name, "load_data")
    name = arguments.data_name(name, "the data set")
    split = None if split is None else arguments.text(split, "split", example="'test'")
    limit = None if limit is None else arguments.whole(limit, "limit")
    size_px = None if size_px is None else arguments.whole(size_px, "size_px")
    kind, _, path = name.partition(":")
    if name and kind not in DATASETS and S_ISDIR(mode_of(arguments.path(name, "the data set"))):
        raise UserError(f"{name!r} is a folder, not a data set's name; read it as 'imagefolder:{name}'")
    row = find(DATASETS, kind, kind="data set", listing="data")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}; leave it out for the whole split")
    if size_px is not None and size_px < 0:
        raise UserError(f"size must be at least 0 px, got {size_px}; 0 takes images as they are stored")
    if arguments.flag(download, "download"):
        check_download(kind, row)
    given = path if path else data_dir
    where = None if given is None else arguments.path(given, "data_dir")
    options: Mapping[str, Any] = {
        "split": row.default_split if split is None else split,
        "data_dir": files_of(kind, row.archive, where, download=download) if row.archive else where,
        "limit": limit,
        "size_px": row.size_px if size_px is None else size_px or None,
    }
    dataset = resolve(row)(**options)
    assert isinstance(dataset, Dataset)
    return dataset


def resized(dataset: Dataset, size_px: int) -> Dataset:
    """Return a set with its images resized whole to squares of size_px, itself where they have that size.

    Nothing is cut away, other than from images of folders: sets of one size are drawn to their edges.  The
    set stays the same to those who pair runs (its identity).  Raises UserError unless images are squares.
    """
    import numpy as np

    from robustglimpse.data.images import Preparation, resize_whole

    height, width = dataset.images.shape[2:]
    if (height, width) == (size_px, size_px):
        return dataset
    if height != width or size_px < 1:
        raise UserError(
            f"{dataset.name}: expected square images and a size from 1 up, got {width} x {height} px and "
            f"{size_px}; leave size_px out"
        )
    images = np.empty((len(dataset.images), 3, size_px, size_px), np.uint8)
    for i, pixels in enumerate(dataset.images):
        images[i] = resize_whole(pixels, size_px, f"{dataset.name}: image {i}")
    note = f"{dataset.name}: images of {width} px are resized to {size_px} px"
    return replace(
        dataset, images=images, preparation=Preparation(size_px, size_px).tag, original="",
        identity=dataset.identity or dataset.fingerprint, notes=(*dataset.notes, note),
    )  # fmt: skip


def check_download(name: str, row: DatasetRow) -> None:
    """Raise UserError where a data set has no archive to fetch."""
    if row.archive is None:
        able = ", ".join(known for known, other in DATASETS.items() if other.archive)
        raise UserError(
            f"--download fetches the archive of a public set ({able}), and {name} has none; leave it out"
        )


def from_tensors(
    images: Tensor | NDArray[Any],
    labels: Tensor | NDArray[Any] | Sequence[int],
    *,
    name: str,
    classes: int | Sequence[str] | None = None,
) -> Dataset:
    """Return images u8 [N,3,H,W], or floats in [0,1], and labels i64 [N] as a data set, in their order.

    Tensors or arrays.  Floats are rounded to the 256 levels that a stored image has; the set's notes say so
    where that moves one.
    classes: names by label, or how many there are; None and a number leave the labels what they are: places
    among a model's logits.  Raises UserError for other shapes, types or ranges, NaN among them.
    """
    import numpy as np

    name = arguments.text(name, "name", example="'mine'")
    classes = _classes(classes, name)
    pixels, notes = _pixels(np.asarray(_array(images)), name)
    numbers = _numbers(np.asarray(_array(labels)), len(pixels), name)
    highest = int(numbers.max())
    count = highest + 1 if classes is None else classes if isinstance(classes, int) else len(classes)
    if highest >= count:
        raise UserError(
            f"{name}: labels go up to {highest}, and classes= has {count}; expected 0 to {count - 1}"
        )
    if classes is None or isinstance(classes, int):
        names, is_named = tuple(str(k) for k in range(count)), False
    else:
        names, is_named = tuple(classes), True
        if len(set(names)) < len(names):
            raise UserError(f"{name}: two classes have one name; classes= must name each once")
    return Dataset(name, "all", pixels, numbers, names, len(numbers), is_named=is_named, notes=notes)


def _classes(value: Any, name: str) -> int | tuple[str, ...] | None:
    """Return what classes= says: how many there are, or their names. Raises UserError for other things."""
    if isinstance(value, str | Mapping):
        raise UserError(
            f"{name}: classes must be names in a list, by label, or their number, got "
            f"{arguments.shown(value)}; for example classes=['cat', 'dog']"
        )
    if value is None or not hasattr(value, "__len__"):
        return None if value is None else arguments.whole(value, f"{name}: classes", example="classes=10")
    return tuple(str(each) for each in value)


def _array(values: Any) -> Any:
    """Return a tensor's values as numpy sees them, other things as they are."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values


def _pixels(images: NDArray[Any], name: str) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Return u8 [N,3,H,W] of own images, and a note where rounding moved one. Raises UserError for others."""
    import numpy as np

    shape = list(images.shape)
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        mend = ""
        if images.ndim == 4 and images.shape[3] == 3:
            mend = "; they look like [N,H,W,3]: permute(0, 3, 1, 2)"
        elif images.ndim == 4 and images.shape[1] == 1:
            mend = "; grey ones take three equal channels: expand(-1, 3, -1, -1)"
        raise UserError(f"{name}: expected images [N,3,H,W], N from 1 up, got {shape}{mend}")
    if images.dtype == np.uint8:
        return images, ()
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(
            f"{name}: images must be u8, or floats in [0,1] before any normalisation, got {images.dtype}; "
            "turn levels 0 to 255 into u8 (torch.uint8)"
        )
    if not np.isfinite(images).all():
        raise UserError(f"{name}: images hold NaN or infinite values; mend or drop those")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        cure = "divide them by 255" if low >= 0 and high <= 255 else "undo the normalisation"
        raise UserError(
            f"{name}: images must be u8, or floats in [0,1] before any normalisation, got {low:.3g} to "
            f"{high:.3g}; {cure}"
        )
    levels = np.rint(images * images.dtype.type(255)).astype(np.uint8)
    moved = float(np.abs(levels / 255 - images).max())
    if moved <= 1e-3 / 255 or (images.dtype == np.float16 and moved <= 0.06 / 255):
        return levels, ()
    return levels, (
        f"{name}: images are rounded to the 256 levels of a stored one, by {moved * 255:.2g}/255 at most",
    )


def _numbers(labels: NDArray[Any], count: int, name: str) -> NDArray[np.int64]:
    """Return i64 [N] of own labels. Raises UserError unless each image has a whole number from 0 up."""
    import numpy as np

    if labels.shape != (count,):
        mend = ""
        if labels.shape == (count, 1):
            mend = "; squeeze(1) gives that"
        elif labels.ndim == 2 and len(labels) == count:
            mend = "; of one-hot rows argmax(1) gives that"
        raise UserError(
            f"{name}: expected labels [{count}], one for each image, got {list(labels.shape)}{mend}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{name}: labels must be whole numbers, got {labels.dtype}; labels.long() if they are"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= MOST_CLASSES:
        raise UserError(
            f"{name}: labels must be from 0 up (and below {MOST_CLASSES}), got {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    return labels.astype(np.int64)


def from_loader(
    batches: Iterable[Sequence[Any]], *, name: str, classes: int | Sequence[str] | None = None
) -> Dataset:
    """Return what a loader of (images, labels), or a torch Dataset, yields as a data set, as from_tensors."""
    import numpy as np

    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise UserError(
            f"{name}: expected a loader of (images, labels), got {arguments.shown(batches)}; for example a "
            "torch.utils.data.DataLoader"
        )
    images, labels = [], []
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise UserError(
                f"{name}: expected a loader of (images, labels), got batches of {type(batch).__name__}; "
                "pick the two and use from_tensors"
            )
        images.append(np.asarray(_array(batch[0])))
        labels.append(np.asarray(_array(batch[1])))
        if not labels[-1].ndim:  # a torch Dataset yields its samples one by one
            images[-1], labels[-1] = images[-1][None], labels[-1][None]
    if not images:
        raise UserError(f"{name}: the loader yields nothing; is it used up, or its data set empty?")
    sizes = {each.shape[1:] for each in images}
    if len(sizes) > 1:
        raise UserError(f"{name}: batches of images of several sizes, {sorted(sizes)}; resize them alike")
    return from_tensors(np.concatenate(images), np.concatenate(labels), name=name, classes=classes)


def _embedded(name: str, draw: str, *, split: str, limit: int | None, **_: Any) -> Dataset:
    from robustglimpse.data import digits

    if split not in digits.COUNTS:
        raise UserError(f"{name} has the splits {', '.join(digits.COUNTS)}, not {split!r}")
    images, labels = getattr(digits, draw)(split, limit=limit)
    return Dataset(name, split, images, labels, digits.CLASSES, digits.COUNTS[split])


def _precomputed(name: str, **options: Any) -> Dataset:
    from robustglimpse.data.precomputed import by_split

    return by_split(name, **options)


_glimpse_digits = partial(_embedded, "glimpse-digits", "draw")
_cluttered_digits = partial(_embedded, "cluttered-digits", "draw_cluttered")
_imagenet_c = partial(_precomputed, "imagenet-c")
_tiny_imagenet_c = partial(_precomputed, "tiny-imagenet-c")
_cifar10_c = partial(_precomputed, "cifar10-c")
_cifar100_c = partial(_precomputed, "cifar100-c")
