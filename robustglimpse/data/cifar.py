"""CIFAR-10 and CIFAR-100 in their python and binary batches.

A python batch is a pickle.  It is read without obeying it: what stands for numpy's arrays and dtypes here
accepts u1 and i8 and holds raw bytes, because numpy's own rebuild whatever a pickle asks for.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustglimpse.data import Dataset
from robustglimpse.data.decode import class_mixed
from robustglimpse.data.sources import ArchiveSource, FolderSource, Source, open_source, printable
from robustglimpse.pickles import Inert, MalformedError, RunsCodeError, read_pickle
from robustglimpse.records import UserError

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# The fine labels, as the official meta file spells and orders them.
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur",
    "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo",
    "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree",
    "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree",
    "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit",
    "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe",
    "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip
PIXELS = 3 * 32 * 32
MOST_BYTES = 256 << 20  # the largest official batch has 155 MB
MOST_READS = 2_000_000  # parts that a batch's pickle may have; the official ones have up to 500 000


@dataclass(frozen=True)
class Cifar:
    """How one of the two sets is stored.

    splits: the names of each split's batches, without ".bin".  key: of the labels in a python batch.
    label_bytes: what stands before the pixels of a binary record; the label is the last of it.
    meta: the file beside python batches that names the classes, and its key.  meta_text: the binary ones'.
    archives: the published files.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[str, ...]]
    key: str
    label_bytes: int
    meta: tuple[str, str]
    meta_text: str
    archives: tuple[str, ...]


TEN = Cifar(
    "cifar10", "CIFAR-10", CIFAR10_CLASSES,
    {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "labels", 1, ("batches.meta", "label_names"), "batches.meta.txt",
    ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
)  # fmt: skip
HUNDRED = Cifar(
    "cifar100", "CIFAR-100", CIFAR100_CLASSES, {"train": ("train",), "test": ("test",)},
    "fine_labels", 2, ("meta", "fine_label_names"), "fine_label_names.txt",
    ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
)  # fmt: skip


def cifar10(*, split: str, data_dir: Path | None, limit: int | None, **_: Any) -> Dataset:
    """Return a split of CIFAR-10 from its binary or its python batches (folder or .tar.gz)."""
    return _load(TEN, split, data_dir, limit)


def cifar100(*, split: str, data_dir: Path | None, limit: int | None, **_: Any) -> Dataset:
    """Return a split of CIFAR-100 with its 100 fine labels, from binary or python batches (or .tar.gz)."""
    return _load(HUNDRED, split, data_dir, limit)


def _load(kind: Cifar, split: str, data_dir: Path | None, limit: int | None) -> Dataset:
    if split not in kind.splits:
        raise UserError(f"{kind.name} has the splits train and test, not {split!r}")
    if data_dir is None:
        raise UserError(f"{kind.name} needs its files: give --data-dir PATH (archive or folder)")
    with closing(_opened(kind, data_dir)) as source:
        files = _batches(kind, source, split)
        batches = [_batch(kind, source.read(file), _where(source, file)) for file in files]
        for folder in sorted({PurePosixPath(file).parent for file in files}):
            _check_meta(kind, source, folder)
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    order = class_mixed(labels)[:limit]
    return Dataset(
        kind.name, split, images[order], labels[order], kind.classes, len(labels), notes=source.notes
    )


def _where(source: Source, file: str) -> str:
    """Return how a message names a file."""
    return f"{printable(source.path)}: {printable(file)}"


# Which files


def _opened(kind: Cifar, path: Path) -> Source:
    """Return the files of a path: those of the published archive where a folder holds that and no batch."""
    source = open_source(path)
    if isinstance(source, FolderSource) and not _found(source, *kind.splits["train"], *kind.splits["test"]):
        kept = [name for name in source.names() if PurePosixPath(name).name in kind.archives]
        if len(kept) == 1:
            return ArchiveSource(path / kept[0])
    return source


def _found(source: Source, *stems: str) -> dict[str, list[str]]:
    """Return the files that are called one of the stems, with or without .bin, by stem."""
    found: dict[str, list[str]] = {}
    for name in source.names():
        path = PurePosixPath(name)
        if path.suffix in ("", ".bin") and path.stem in stems:
            found.setdefault(path.stem, []).append(name)
    return found


def _batches(kind: Cifar, source: Source, split: str) -> list[str]:
    """Return the files of a split in their order. Raises UserError unless there is one for each."""
    where, stems = printable(source.path), kind.splits[split]
    found = _found(source, *stems)
    missing = [stem for stem in stems if stem not in found]
    if missing:
        other = HUNDRED if kind is TEN else TEN
        archives = [name for name in source.names() if PurePosixPath(name).name in kind.archives]
        cure = ""
        if archives:
            cure = f"; give one of its archives as --data-dir: {printable(', '.join(archives))}"
        elif _found(source, *other.splits["test"]):
            cure = f"; it holds {other.title}: --data {other.name}"
        raise UserError(f"{where}: the split {split} is missing (no file {missing[0]} or .bin){cure}")
    twice = next((names for names in found.values() if len(names) > 1), None)
    if twice:
        raise UserError(
            f"{where}: both {printable(twice[0])} and {printable(twice[1])} are there, and one is expected; "
            "give a folder that holds one form of the set as --data-dir"
        )
    return [found[stem][0] for stem in stems]


def _check_meta(kind: Cifar, source: Source, folder: PurePosixPath) -> None:
    """Raise UserError where a file beside the batches names other classes, or in another order."""
    for file in (kind.meta[0], kind.meta_text):
        name = str(folder / file)
        if name not in source.names():
            continue
        where = _where(source, name)
        if file == kind.meta_text:
            listed = source.read(name).decode("latin-1").split()
        else:
            names = _unpickled(kind, source.read(name), where).get(kind.meta[1])
            if not isinstance(names, list):
                raise _no_batch(kind, where, f"no list {kind.meta[1]}")
            listed = [_text(each) for each in names]
        expected = kind.classes[: len(listed)]
        for ours, theirs in zip(expected, listed, strict=False):
            if ours != theirs:
                raise UserError(
                    f"{where} names a class {printable(theirs)!r} where {kind.title} has "
                    f"{ours!r}; use the official archive"
                )
        if len(listed) > len(kind.classes):
            raise UserError(f"{where} names {len(listed)} classes, {kind.title} has {len(kind.classes)}")


# What is in them


def _batch(kind: Cifar, content: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return a batch's images u8 [N,3,32,32] and labels i64 [N]. Raises UserError for anything else."""
    if len(content) > MOST_BYTES:
        raise _no_batch(kind, where, f"{len(content) / 1e6:.0f} MB, at most {MOST_BYTES / 1e6:.0f} are read")
    reader = _binary if where.endswith(".bin") else _pickled
    images, labels = reader(kind, content, where)
    highest = len(kind.classes) - 1
    if not len(labels) or len(labels) != len(images) or labels.min() < 0 or labels.max() > highest:
        raise _no_batch(kind, where, f"expected a label from 0 to {highest} for each image")
    return images, labels


def _no_batch(kind: Cifar, where: str, reason: str) -> UserError:
    return UserError(f"{where}: not a {kind.title} batch ({reason}); use the official archive")


def _binary(kind: Cifar, content: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    width = kind.label_bytes + PIXELS
    if len(content) % width:
        raise UserError(f"{where}: expected {kind.title} records of {width} bytes, got {len(content)} bytes")
    rows = np.frombuffer(content, np.uint8).reshape(-1, width)
    labels = rows[:, kind.label_bytes - 1].astype(np.int64)
    return rows[:, kind.label_bytes :].reshape(-1, 3, 32, 32), labels


def _pickled(kind: Cifar, content: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = _unpickled(kind, content, where)
    lacking = next((key for key in ("data", kind.key) if key not in batch), None)
    if lacking:
        raise _no_batch(kind, where, f"no {lacking} in it")
    try:
        return _images(batch["data"]), _labels(batch[kind.key])
    except (MalformedError, ValueError, TypeError, OverflowError) as error:
        raise _no_batch(kind, where, printable(str(error))) from None


def _images(value: Any) -> NDArray[np.uint8]:
    pixels = _array(value)
    if pixels.dtype != np.uint8 or pixels.shape[1:] not in ((PIXELS,), (3, 32, 32)):
        raise MalformedError(
            f"data is {pixels.dtype.name} {list(pixels.shape)}, expected uint8 [N,{PIXELS}], red plane first"
        )
    return pixels.reshape(-1, 3, 32, 32)


def _labels(value: Any) -> NDArray[np.int64]:
    if isinstance(value, list):
        numbers = [_array(each)[()] if isinstance(each, Inert) else each for each in value]
        if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in numbers):
            raise MalformedError("labels that are no whole numbers")
        return np.array(numbers, np.int64)
    labels = _array(value)
    if labels.ndim != 1:
        raise MalformedError(f"labels {list(labels.shape)}, expected [N]")
    return labels.astype(np.int64)


# Pickles


def _unpickled(kind: Cifar, content: bytes, where: str) -> dict[str, Any]:
    """Return the dict that a pickle spells, its arrays as what stands for them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in text, from Python's own reader
            batch, names = read_pickle(_Counted(content), builders=_BUILDERS, persistent=_persistent)
    except RunsCodeError as error:
        raise _no_batch(kind, where, _needless(str(error))) from None
    except MalformedError as error:
        raise _no_batch(kind, where, printable(str(error)[:200])) from None
    strange = sorted(names - _KNOWN)
    if strange:
        raise _no_batch(kind, where, _needless(strange[0]))
    if not isinstance(batch, dict):
        raise _no_batch(kind, where, f"{_kind(batch)} where a dict is expected")
    return {_text(key): value for key, value in batch.items()}


def _needless(name: str) -> str:
    return f"it calls {printable(name[:100])}, which an image batch has no need of"


def _kind(value: Any) -> str:
    return value.name[:100] if isinstance(value, Inert) else type(value).__name__


def _text(value: Any) -> str:
    """Return a key or name as text: Python 2 and 3 saved it as bytes or text."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class _Counted(io.BytesIO):
    """Bytes that can be read in so many parts: a pickle of 200 MB may spell 200 million lists."""

    left = MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._count()
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        self._count()
        return super().readline(size)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise MalformedError("it has too many parts")


def _persistent(_: Any) -> Any:
    raise MalformedError("it refers to something outside")


ARRAY, DTYPE = "numpy.ndarray", "numpy.dtype"
# What a dtype's state may be, by its code: version, byte order, and nothing of fields or objects.
STATES = {
    "u1": (3, "|", None, None, None, -1, -1, 0),
    "i8": (3, "<", None, None, None, -1, -1, 0),
}  # fmt: skip


def _rebuilt(subtype: Any, _shape: Any, _code: Any) -> Inert:
    """Stand for numpy's _reconstruct; BUILD then gives the array its state."""
    if not isinstance(subtype, Inert) or subtype.name != ARRAY:
        raise MalformedError("an array of another class than numpy's")
    return Inert(ARRAY)


def _dtype(code: Any, *_: Any) -> Inert:
    return Inert(DTYPE, {"code": _text(code)})


def _scalar(dtype: Any, content: Any) -> Inert:
    return Inert(ARRAY, state=(1, (), dtype, False, content))


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any) -> Inert:
    """Stand for what protocol 5 rebuilds arrays with."""
    return Inert(ARRAY, state=(1, shape, dtype, order == "F", content))


def _encode(text: Any, encoding: Any) -> bytes:
    """Stand for _codecs.encode, which is how Python 3 spells bytes in protocol 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise MalformedError("bytes in another encoding than latin1")
    return text.encode("latin-1")


_BUILDERS = {
    DTYPE: _dtype,
    "_codecs.encode": _encode,
    "builtins.bytes": lambda: b"",
    **{
        f"numpy.{core}.{function}": build
        for core in ("core", "_core")  # before numpy 2, and since
        for function, build in (
            ("multiarray._reconstruct", _rebuilt),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _frombuffer),
        )
    },
}
_KNOWN = {ARRAY, *_BUILDERS}


def _array(value: Any) -> NDArray[Any]:
    """Return the array u8 or i64 that an Inert stands for. Raises MalformedError for any other."""
    if not isinstance(value, Inert) or value.name != ARRAY:
        raise MalformedError(f"{_kind(value)} where an array is expected")
    if not isinstance(value.state, tuple) or len(value.state) != 5:
        raise MalformedError("an array without content")
    _version, shape, dtype, is_fortran, content = value.state
    code = _code(dtype)
    raw = content.encode("latin-1") if isinstance(content, str) else content
    if not isinstance(raw, bytes | bytearray):
        raise MalformedError("an array whose content is no bytes")
    if not isinstance(shape, Sequence) or not all(type(n) is int and n >= 0 for n in shape):
        raise MalformedError("an array whose shape is no whole numbers")
    if math.prod(shape) * np.dtype(code).itemsize != len(raw):
        raise MalformedError(f"an array {list(shape)} of {code} in {len(raw)} bytes")
    return np.frombuffer(raw, f"<{code}").reshape(shape, order="F" if is_fortran else "C")


def _code(dtype: Any) -> str:
    if not isinstance(dtype, Inert) or dtype.name != DTYPE:
        raise MalformedError("an array without a dtype")
    code = str(dtype.items.get("code"))
    if code not in STATES or dtype.state != STATES[code]:
        raise MalformedError(f"an array of {code[:20]!r}, expected u1 or i8")
    return code
