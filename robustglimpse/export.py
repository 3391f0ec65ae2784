"""Writes a corrupted copy of an image folder, in the layout of ImageNet-C."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustglimpse import __version__, arguments
from robustglimpse.corruptions import SEVERITIES, check_choices, names, takes_textures
from robustglimpse.corruptions.weather import frost_source
from robustglimpse.data.decode import class_mixed, decoder
from robustglimpse.data.folders import folder_images
from robustglimpse.data.images import FINDINGS, FORMATS, Preparation, Tally, prepare
from robustglimpse.data.sources import FolderSource, is_image, mode_of, printable
from robustglimpse.files import read_file, write_file
from robustglimpse.notes import tell
from robustglimpse.progress import progress, track
from robustglimpse.records import UserError
from robustglimpse.request import check_asked, understood

BATCH = 16
RECORD = "robustglimpse.json"  # in the target: what its images were made with
MOST_BYTES = 1 << 20  # of that
# The settings that it holds, and how a command would say them; None stands for the second text.
SETTINGS = {
    "seed": ("--seed {}", ""),
    "preset": ("--preset {}", "no --preset"),
    "size_px": ("--size {}", "--size 0"),
    "store": ("--store {}", ""),
    "frost": ("the frost textures {}", "no frost"),
    "robustglimpse": ("robustglimpse {}", ""),
    "pillow": ("Pillow {}", ""),
}


@understood
@dataclass(frozen=True)
class Export:
    """What `robustglimpse corrupt` is asked for.

    size_px: images are resized to 8/7 of it and centre-cropped; None keeps 64 x 64 and the like as stored.
    store: "jpeg85" writes JPEG of quality 85 as the published sets did, "exact" PNG without loss.
    """

    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = SEVERITIES
    size_px: int | None = 224
    preset: int | None = None
    store: str = "jpeg85"
    frost_dir: Path | None = None
    seed: int = 0


def corrupt_folder(source: Path, target: Path, asked: Export) -> int:
    """Write target/CORRUPTION/SEVERITY/CLASS/NAME for every image of source/CLASS/NAME.

    Returns how many files were written; those that are already there are left as they are, so the same
    call goes on after a stop.  What they were made with is kept in target/robustglimpse.json.
    Raises UserError for a folder without class folders of images, an image that cannot be decoded, a target
    that cannot be written, or one that was made with anything else.
    """
    _check(asked)
    has_frost = any(map(takes_textures, asked.corruptions or names()))
    texture = frost_source(asked.frost_dir) if has_frost else None
    target = arguments.path(target, "target")
    folder, files = _images_of(arguments.path(source, "source"), target)
    content, sizes = _content(folder, files)
    _claim(target, _settings(folder, content, asked, texture))
    prepared = prepare(asked.size_px or None)
    for line in (*folder.notes, *_size_notes(folder, sizes, prepared)):
        tell(line)
    tally = Tally()
    written = _write_cells(folder, files, target, asked, tally)
    for line in _findings(folder, tally, prepared):
        tell(line)
    return written


def _images_of(source: Path, target: Path) -> tuple[FolderSource, list[str]]:
    """Return a folder of class folders and its images. Raises UserError where two would be written as one."""
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"{printable(target)} lies inside {printable(source)}, whose folders are classes; write "
            "somewhere else"
        )
    folder, files = folder_images(source)
    stems = Counter(Path(file).with_suffix("") for file in files)
    twice = next((stem for stem, count in stems.items() if count > 1), None)
    if twice:
        raise UserError(
            f"{printable(source)}: two images are called {printable(twice)}; rename one, they would be "
            "written as one"
        )
    return folder, files


def _write_cells(
    folder: FolderSource, files: Sequence[str], target: Path, asked: Export, tally: Tally
) -> int:
    """Write what is missing of every cell; return how many images that was. tally: of those decoded."""
    import torch

    from robustglimpse.corruptions import corrupt
    from robustglimpse.rng import KeyedDraws

    places = _places(files)
    decode = decoder(folder, asked.size_px or None, tally)
    cells = [(name, s) for name in asked.corruptions or names() for s in sorted(set(asked.severities))]
    ending = ".JPEG" if asked.store == "jpeg85" else ".png"
    written = 0
    with progress(len(files), "corrupt") as report:
        for start in range(0, len(files), BATCH):
            batch = list(enumerate(files))[start : start + BATCH]
            paths = {
                (name, s): [target / name / str(s) / Path(file).with_suffix(ending) for _, file in batch]
                for name, s in cells
            }
            missing = [cell for cell in cells if not all(path.exists() for path in paths[cell])]
            for group in _of_one_size([(i, decode(file)) for i, file in batch] if missing else []):
                images = torch.from_numpy(np.stack([pixels for _, pixels in group]))
                rows = [i for i, _ in group]
                index = torch.tensor([places[i] for i in rows])
                for name, severity in missing:
                    out = corrupt(
                        images, name, severity, draws=KeyedDraws(asked.seed, index), preset=asked.preset,
                        frost_dir=asked.frost_dir,
                    )  # fmt: skip
                    for i, pixels in zip(rows, out.permute(0, 2, 3, 1).numpy(), strict=True):
                        written += _write(paths[name, severity][i - start], pixels, asked.store)
            report(start + len(batch), batch[-1][1])
    return written


def _check(asked: Export) -> None:
    """Raise UserError for what cannot be asked."""
    check_asked(asked, Export, "corrupt_folder('photos', 'photos-c', Export('fog'))")
    check_choices(corruptions=asked.corruptions, preset=asked.preset, store=asked.store)
    for severity in asked.severities:
        check_choices(severity=severity)
    if asked.size_px is not None and asked.size_px < 0:
        raise UserError(f"size must be at least 1 px, got {asked.size_px}; 0 leaves images as they are")


# What a target was made with


Size = tuple[int, int] | None  # width and height, None where the header of an image cannot be read


def _content(source: FolderSource, files: Sequence[str]) -> tuple[str, Counter[Size]]:
    """Return a SHA-256 of the images' names and files, and how many images have which size."""
    digest, sizes = hashlib.sha256(), Counter[Size]()
    for file in track(files, f"reading {len(files)} images"):
        content = source.read(file)
        sizes[_size_of(content)] += 1
        digest.update(f"{file}\0{hashlib.sha256(content).hexdigest()}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest(), sizes


def _settings(source: FolderSource, content: str, asked: Export, texture: str | None) -> dict[str, Any]:
    """Return all that decides the images written, and where they come from."""
    import PIL

    return {
        "seed": asked.seed, "preset": asked.preset, "size_px": asked.size_px or None, "store": asked.store,
        "frost": texture, "robustglimpse": __version__, "pillow": PIL.__version__,
        "source": printable(source.path.absolute()), "source_sha256": content,
    }  # fmt: skip


def _size_of(content: bytes) -> Size:
    """Return an image's size from its header."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(content), formats=FORMATS).size
    except Exception:  # whatever is wrong with it is said when it is decoded
        return None


def _size_notes(source: FolderSource, sizes: Mapping[Size, int], asked: Preparation) -> list[str]:
    """Return lines on how many images are resized and enlarged before they are corrupted."""
    tally = Tally(sum(sizes.values()))
    for size, count in sizes.items():
        if asked.side_px is None or size in (None, (asked.size_px, asked.size_px)):
            tally.counts["stored"] += count
        elif size and min(size) < asked.side_px:
            tally.counts["enlarged"] += count
    return tally.notes(printable(source.path), asked)


def _findings(source: FolderSource, tally: Tally, asked: Preparation) -> list[str]:
    """Return lines on what else was found in the images that were decoded; their sizes have been told."""
    counts = Counter({kind: tally.counts[kind] for kind in (*FINDINGS, "warned")})
    counts["stored"] = tally.images
    return replace(tally, counts=counts).notes(printable(source.path), asked)


def _claim(target: Path, settings: Mapping[str, Any]) -> None:
    """Record what a target is made with. Raises UserError where it was made with anything else."""
    path = target / RECORD
    made = _record(path) if mode_of(path) else {}
    differ = _difference(made, settings) if made else f"by an older version, or by others (no {RECORD})"
    if differ and (found := _first_image(target)):  # a run that ended before its first image decides nothing
        raise UserError(
            f"{printable(target)} was made {differ}; choose another folder (it holds {printable(found)})"
        )
    frost = settings["frost"] or (None if differ else made.get("frost"))
    kept = {**settings, "frost": frost}
    if kept != made:
        write_file(path, json.dumps(kept, indent=1).encode() + b"\n")


def _record(path: Path) -> dict[str, Any]:
    """Return what a record says. Raises UserError where it says nothing."""
    try:
        found = json.loads(read_file(path, most=MOST_BYTES))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f"{printable(path)}: damaged, so it cannot be told what its images were made with; choose "
            "another folder"
        )
    return found


def _difference(made: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return what settings and images differ in: "with --seed 0, not --seed 1", or "" where nothing does."""
    differ = [key for key in SETTINGS if key not in made or made[key] != settings[key]]
    if "frost" in differ and None in (made.get("frost", ""), settings["frost"]):  # one of them has no frost
        differ.remove("frost")
    theirs, ours = ([_told(key, values.get(key)) for key in differ] for values in (made, settings))
    if made.get("source_sha256") != settings["source_sha256"]:
        theirs.append(f"images of {made.get('source')}")
        ours.append(f"those that are in {settings['source']} now")
    return printable(f"with {' and '.join(theirs)}, not {' and '.join(ours)}") if theirs else ""


def _told(key: str, value: Any) -> str:
    text, nothing = SETTINGS[key]
    return nothing if value is None and nothing else text.format(value)


def _first_image(target: Path) -> str | None:
    """Return the path of some image below a folder, None where there is none."""
    if not stat.S_ISDIR(mode_of(target)):
        return None
    return next((name for name in FolderSource(target).names() if is_image(name)), None)


# The images


def _places(files: Sequence[str]) -> list[int]:
    """Return each file's place in the folder's class-mixed order: what a sweep over it draws by."""
    classes = sorted({file.partition("/")[0] for file in files})
    labels = np.array([classes.index(file.partition("/")[0]) for file in files])
    places = np.empty(len(files), np.int64)
    places[class_mixed(labels)] = np.arange(len(files))
    return [int(place) for place in places]


def _of_one_size(
    decoded: Sequence[tuple[int, NDArray[np.uint8]]],
) -> list[list[tuple[int, NDArray[np.uint8]]]]:
    """Return the images in groups of one shape, which one batch can hold."""
    groups: dict[tuple[int, ...], list[tuple[int, NDArray[np.uint8]]]] = {}
    for index, pixels in decoded:
        groups.setdefault(pixels.shape, []).append((index, pixels))
    return list(groups.values())


def _write(path: Path, pixels: NDArray[np.uint8], store: str) -> int:
    """Write an image unless it is there; it appears only when whole. Return how many were written."""
    from PIL import Image

    if path.exists():
        return 0
    content = io.BytesIO()
    if store == "jpeg85":
        Image.fromarray(pixels).save(content, "JPEG", quality=85, subsampling="4:2:0", optimize=True)
    else:
        Image.fromarray(pixels).save(content, "PNG")
    write_file(path, content.getvalue())
    return 1
