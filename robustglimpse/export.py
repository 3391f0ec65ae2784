"""Writes a corrupted copy of an image folder, in the layout of ImageNet-C."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustglimpse.corruptions import SEVERITIES, check_choices, names
from robustglimpse.corruptions.weather import frost_source
from robustglimpse.data.folders import class_mixed, decoder, folder_images
from robustglimpse.files import write_file
from robustglimpse.progress import progress
from robustglimpse.records import UserError

BATCH = 16


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
    call goes on after a stop.  Raises UserError for a folder without class folders of images, an image
    that cannot be decoded, or a target that cannot be written.
    """
    import torch

    from robustglimpse.corruptions import corrupt
    from robustglimpse.rng import KeyedDraws

    check_choices(corruptions=asked.corruptions, preset=asked.preset, store=asked.store)
    for severity in asked.severities:
        check_choices(severity=severity)
    if asked.size_px is not None and asked.size_px < 1:
        raise UserError(f"size must be at least 1 px, got {asked.size_px}; 0 leaves images as they are")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target} lies inside {source}, whose folders are classes; write somewhere else")
    if "frost" in (asked.corruptions or names()):
        frost_source(asked.frost_dir)
    folder, files = folder_images(source)
    stems = Counter(Path(file).with_suffix("") for file in files)
    twice = next((stem for stem, count in stems.items() if count > 1), None)
    if twice:
        raise UserError(f"{source}: two images are called {twice}; rename one, they would be written as one")
    places = _places(files)
    decode = decoder(folder, asked.size_px)
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
