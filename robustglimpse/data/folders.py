"""Data sets from files: Tiny ImageNet, image folders, CIFAR-10. Decoded once, then mapped from a cache."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robustglimpse.cache import cache_dir
from robustglimpse.data import Dataset
from robustglimpse.records import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}
RESIZE_RATIO = 256 / 224
AS_STORED: tuple[str, Callable[[Image], Image]] = ("as stored", lambda image: image)
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """An image file inside its folder or archive, and its class."""

    path: str
    wnid: str


def tiny_imagenet(
    *, split: str, data_dir: Path, limit: int | None, first: int | None = None, **_: Any
) -> Dataset:
    """Return a split of Tiny ImageNet: 64 x 64, the classes its train folder holds, sorted.

    data_dir: the official zip, or a folder in which it is unpacked.
    first: only so many classes, the first of its wnids.txt; the set is then called tiny-imagenet-FIRST.
    """
    with closing(_open_source(data_dir)) as source:
        return _tiny_split(source, split, limit, first)


tiny_imagenet_20 = partial(tiny_imagenet, first=20)


def _tiny_split(source: Source, split: str, limit: int | None, first: int | None) -> Dataset:
    names = source.names()
    parts = [PurePosixPath(n).parts for n in names]
    train = [p for p in parts if len(p) >= 4 and p[-4] == "train" and p[-2] == "images"]
    classes = tuple(sorted({p[-3] for p in train}))
    if not classes:
        raise UserError(
            f"{source.path}: expected the Tiny ImageNet layout (train/<wnid>/images/*.JPEG), found none"
        )
    if split == "train":
        samples = [Sample("/".join(p), p[-3]) for p in train]
    elif split == "val":
        samples = _tiny_val(source, names)
    else:
        raise UserError(f"tiny-imagenet has labelled splits train and val, not {split!r}")
    name = "tiny-imagenet"
    if first is not None:
        name, chosen = f"tiny-imagenet-{first}", _first_classes(source, names, first)
        classes = tuple(c for c in classes if c in chosen)
        samples = [sample for sample in samples if sample.wnid in chosen]
    return decode(source, name, split, samples, classes, limit, AS_STORED)


def _first_classes(source: Source, names: Sequence[str], count: int) -> list[str]:
    listing = next((n for n in names if PurePosixPath(n).name == "wnids.txt"), None)
    wnids = source.read(listing).decode().split() if listing else []
    if len(wnids) < count:
        raise UserError(f"{source.path}: expected a wnids.txt of {count} classes or more, got {len(wnids)}")
    return wnids[:count]


def _tiny_val(source: Source, names: Sequence[str]) -> list[Sample]:
    listing = next((n for n in names if n.endswith("val/val_annotations.txt")), None)
    if listing is None:
        raise UserError(f"{source.path}: the split val is missing (no val/val_annotations.txt)")
    root = listing[: -len("val_annotations.txt")]
    rows = [line.split("\t") for line in source.read(listing).decode().splitlines() if line.strip()]
    return [Sample(f"{root}images/{row[0]}", row[1]) for row in rows]


def image_folder(*, split: str, data_dir: Path | None, limit: int | None, size_px: int) -> Dataset:
    """Return a folder of class folders: shorter side resized to 8/7 of size_px, centre-cropped.

    split: a folder below data_dir such as "val", or "" for data_dir itself.
    """
    if data_dir is None:
        raise UserError("an image folder needs its path; give it as --data imagefolder:PATH")
    root = data_dir / split if split else data_dir
    name = f"imagefolder:{root.resolve().name}"
    return _class_folders(root, name, split, limit, _resize_crop(size_px))


def imagenet100(*, split: str, data_dir: Path | None, limit: int | None, size_px: int) -> Dataset:
    """Return the split train or val of a folder that holds both, each with a folder for every class.

    val: as an image folder.  train: the centre square, 8/7 of size_px wide, for the random crops of training.
    """
    if split not in ("train", "val"):
        raise UserError(f"imagenet100 has the splits train and val, not {split!r}")
    if data_dir is None:
        raise UserError(
            "imagenet100 needs its folder: give --data-dir PATH, with train/WNID and val/WNID in it"
        )
    prepare = _resize_crop(size_px) if split == "val" else _square(round(size_px * RESIZE_RATIO))
    return _class_folders(data_dir / split, "imagenet100", split, limit, prepare)


def _class_folders(
    root: Path, name: str, split: str, limit: int | None, prepare: tuple[str, Callable[[Image], Image]]
) -> Dataset:
    """Return the images below root, each of the class that its folder is named for."""
    source, files = folder_images(root)
    samples = [Sample(file, PurePosixPath(file).parts[0]) for file in files]
    classes = tuple(sorted({s.wnid for s in samples}))
    return decode(source, name, split, samples, classes, limit, prepare)


def folder_images(root: Path) -> tuple[FolderSource, list[str]]:
    """Return a folder of class folders and the paths of its images below it, sorted."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected one folder of images for each class in it")
    source = FolderSource(root)
    files = [n for n in source.names() if "/" in n and PurePosixPath(n).suffix.lower() in IMAGE_ENDINGS]
    if not files:
        raise UserError(f"{root}: expected one folder of images for each class in it, found no image")
    return source, files


def decoder(source: FolderSource, size_px: int | None) -> Callable[[str], NDArray[np.uint8]]:
    """Return what decodes an image by its path below the folder, u8 [3,H,W].

    size_px: shorter side resized to 8/7 of it, centre-cropped; None leaves images as they are.
    """
    _, transform = _resize_crop(size_px) if size_px else AS_STORED

    def decode_one(file: str) -> NDArray[np.uint8]:
        return np.asarray(transform(_open_image(source, file))).transpose(2, 0, 1)

    return decode_one


def cifar10(*, split: str, data_dir: Path, limit: int | None, **_: Any) -> Dataset:
    """Return a split of CIFAR-10 from its binary or its python batches (folder or .tar.gz)."""
    if split not in ("train", "test"):
        raise UserError(f"cifar10 has the splits train and test, not {split!r}")
    with closing(_open_source(data_dir)) as source:
        x, y = _cifar_split(source, split)
    order = class_mixed(y)[:limit]
    return Dataset("cifar10", split, x[order], y[order], CIFAR10_CLASSES, len(y))


def _cifar_split(source: Source, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    stems = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    by_stem = {PurePosixPath(n).stem: n for n in source.names() if PurePosixPath(n).suffix in ("", ".bin")}
    missing = [s for s in stems if s not in by_stem]
    if missing:
        raise UserError(f"{source.path}: the split {split} is missing (no file {missing[0]} or .bin)")
    images, labels = [], []
    for stem in stems:
        reader = _cifar_binary if by_stem[stem].endswith(".bin") else _cifar_pickle
        x, y = reader(source.read(by_stem[stem]), by_stem[stem])
        if not len(y) or y.shape != x.shape[:1] or not np.isin(y, np.arange(10)).all():
            raise UserError(
                f"{by_stem[stem]}: not a CIFAR-10 batch (expected a label from 0 to 9 for each image); "
                "use the official archive"
            )
        images.append(x)
        labels.append(y)
    return np.concatenate(images), np.concatenate(labels)


def _cifar_binary(content: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if len(content) % 3073:
        raise UserError(f"{name}: expected CIFAR-10 records of 3073 bytes, got {len(content)} bytes")
    rows = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def _cifar_pickle(content: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        rows = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        return rows, np.asarray(batch[b"labels"], np.int64)
    except (pickle.UnpicklingError, LookupError, ValueError, EOFError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: not a CIFAR-10 batch ({error}); use the official archive") from None


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts of numbers and numpy arrays, and refuses every other name a pickle may call."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # its name before numpy 2
        if (module, name) in {
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it calls {module}.{name}, which an image batch has no need of")


class FolderSource:
    """The files below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Return every file's path below the folder, sorted, with forward slashes."""
        found = []
        for folder, _, files in os.walk(self.path, followlinks=True):
            below = Path(folder).relative_to(self.path).as_posix()
            found += [f"{below}/{name}" if below != "." else name for name in files]
        return sorted(found)

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise UserError(
                f"{self.path / name}: cannot be read ({error.strerror}); mend or remove it"
            ) from None

    def stamp(self) -> str:
        """Return a hash of every file's name, size and time of change."""
        digest = hashlib.sha256()
        for name in self.names():
            status = (self.path / name).stat()
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Do nothing: no file stays open."""


# What zipfile and tarfile raise for a damaged, cut or encrypted archive.
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, RuntimeError)


class ArchiveSource:
    """The files inside a .zip or .tar(.gz), open until closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with ExitStack() as stack:
                if zipfile.is_zipfile(path):
                    archive = stack.enter_context(zipfile.ZipFile(path))
                    self._names = sorted(n for n in archive.namelist() if not n.endswith("/"))
                    self._open: Callable[[str], IO[bytes] | None] = archive.open
                else:
                    tar = stack.enter_context(tarfile.open(path))
                    self._names = sorted(m.name for m in tar.getmembers() if m.isfile())
                    self._open = tar.extractfile
                self.close = stack.pop_all().close
        except _BROKEN as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path}: not a readable zip or tar archive ({reason}); fetch it again") from None

    def names(self) -> list[str]:
        """Return every file's path inside the archive, sorted."""
        return self._names

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        try:
            stream = self._open(name)
            assert stream is not None
            with stream:
                return stream.read()
        except _BROKEN as error:
            raise UserError(
                f"{self.path}: {name} cannot be read ({error}); fetch the archive again"
            ) from None

    def stamp(self) -> str:
        """Return the archive's SHA-256."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


Source = FolderSource | ArchiveSource


def _open_source(path: Path) -> Source:
    if path.is_dir():
        return FolderSource(path)
    return ArchiveSource(path)


def class_mixed(labels: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the order that takes the first of every class, then the second: any prefix is balanced."""
    rank = np.empty(len(labels), np.int64)
    for k in np.unique(labels):
        rank[labels == k] = np.arange((labels == k).sum())
    return np.lexsort((labels, rank))


def decode(
    source: Source,
    name: str,
    split: str,
    samples: list[Sample],
    classes: tuple[str, ...],
    limit: int | None,
    prepare: tuple[str, Callable[[Image], Image]],
) -> Dataset:
    """Return the data set of samples in class-mixed order, decoded or from the cache.

    prepare: what is done to each image, as a tag for the cache's key and a function.
    """
    unknown = next((s for s in samples if s.wnid not in classes), None)
    if unknown:
        raise UserError(
            f"{source.path}: {unknown.path} is of class {unknown.wnid}, which has no train folder"
        )
    labels = np.array([classes.index(s.wnid) for s in samples], np.int64)
    order = class_mixed(labels)[:limit]
    tag, transform = prepare
    listing = "\n".join(samples[i].path for i in order)
    key = hashlib.sha256(f"{source.stamp()}\n{tag}\n{listing}".encode()).hexdigest()[:24]
    cached = cache_dir() / "decoded" / f"{name.partition(':')[0]}-{split or 'all'}-{key}.npy"
    if not cached.exists():
        _write_decoded(source, [samples[i].path for i in order], transform, cached)
    images = np.load(cached, mmap_mode="r")
    return Dataset(name, split or "all", images, labels[order], classes, len(samples))


def _write_decoded(source: Source, paths: list[str], transform: Callable[[Image], Image], out: Path) -> None:
    """Decode every image and write them as u8 [N,3,H,W], the file appearing only when it is whole."""
    from robustglimpse.progress import track

    images: np.memmap[Any, np.dtype[np.uint8]] | None = None
    partial = out.with_suffix(f".{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for i, path in enumerate(track(paths, f"decoding {len(paths)} images")):
            pixels = np.asarray(transform(_open_image(source, path))).transpose(2, 0, 1)
            if images is None:
                shape = (len(paths), *pixels.shape)
                images = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
            if pixels.shape != images.shape[1:]:
                raise UserError(
                    f"{source.path}: {path} is {pixels.shape[2]} x {pixels.shape[1]} px, "
                    f"the others {images.shape[3]} x {images.shape[2]}; use imagefolder:PATH --size N"
                )
            images[i] = pixels
        assert images is not None
        images.flush()
        os.replace(partial, out)
    except OSError as error:
        raise UserError(
            f"{out.parent}: cannot keep decoded images there ({error.strerror}); set ROBUSTGLIMPSE_CACHE"
        ) from None
    finally:
        with suppress(OSError):
            partial.unlink()


def _open_image(source: Source, path: str) -> Image:
    from PIL import Image as PillowImage

    content = source.read(path)
    try:
        return PillowImage.open(io.BytesIO(content)).convert("RGB")
    except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError):
        raise UserError(
            f"{source.path}: {path} is not an image that can be decoded; mend or remove it"
        ) from None


def _resize_crop(size_px: int) -> tuple[str, Callable[[Image], Image]]:
    return _square(size_px, resized_px=round(size_px * RESIZE_RATIO))


def _square(size_px: int, *, resized_px: int | None = None) -> tuple[str, Callable[[Image], Image]]:
    """Return what resizes an image's shorter side to resized_px, or size_px, and cuts its centre out."""
    from torchvision.transforms import functional as tv

    side = resized_px or size_px

    def prepare(image: Image) -> Image:
        cropped: Image = tv.center_crop(tv.resize(image, [side]), [size_px, size_px])
        return cropped

    return f"resize {side} crop {size_px}", prepare
