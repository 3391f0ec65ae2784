"""Many images: decoded once, then mapped from a cache whose files are whole and checked before they count."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from robustglimpse.cache import cache_dir
from robustglimpse.data import Dataset
from robustglimpse.data.images import Preparation, Tally, prepare, read_image
from robustglimpse.data.sources import FolderSource, Source, open_at_once, printable
from robustglimpse.files import appearing, is_dead
from robustglimpse.notes import tell
from robustglimpse.progress import track
from robustglimpse.records import UserError

HELD_BYTES = 1 << 26  # smaller files are read; larger ones are mapped, for several processes to share
CHECKED_BYTES = 1 << 30  # pixels of larger files are not summed at every call: it takes a second per GB
FORMAT = 3
# A cached file is numpy's header, the pixels u8 [N,3,H,W], what was found in them as JSON, and this:
END = struct.Struct("<II")  # how long the JSON is, and its CRC-32
# A folder that can take no file, for a while or at all: images are decoded all the same.
NO_ROOM = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR,
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """An image file inside its folder or archive, and its class."""

    path: str
    wnid: str

    @property
    def photograph(self) -> str:
        """Its class and its path below the class folder, without ending: the same in every copy of a set."""
        *folders, file = self.path.split("/")
        above = [printable(folder) for folder in folders]
        below = folders[above.index(self.wnid) + 1 :] if self.wnid in above else []
        if below[:1] == ["images"]:  # as Tiny ImageNet has it
            below = below[1:]
        return "/".join((self.wnid, *below, file.rpartition(".")[0]))


def listing_of(samples: Sequence[Sample]) -> str:
    """Return a SHA-256 of which photographs these are by name, in their order, in any copy of a set."""
    return _hash_of(sample.photograph for sample in samples)


def _hash_of(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def class_mixed(labels: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the order that takes the first of every class, then the second: any prefix is balanced."""
    rank = np.empty(len(labels), np.int64)
    for k in np.unique(labels):
        rank[labels == k] = np.arange((labels == k).sum())
    return np.lexsort((labels, rank))


def decoder(
    source: FolderSource, size_px: int | None, tally: Tally | None = None
) -> Callable[[str], NDArray[np.uint8]]:
    """Return what decodes an image by its path below the folder, u8 [3,H,W].

    size_px: as `prepare` takes it.  tally: counts what was done to the images.
    """
    asked, counts = prepare(size_px), Tally() if tally is None else tally
    return lambda file: read_image(source, file, asked, counts)


def decode(
    source: Source,
    name: str,
    split: str,
    samples: Sequence[Sample],
    classes: tuple[str, ...],
    limit: int | None,
    asked: Preparation,
) -> Dataset:
    """Return the data set of samples in class-mixed order, decoded or from the cache.

    classes: names by label, those of the samples among them.
    """
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    labels = np.array([label_of[s.wnid] for s in samples], np.int64)
    order = class_mixed(labels)[:limit]
    chosen = [samples[i] for i in order]
    images, tally = _decoded(source, f"{name.partition(':')[0]}-{split or 'all'}", chosen, asked)
    return Dataset(
        name, split or "all", images, labels[order], classes, len(samples),
        preparation=tally.preparation(asked), listing=listing_of(chosen),
        identity=_hash_of((tally.content, *(sample.wnid for sample in chosen))),
        notes=(*source.notes, *tally.notes(name, asked)),
    )  # fmt: skip


def _decoded(
    source: Source, title: str, samples: Sequence[Sample], asked: Preparation
) -> tuple[NDArray[np.uint8], Tally]:
    """Return the samples' images u8 [N,3,H,W] and how they were prepared: kept ones where those are whole."""
    paths = [sample.path for sample in samples]
    title = re.sub(r"[^\w.-]", "_", title)[:60]
    kept = cache_dir() / "decoded" / f"{title}-{_key(source, paths, asked)}.npy"
    try:
        return _read(kept, check=True)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or error
        tell(f"{printable(kept)}: these decoded images cannot be used ({reason}); they are decoded again")
    try:
        _write(kept, source, paths, asked)
        return _read(kept, check=False)
    except OSError as error:
        why = f"{printable(kept.parent)}: cannot keep decoded images there ({error.strerror})"
        if error.errno not in NO_ROOM:
            raise UserError(f"{why}; set ROBUSTGLIMPSE_CACHE") from None
    tell(f"{why}; they stay in memory and are decoded anew by the next command: set ROBUSTGLIMPSE_CACHE")
    return _in_memory(source, paths, asked, why)


def _key(source: Source, paths: Sequence[str], asked: Preparation) -> str:
    """Return a hash of all that decides the pixels: the files, their order, what is done and what decodes."""
    import PIL

    return _hash_of((source.stamp(paths), f"{FORMAT} {PIL.__version__}", asked.tag, *paths))[:24]


def _each_image(
    source: Source, paths: Sequence[str], asked: Preparation, tally: Tally
) -> Iterator[NDArray[np.uint8]]:
    """Yield every image u8 [3,H,W]. Raises UserError unless all have one size."""
    shape: tuple[int, ...] | None = None
    for path in track(paths, f"decoding {len(paths)} images"):
        pixels = read_image(source, path, asked, tally)
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise UserError(
                f"{printable(source.path)}: {printable(path)} is {pixels.shape[2]} x {pixels.shape[1]} px, "
                f"the others {shape[2]} x {shape[1]}; to resize them alike use imagefolder:PATH --size N"
            )
        yield pixels


# Without the cache


def _in_memory(
    source: Source, paths: Sequence[str], asked: Preparation, why: str
) -> tuple[NDArray[np.uint8], Tally]:
    """Return the images u8 [N,3,H,W]. why: what to say where memory cannot hold them either."""
    tally = Tally()
    images: NDArray[np.uint8] | None = None
    for i, pixels in enumerate(_each_image(source, paths, asked, tally)):
        if images is None:
            needed = len(paths) * pixels.nbytes
            if needed > _free_memory() // 2:
                raise UserError(
                    f"{why}, nor in memory ({needed / 1e9:.1f} GB); set ROBUSTGLIMPSE_CACHE or give --limit N"
                )
            images = np.empty((len(paths), *pixels.shape), np.uint8)
        images[i] = pixels
    assert images is not None
    return images, tally


def _free_memory() -> int:
    """Return how many bytes a program may take; a guess where the system does not say."""
    with suppress(OSError, LookupError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with suppress(OSError, AttributeError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 4 << 30


# The files of the cache

# What reading one raises that is cut short, of another kind, or not ours.
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def _header(shape: Sequence[int]) -> bytes:
    """Return how numpy begins a file of u8 values of that shape."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)})
    return out.getvalue()


def _write(kept: Path, source: Source, paths: Sequence[str], asked: Preparation) -> None:
    """Decode every image into a file. Raises OSError where the cache cannot hold it."""
    tally, checksum = Tally(), 0
    shape: tuple[int, ...] = ()
    _remove_old_partials(kept.parent)
    with appearing(kept, lasting=True) as stream:
        for pixels in _each_image(source, paths, asked, tally):
            if not shape:
                shape = (len(paths), *pixels.shape)
                if shutil.disk_usage(kept.parent).free < math.prod(shape):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                stream.write(_header(shape))
            content = pixels.tobytes()
            stream.write(content)
            checksum = zlib.crc32(content, checksum)
        described = {"shape": shape, "crc32": checksum, **vars(tally)}
        text = json.dumps(described).encode()
        stream.write(text + END.pack(len(text), zlib.crc32(text)))


def _remove_old_partials(folder: Path) -> None:
    """Remove what dead runs left under an earlier name for unfinished files, NAME.PROCESS.partial."""
    for path in folder.glob("*.partial"):
        number = path.name.split(".")[-2]
        if number.isdecimal() and is_dead(int(number)):
            with suppress(OSError):
                path.unlink()


def _read(path: Path, *, check: bool) -> tuple[NDArray[np.uint8], Tally]:
    """Return the images u8 [N,3,H,W], read or mapped from a file of `_write`, and their tally.

    check: sum the pixels too, in files of up to CHECKED_BYTES.
    Raises FileNotFoundError, or one of _DAMAGED for a file that is not whole.
    """
    with open_at_once(path) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a file")
        described, end = _described(stream, status.st_size)
        shape = tuple(int(length) for length in described["shape"])
        start = len(_header(shape))
        stream.seek(0)
        if stream.read(start) != _header(shape) or end != start + math.prod(shape):
            raise ValueError("header and length disagree")
        if math.prod(shape) <= HELD_BYTES:
            images = np.frombuffer(stream.read(math.prod(shape)), np.uint8).reshape(shape)
        else:
            images = np.memmap(stream, np.uint8, "r", start, shape)
    if check and images.nbytes <= CHECKED_BYTES and zlib.crc32(images.data) != described["crc32"]:
        raise ValueError("the pixels differ from their checksum")
    counts = Counter({str(kind): int(count) for kind, count in described["counts"].items()})
    return images, Tally(shape[0], counts, str(described["content"]), str(described["warning"]))


def _described(stream: IO[bytes], size: int) -> tuple[Mapping[str, Any], int]:
    """Return what stands behind the pixels of a file of that size, and where that begins."""
    if size < END.size:
        raise ValueError(f"{size} bytes")
    stream.seek(size - END.size)
    length, checksum = END.unpack(stream.read(END.size))
    begin = size - END.size - length
    if begin < 0:
        raise ValueError("cut short")
    stream.seek(begin)
    text = stream.read(length)
    if zlib.crc32(text) != checksum:
        raise ValueError("cut short or overwritten")
    described = json.loads(text)
    if not isinstance(described, dict):
        raise ValueError("of another kind")
    return described, begin
