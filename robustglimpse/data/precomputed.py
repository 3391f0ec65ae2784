"""Corrupted sets that others have saved: folders in ImageNet-C's layout, arrays in CIFAR-10-C's."""

from __future__ import annotations

import difflib
import math
import re
import stat
import tokenize
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustglimpse import arguments
from robustglimpse.data import Dataset
from robustglimpse.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from robustglimpse.data.decode import Sample, class_mixed, decode
from robustglimpse.data.folders import class_samples, folder_images
from robustglimpse.data.images import prepare
from robustglimpse.data.sources import mode_of, open_at_once, printable
from robustglimpse.records import UserError

# Some copies keep the published archives' folders, some hold the corruptions side by side.
ARCHIVES = ("", "noise", "blur", "weather", "digital", "extra")
# The sets that are arrays, and their classes by label; the others are folders of images.
ARRAYS = {"cifar10-c": CIFAR10_CLASSES, "cifar100-c": CIFAR100_CLASSES}
NAME = re.compile(r"\w[\w .+-]*")  # what a corruption may be called, in calls and tables too
LABELS = "labels.npy"
AS_SAVED = "as saved"  # the store of rows about such a set
TAKEN = {"model", "glimpses", "gmacs", "clean", "average"}  # columns that Table 2 has beside the corruptions
SEVERITIES = ("1", "2", "3", "4", "5")
FEW = 20  # names that are listed in one line

Cell = tuple[str, int]  # a corruption and its severity


def is_own_name(corruption: object, store: object) -> bool:
    """Return whether a row of results may tell of a corruption that is none of ours: of a saved set's own."""
    return isinstance(corruption, str) and store == AS_SAVED and bool(NAME.fullmatch(corruption))


def find_cell(name: str, data_dir: Path | None, corruption: str, severity: int) -> Path:
    """Return the folder (or array) of one cell. Raises UserError where it is missing, or there twice."""
    root = _root(name, data_dir)
    if corruption in TAKEN:
        raise UserError(
            f"{printable(root)}: no corruption can be called {corruption!r} in a table; rename it"
        )
    below = f"{corruption}.npy" if name in ARRAYS else f"{corruption}/{severity}"
    is_there = stat.S_ISREG if name in ARRAYS else stat.S_ISDIR
    found = []
    if NAME.fullmatch(corruption):
        found = [root / archive / below for archive in ARCHIVES]
        found = [path for path in found if is_there(mode_of(path))]
    if len({path.resolve() for path in found}) > 1:
        raise UserError(f"{printable(found[0])} and {printable(found[1])} are both there; remove one of them")
    if not found:
        raise UserError(
            f"{printable(root)}: {printable(below)} is missing (looked there and under "
            f"{', '.join(ARCHIVES[1:])}){_near(name, root, corruption)}; leave that cell out with "
            "--corruption and --severity, or complete the set"
        )
    return found[0]


def _root(name: str, data_dir: Path | None) -> Path:
    if data_dir is None:
        raise UserError(f"{name} needs its files: give the folder that holds them as --data-dir")
    root = arguments.path(data_dir, "data_dir")
    if not stat.S_ISDIR(mode_of(root)):
        what = "not a folder (unpack an archive)" if mode_of(root) else "no such folder"
        raise UserError(f"{printable(root)}: {what}; give the one that holds {name} as --data-dir")
    return root


def _near(name: str, root: Path, corruption: str) -> str:
    """Return what the set holds where it has no corruption of that name: "; did you mean 'fog'? ...".

    It may lie a folder below, or number its severities otherwise.
    """
    there = corruptions_of(name, root)
    if corruption in there:
        return ""
    if not there:
        below = [
            path for path in _entries(root) if stat.S_ISDIR(mode_of(path)) and corruptions_of(name, path)
        ]
        return f"; did you mean --data-dir {printable(below[0])}?" if len(below) == 1 else ""
    near = difflib.get_close_matches(corruption, there, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"; {hint}it holds {_listed(there)}"


def _listed(found: Sequence[str]) -> str:
    return ", ".join(found[:FEW]) + (", ..." if len(found) > FEW else "")


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{printable(folder)}: cannot be read ({error.strerror}); mend that") from None


def corruptions_of(name: str, root: Path) -> tuple[str, ...]:
    """Return the corruptions that a saved set holds, sorted, whatever they are called."""
    found = set()
    for folder in (root / archive for archive in ARCHIVES):
        if not stat.S_ISDIR(mode_of(folder)):
            continue
        for path in _entries(folder):
            if name in ARRAYS:
                if path.suffix == ".npy" and path.name != LABELS and stat.S_ISREG(mode_of(path)):
                    found.add(path.stem)
            elif any(stat.S_ISDIR(mode_of(path / severity)) for severity in SEVERITIES):
                found.add(path.name)
    return tuple(sorted(each for each in found - TAKEN if NAME.fullmatch(each)))


def held_corruptions(name: str, data_dir: Path | None) -> tuple[str, ...]:
    """Return the corruptions that a saved set holds, sorted. Raises UserError where there is none."""
    root = _root(name, data_dir)
    found = corruptions_of(name, root)
    if not found:
        layout = f"CORRUPTION.npy and {LABELS}" if name in ARRAYS else "CORRUPTION/SEVERITY/CLASS/"
        raise UserError(
            f"{printable(root)}: expected {layout}, found no corruption{_near(name, root, '')}; give the "
            f"folder that holds {name} as --data-dir"
        )
    return found


# One cell


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
    size_px: as `images.prepare` takes it, for folders: prepared as clean images are.
    Raises UserError where the cell is missing, broken, or has no known class.
    """
    path = find_cell(name, data_dir, corruption, severity)
    split = f"{corruption}/{severity}"
    if name in ARRAYS:
        return _array_cell(name, path, split, severity, limit), ()
    source, files = folder_images(path)
    samples = class_samples(files)
    classes = tuple(sorted({s.wnid for s in samples}))
    kept = tuple(c for c in classes if known is None or c in known)
    if not kept:
        raise UserError(
            f"{printable(path)}: the model knows none of its {len(classes)} classes (the first is "
            f"{classes[0]!r}); class folders must be named as the model's classes are, by wnid"
        )
    samples = _of_known(samples, known)
    dataset = decode(source, name, split, samples, kept, limit, prepare(size_px))
    return dataset, tuple(c for c in classes if c not in set(kept))


def _of_known(samples: Sequence[Sample], known: Collection[str] | None) -> list[Sample]:
    chosen = None if known is None else set(known)
    return [sample for sample in samples if chosen is None or sample.wnid in chosen]


def by_split(
    name: str, *, split: str, data_dir: Path | None, limit: int | None, size_px: int | None = None
) -> Dataset:
    """Return the cell named by a split such as "fog/3"."""
    corruption, _, severity = split.partition("/")
    if severity not in SEVERITIES:
        raise UserError(
            f"{name} is one set per corruption and severity: name it with --split fog/3, "
            "or run them all with `robustglimpse corruptions`"
        )
    found, _ = load_cell(
        name, corruption=corruption, severity=int(severity), data_dir=data_dir, limit=limit, size_px=size_px
    )
    return found


# Cells whose accuracies are averaged


def check_alike(
    name: str, data_dir: Path | None, cells: Sequence[Cell], knowns: Iterable[Collection[str] | None]
) -> None:
    """Raise UserError unless all cells hold the same images, under whatever corruption, for every model.

    knowns: the class names of each model, as load_cell takes them.  An image is known by its class and its
    name without ending.  Arrays share their labels, so each is checked when it is read.
    """
    if name in ARRAYS:
        return
    restrictions = list(dict.fromkeys(None if known is None else frozenset(known) for known in knowns))
    first: dict[frozenset[str] | None, tuple[Cell, list[Sample]]] = {}
    for cell in cells:
        _, files = folder_images(find_cell(name, data_dir, *cell))
        samples = class_samples(files)
        for known in restrictions:
            chosen = _of_known(samples, known)
            earlier, expected = first.setdefault(known, (cell, chosen))
            if not _are_alike(expected, chosen):
                raise UserError(_unlike(name, {earlier: expected, cell: chosen}))


def _are_alike(ours: Sequence[Sample], theirs: Sequence[Sample]) -> bool:
    # Comparing paths is cheap, and usually enough: photographs take a second for 50 000 images.
    if len(ours) != len(theirs):
        return False
    if all(a.path.rpartition(".")[0] == b.path.rpartition(".")[0] for a, b in zip(ours, theirs, strict=True)):
        return True
    return Counter(s.photograph for s in ours) == Counter(s.photograph for s in theirs)


def _unlike(name: str, two: Mapping[Cell, Sequence[Sample]]) -> str:
    """Return which of two cells lacks which image of the other."""
    fewer, more = sorted(two, key=lambda cell: len(two[cell]))
    lacks = Counter(s.photograph for s in two[more]) - Counter(s.photograph for s in two[fewer])
    where = f"{fewer[0]}/{fewer[1]}"
    return (
        f"{name}: {where} has {len(two[fewer])} images where {more[0]}/{more[1]} has {len(two[more])}, for "
        f"example {min(lacks)} is missing; cells of one mean must hold the same images: complete {where}, or "
        "leave it out with --corruption and --severity"
    )


# Arrays


def _array_cell(name: str, path: Path, split: str, severity: int, limit: int | None) -> Dataset:
    """Return a fifth of an array u8 [5N,32,32,3]: severities lie one after the other."""
    classes = ARRAYS[name]
    images = _read_array(path, f"{printable(path)}:")
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[1:] != (32, 32, 3) or shape[0] % 5:
        raise UserError(
            f"{printable(path)}: expected u8 [5N,32,32,3], got {images.dtype} {list(shape)}; five severities "
            "of N images lie one after the other"
        )
    count = shape[0] // 5
    labels = _read_labels(path, count, len(classes))
    notes: tuple[str, ...] = ()
    if name == "cifar100-c" and labels.max() < len(CIFAR10_CLASSES):
        notes = (f"{printable(path)}: no label is above {labels.max()}; is this CIFAR-10-C (cifar10-c)?",)
    order = class_mixed(labels)[:limit]
    fifth = images[(severity - 1) * count : severity * count]
    pixels = np.ascontiguousarray(fifth[order].transpose(0, 3, 1, 2))
    return Dataset(name, split, pixels, labels[order], classes, count, notes=notes)


def _read_labels(path: Path, count: int, classes: int) -> NDArray[np.int64]:
    """Return the labels i64 [count] of each severity of the images at path."""
    file = path.with_name(LABELS)
    if not stat.S_ISREG(mode_of(file)):
        raise UserError(f"{printable(path)}: {LABELS} is missing beside it; complete the set")
    where = f"{printable(path)}: its {LABELS}"
    labels = _read_array(file, where)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        one_hot = "; of one-hot rows argmax(1) gives that" if labels.ndim == 2 else ""
        raise UserError(
            f"{where} must be whole numbers [{count}], one for each image, got {labels.dtype} "
            f"{list(labels.shape)}{one_hot}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"{where} must hold a label from 0 to {classes - 1} for each of {count} images, got {low} to "
            f"{high}"
        )
    if len(labels) not in (count, 5 * count):
        found, rest = divmod(5 * count, len(labels))
        what = f" ({found} severities?)" if not rest else ""
        raise UserError(
            f"{where} has {len(labels)} labels for {5 * count} images{what}, which are read as five "
            f"severities of {count}: expected {count} labels, or {5 * count}; complete the set"
        )
    if len(labels) == 5 * count and not (labels.reshape(5, count) == labels[:count]).all():
        raise UserError(
            f"{where} differs between the five severities, which are the same images {count} by {count} "
            f"(u8 [5N,32,32,3]); are these {5 * count} images of a single severity?"
        )
    return labels[:count].astype(np.int64)


# What a damaged header makes numpy raise, which spells it as Python.
_BROKEN = (
    OSError, ValueError, EOFError, TypeError, LookupError, AttributeError, OverflowError, MemoryError,
    RecursionError, SyntaxError, tokenize.TokenError,
)  # fmt: skip


def _read_array(path: Path, where: str) -> NDArray[Any]:
    """Return the array of a .npy file, mapped. Raises UserError unless it holds what its header promises.

    where: how the message begins.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote, and of overflows
            _check_header(path)
            found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except _BROKEN as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{where} cannot be read ({printable(reason)}); fetch it again") from None
    return found


def _check_header(path: Path) -> None:
    """Raise ValueError where a file does not hold the array of numbers that its header promises."""
    with open_at_once(path) as stream:
        if stream.read(2) == b"PK":
            raise ValueError("an .npz of several arrays under the name of one; save each with np.save")
        stream.seek(0)
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"version {version} of the format")
        shape, _, dtype = _HEADERS[version](stream)
        start = stream.tell()
        held = stream.seek(0, 2) - start
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not unpickled")
    promised = math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 0 or promised != held:
        raise ValueError(f"its header promises {promised} bytes of {dtype} {list(shape)}, and {held} follow")
    if not promised:
        raise ValueError(f"it is empty, {list(shape)}")


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
