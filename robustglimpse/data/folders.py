"""Data sets in folders of images: Tiny ImageNet, image folders, ImageNet-100."""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from robustglimpse.data import Dataset
from robustglimpse.data.decode import Sample, decode
from robustglimpse.data.images import RESIZE_RATIO, Preparation, prepare
from robustglimpse.data.sources import FolderSource, Source, is_image, mode_of, open_source, printable
from robustglimpse.records import UserError

# Folders that hold classes and are none, the one to judge a model on first.
SPLITS = ("val", "valid", "validation", "test", "testing", "train", "training")
IMAGENET_VAL = "ILSVRC2012_val_"
VALPREP = "sort them into class folders with valprep.sh (of soumith/imagenetloader.torch)"
FEW = 8  # of what is listed in one line
IMAGENET100 = 100  # classes, of
IMAGENET = 1000
ANNOTATIONS = "val/val_annotations.txt"


def tiny_imagenet(
    *, split: str, data_dir: Path, limit: int | None, first: int | None = None, **_: Any
) -> Dataset:
    """Return a split of Tiny ImageNet: 64 x 64, the classes its train folder holds, sorted.

    data_dir: the official zip, or a folder in which it is unpacked; val may be sorted into class folders, and
    stand alone.  Its classes are then those of wnids.txt, or its own where there is none.
    first: only so many classes, the first of its wnids.txt; the set is then called tiny-imagenet-FIRST.
    """
    if split not in ("train", "val"):
        raise UserError(f"tiny-imagenet has labelled splits train and val, not {split!r}")
    with closing(open_source(data_dir)) as source:
        layout = _tiny_layout(source)
        samples = _tiny_val(source, layout) if split == "val" else layout.train
        if not samples:
            expected = ANNOTATIONS if split == "val" else "train/WNID/images"
            raise UserError(f"{printable(source.path)}: the split {split} is missing (no {expected})")
        classes, lack = _tiny_classes(source, layout, samples)
        name = "tiny-imagenet"
        if first is not None:
            name, chosen = f"tiny-imagenet-{first}", _first_classes(source, layout, first)
            classes = tuple(c for c in classes if c in chosen)
            samples = [sample for sample in samples if sample.wnid in chosen]
        _check_all_there(source, samples, classes, lack)
        return decode(source, name, split, samples, classes, limit, Preparation())


tiny_imagenet_20 = partial(tiny_imagenet, first=20)


@dataclass
class _TinyLayout:
    """Where the parts of a Tiny ImageNet lie. root: what stands before "train/" and "val/" in all paths.

    val: images in class folders.  unsorted: those of val/images.  has_listing: whether it says their classes.
    """

    root: str
    train: list[Sample] = field(default_factory=list)
    val: list[Sample] = field(default_factory=list)
    unsorted: list[str] = field(default_factory=list)
    has_listing: bool = False


def _tiny_layout(source: Source) -> _TinyLayout:
    """Return where the parts lie. Raises UserError where there is no Tiny ImageNet, or more than one."""
    found: dict[str, _TinyLayout] = {}
    names = source.names()
    for name in names:
        listing_root, dots, rest = name.rpartition(ANNOTATIONS)
        if dots and not rest and listing_root[-1:] in ("", "/"):
            found.setdefault(listing_root, _TinyLayout(listing_root)).has_listing = True
        elif placed := _place(name):
            root, split, wnid = placed
            layout = found.setdefault(root, _TinyLayout(root))
            (layout.train if split == "train" else layout.val).append(Sample(name, wnid))
    if not found:
        inside = source.path.name in ("train", "val") or ANNOTATIONS.partition("/")[2] in names
        cure = f"; give the folder above, {printable(source.path.absolute().parent)}" if inside else ""
        raise UserError(
            f"{printable(source.path)}: expected the Tiny ImageNet layout (train/<wnid>/images/*.JPEG), "
            f"found none{cure}"
        )
    if len(found) > 1:
        roots = " and ".join(printable(root) or "the folder itself" for root in sorted(found)[:FEW])
        raise UserError(
            f"{printable(source.path)}: {len(found)} folders hold a train or val of their own ({roots}); "
            "give one of them, unpacked, as --data-dir"
        )
    layout = next(iter(found.values()))
    layout.val.sort(key=lambda sample: _by_number(sample.path.rpartition("/")[2]))
    images = f"{layout.root}val/images/"
    layout.unsorted = [name for name in names if name.startswith(images) and is_image(name)]
    passed = _endings(n for n in names if n.startswith(layout.root) and not is_image(n) and n[-4:] != ".txt")
    if passed:
        source.notes += (f"{printable(source.path)}: passed over: {passed} (no images by their endings)",)
    return layout


def _place(name: str) -> tuple[str, str, str] | None:
    """Return the root, split and class of train/WNID/images/x.JPEG, val/WNID/x.png and the like."""
    folders = name.split("/")[:-1]
    if folders[-1:] == ["images"]:
        folders.pop()
        if folders[-1:] in (["train"], ["val"]):  # val/images, whose classes a listing says
            return None
    if not is_image(name) or len(folders) < 2 or folders[-2] not in ("train", "val"):
        return None
    return "".join(f"{folder}/" for folder in folders[:-2]), folders[-2], printable(folders[-1])


def _by_number(name: str) -> str:
    """Return what sorts val_2 before val_10, which is the order of the official listing."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(12), name)


def _tiny_classes(
    source: Source, layout: _TinyLayout, samples: Sequence[Sample]
) -> tuple[tuple[str, ...], str]:
    """Return the classes, sorted, and what to say of another one. samples: of the split that is read."""
    if layout.train:
        return tuple(sorted({sample.wnid for sample in layout.train})), "has no train folder"
    listed = _wnids(source, layout)
    return tuple(sorted(set(listed) or {s.wnid for s in samples})), "wnids.txt does not list"


def _wnids(source: Source, layout: _TinyLayout) -> list[str]:
    listing = f"{layout.root}wnids.txt"
    return _text(source, listing).split() if listing in source.names() else []


def _first_classes(source: Source, layout: _TinyLayout, count: int) -> list[str]:
    wnids = _wnids(source, layout)
    if len(wnids) < count:
        raise UserError(
            f"{printable(source.path)}: expected a wnids.txt of {count} classes or more, got {len(wnids)}"
        )
    return wnids[:count]


def _text(source: Source, name: str) -> str:
    try:
        return source.read(name).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{printable(source.path)}: {printable(name)} is no text ({error.reason}); fetch it again"
        ) from None


def _tiny_val(source: Source, layout: _TinyLayout) -> list[Sample]:
    """Return the images of val: those that its listing names, or those in class folders."""
    if not layout.has_listing or (layout.val and not layout.unsorted):
        return layout.val
    where = f"{printable(source.path)}: {printable(layout.root)}{ANNOTATIONS}"
    classes: dict[str, str] = {}
    for i, line in enumerate(_text(source, f"{layout.root}{ANNOTATIONS}").splitlines(), start=1):
        if not line.strip():
            continue
        file, _, rest = line.partition("\t")
        if file in classes or not rest.strip():
            fault = f"names {file!r} twice" if file in classes else f"has no class in line {i}"
            raise UserError(f"{where} {fault}; fetch it again")
        classes[file] = rest.split("\t")[0].strip()
    samples = [Sample(f"{layout.root}val/images/{file}", wnid) for file, wnid in classes.items()]
    for what, count in (
        ("images of val/images that it does not name", len(set(layout.unsorted) - {s.path for s in samples})),
        ("images in class folders of val", len(layout.val)),
    ):
        if count:
            source.notes += (f"{where} decides which images are read; {what} are left out: {count}",)
    return samples


def _check_all_there(source: Source, samples: Sequence[Sample], classes: Sequence[str], lack: str) -> None:
    """Raise UserError for an image that is of no class, or listed and no file below the source."""
    known, there = set(classes), set(source.names())
    wrong = next((s for s in samples if s.wnid not in known or s.path not in there), None)
    if wrong is None:
        return
    where = f"{printable(source.path)}: {printable(wrong.path)}"
    if wrong.wnid not in known:
        raise UserError(f"{where} is of class {printable(wrong.wnid)}, which {lack}")
    raise UserError(f"{where} is listed in val_annotations.txt and missing; complete the set")


def image_folder(*, split: str, data_dir: Path | None, limit: int | None, size_px: int | None) -> Dataset:
    """Return a folder of class folders, its images prepared as `images.prepare` says.

    split: a folder below data_dir such as "val", or "" for data_dir itself.
    """
    if data_dir is None:
        raise UserError("an image folder needs its path; give it as --data imagefolder:PATH")
    below = PurePosixPath(split)
    if below.is_absolute() or ".." in below.parts:
        raise UserError(
            f"--split names a folder below {printable(data_dir)}, got {split!r}; give its own path"
        )
    root = data_dir / split
    source, files = folder_images(root)
    name = f"imagefolder:{printable(root.resolve().name)}"
    return _class_folders(source, files, name, split, limit, prepare(size_px))


def imagenet100(*, split: str, data_dir: Path | None, limit: int | None, size_px: int | None) -> Dataset:
    """Return the split train or val of a folder that holds both, each with a folder for every class.

    Of the whole ImageNet, the first hundred classes by WNID are taken, which is what the paper's set is.
    val: as an image folder.  train: the centre square, 8/7 of size_px wide, for the random crops of training.
    """
    if split not in ("train", "val"):
        raise UserError(f"imagenet100 has the splits train and val, not {split!r}")
    if data_dir is None:
        raise UserError(
            "imagenet100 needs its folder: give --data-dir PATH, with train/WNID and val/WNID in it"
        )
    asked = prepare(size_px)
    if split == "train" and size_px:
        side_px = round(size_px * RESIZE_RATIO)
        asked = Preparation(side_px, side_px)
    source, files = folder_images(data_dir / split)
    return _class_folders(source, _first_hundred(source, files), "imagenet100", split, limit, asked)


def _first_hundred(source: FolderSource, files: Sequence[str]) -> Sequence[str]:
    """Return the files of ImageNet100: all that are there, or of the whole ImageNet its first classes'."""
    samples = class_samples(files)
    wnids = sorted({sample.wnid for sample in samples})
    if len(wnids) <= IMAGENET100:
        return files
    root = printable(source.path)
    if len(wnids) != IMAGENET:
        raise UserError(
            f"{root}: expected the {IMAGENET100} class folders of ImageNet100 or the {IMAGENET} of ImageNet, "
            f"got {len(wnids)}; leave the others out, or read it as imagefolder:{root}"
        )
    chosen = set(wnids[:IMAGENET100])
    source.notes += (
        f"{root}: the first {IMAGENET100} of its {IMAGENET} classes are taken as ImageNet100, {wnids[0]} to "
        f"{wnids[IMAGENET100 - 1]}",
    )
    return [sample.path for sample in samples if sample.wnid in chosen]


def _class_folders(
    source: FolderSource, files: Sequence[str], name: str, split: str, limit: int | None, asked: Preparation
) -> Dataset:
    """Return the images of a folder, each of the class that its folder is named for."""
    samples = class_samples(files)
    classes = tuple(sorted({s.wnid for s in samples}))
    if len(classes) == 1 and all(file.count("/") > 1 for file in files):
        source.notes += (
            f"{printable(source.path)}: its one class is {classes[0]}; the folders in that are no classes",
        )
    return decode(source, name, printable(split), samples, classes, limit, asked)


def class_samples(files: Sequence[str]) -> list[Sample]:
    """Return the images of `folder_images`, each with the name of its class folder, made printable."""
    return [Sample(file, printable(file.partition("/")[0])) for file in files]


def folder_images(root: Path) -> tuple[FolderSource, list[str]]:
    """Return a folder of class folders and the paths of its images below it, sorted.

    The source's notes say what else lies there.  Raises UserError where there is no image in a class folder,
    where the folders are splits, or two have one name once it is printable.
    """
    if not stat.S_ISDIR(mode_of(root)):
        what = "not a folder (unpack an archive)" if mode_of(root) else "no such folder"
        raise UserError(f"{printable(root)}: {what}; expected one folder of images for each class in it")
    source = FolderSource(root)
    names = source.names()
    files = [name for name in names if "/" in name and is_image(name)]
    loose = [name for name in names if "/" not in name and is_image(name)]
    passed = _endings(name for name in names if "/" in name and not is_image(name))
    if not files:
        found = "found no image"
        if loose:
            found = f"found {len(loose)} images in no class folder"
        elif passed:
            found = f"found no image that is read, but {passed}"
        cure = f"; {VALPREP}" if any(name.startswith(IMAGENET_VAL) for name in loose) else ""
        raise UserError(
            f"{printable(root)}: expected one folder of images for each class in it, {found}{cure}"
        )
    _check_are_classes(root, files)
    source.notes += tuple(_layout_notes(source, files, loose, passed))
    return source, files


def _check_are_classes(root: Path, files: Sequence[str]) -> None:
    """Raise UserError where the folders with images are splits, or two would have one name."""
    below: dict[str, set[str]] = {}
    for file in files:
        folder, _, rest = file.partition("/")
        below.setdefault(folder, set()).add(rest.partition("/")[0] if "/" in rest else "")
    splits = sorted((f for f in below if f.lower() in SPLITS), key=lambda f: SPLITS.index(f.lower()))
    unsorted = next(
        (f for f in splits if any(file.startswith(f"{f}/{IMAGENET_VAL}") for file in files)), None
    )
    if unsorted and len(splits) == len(below):
        raise UserError(f"{printable(root / unsorted)} holds images in no class folder; {VALPREP}")
    nested = [below[folder] - {""} for folder in splits]
    are_all = len(splits) == len(below) and any(nested)
    if are_all or sum(map(len, nested)) > len(set().union(*nested)):  # two splits have a class in common
        raise UserError(
            f"{printable(root)} holds {' and '.join(splits)}, which are splits, not classes; give one of "
            f"them: --data imagefolder:{printable(root / splits[0])}"
        )
    printed = Counter(printable(folder) for folder in below)
    twice = next((name for name, count in printed.items() if count > 1), None)
    if twice:
        raise UserError(f"{printable(root)}: two folders would be called {twice}; rename one")


def _layout_notes(
    source: FolderSource, files: Sequence[str], loose: Sequence[str], passed: str
) -> Iterator[str]:
    """Yield a line for each kind of thing in a folder of class folders that is left out."""
    where = printable(source.path)
    if passed:
        yield f"{where}: passed over: {passed} (no images by their endings)"
    if loose:
        lie = "1 image lies" if len(loose) == 1 else f"{len(loose)} images lie"
        yield f"{where}: {lie} in the folder itself, in no class folder, and {_are(loose)} left out"
    used = {file.partition("/")[0] for file in files} | set(source.walk.again)
    empty = sorted(printable(folder) for folder in source.walk.folders if folder not in used)
    if empty:
        more = ", ..." if len(empty) > FEW else ""
        hold = "1 folder holds" if len(empty) == 1 else f"{len(empty)} folders hold"
        yield f"{where}: {hold} no image and {_are(empty)} no class: {', '.join(empty[:FEW])}{more}"


def _are(things: Sequence[str]) -> str:
    return "is" if len(things) == 1 else "are"


def _endings(names: Iterable[str]) -> str:
    """Return how many files have which ending: "3 .txt, 1 .gif"."""
    counts = Counter(printable(PurePosixPath(name).suffix.lower()) or "without ending" for name in names)
    listed = [f"{count} {ending}" for ending, count in counts.most_common(FEW)]
    return ", ".join(listed) + (", ..." if len(counts) > FEW else "")
