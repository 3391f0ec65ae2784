"""Which files there are, in a folder or an archive, and their bytes. Opens regular files and nothing else."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tarfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO

from robustglimpse.cache import cache_dir
from robustglimpse.files import write_file
from robustglimpse.records import UserError

# What torchvision's ImageFolder reads, in any case.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# What operating systems leave beside images, beyond names that begin with a dot.
LEFTOVERS = {
    "__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information",
}  # fmt: skip
MOST_BYTES = 1 << 30  # of one file; the largest that is read, a batch of CIFAR-10, has 31 MB
CHUNK_BYTES = 4096  # what an archive unpacks at once: a hostile one can make 100 MB of it, not 8 GB
SETTLED_S = 2.0  # file times are coarse: a file this young may change again and keep its times
_UNWRITTEN: dict[Path, str] = {}  # SHA-256 by the note that could not be written


def is_image(path: str) -> bool:
    """Return whether a path ends as an image's does."""
    return path.lower().endswith(IMAGE_ENDINGS)


def printable(text: str | Path) -> str:
    r"""Return a name on one line: bytes that are no text and control characters as "\xe9", "\n"."""
    text = str(text)
    return text if text.isprintable() else "".join(_printed(c) for c in text)


def _printed(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python reads a byte of a name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape").decode()
    return character


def mode_of(path: Path) -> int:
    """Return the type of what lies at a path, links followed, as stat.S_ISDIR takes it; 0 for nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: of a NUL in the path
        return 0
    except OSError as error:
        raise UserError(_unreadable(path, error)) from None


def _unreadable(path: Path | str, error: OSError) -> str:
    return f"{printable(path)}: cannot be read ({error.strerror}); mend or remove it"


@dataclass
class _Walk:
    """What lies below a folder, and what was passed over.

    files: by their path below it, the stamp of each.  folders: those right below it.
    again: links to folders that are read already.
    """

    files: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)


class FolderSource:
    """The files below a folder, as they were when they were first asked for.

    notes: lines for the user, of what was passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: tuple[str, ...] = ()

    @cached_property
    def walk(self) -> _Walk:
        """What lies below the folder. Raises UserError for a folder or file that cannot be looked at."""
        found = _walk(self.path)
        self.notes += tuple(_passed_over(self.path, found))
        return found

    def names(self) -> list[str]:
        """Return every file's path below the folder, sorted, with forward slashes."""
        return sorted(self.walk.files)

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises UserError for one that is not below the folder, or has changed."""
        path = self.path / name
        listed = self.walk.files.get(name)
        if listed is None:
            raise UserError(f"{printable(path)}: cannot be read (no such file); mend or remove it")
        try:
            with open_at_once(path) as stream:
                now = os.fstat(stream.fileno())
                if not stat.S_ISREG(now.st_mode) or _stamp_of(now) != listed:
                    raise UserError(f"{printable(path)}: changed while it was read; run that again")
                if now.st_size > MOST_BYTES:
                    raise UserError(_too_large(printable(path), now.st_size))
                return stream.read(MOST_BYTES)
        except OSError as error:
            raise UserError(_unreadable(path, error)) from None

    def stamp(self, names: Sequence[str]) -> str:
        """Return a hash of these files' names, sizes, times of change and places on the disk."""
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name}\0{self.walk.files[name]}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def close(self) -> None:
        """Do nothing: no file stays open."""


def open_at_once(path: Path) -> IO[bytes]:
    """Open a file for reading, without waiting for a writer where it is a pipe."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        return os.fdopen(descriptor, "rb")
    except OSError:  # of a folder
        os.close(descriptor)
        raise


def _stamp_of(status: os.stat_result) -> str:
    """Return what changes when a file does, even to one of its size and within a second."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _too_large(what: str, size: int) -> str:
    return f"{what} has {size / 1e9:.1f} GB, and at most {MOST_BYTES / 1e9:.1f} are read; mend or remove it"


def _walk(root: Path) -> _Walk:
    """List what is below a folder, links followed, each folder once: under its own name before a link's."""
    found = _Walk()
    try:
        above = [root.stat(), *(folder.stat() for folder in root.resolve().parents)]
    except OSError as error:
        raise UserError(_unreadable(root, error)) from None
    seen = {(status.st_dev, status.st_ino) for status in above}
    folders, links = [""], list[str]()
    while folders or links:
        below = folders.pop() if folders else links.pop()
        here = root / below
        try:
            if below:
                status = here.stat()
                if (status.st_dev, status.st_ino) in seen:
                    found.again.append(below)
                    continue
                seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                for entry in entries:
                    _sort_entry(entry, f"{below}/{entry.name}".lstrip("/"), found, folders, links)
        except OSError as error:
            raise UserError(_unreadable(error.filename or here, error)) from None
        links.sort(reverse=True)
    return found


def _sort_entry(
    entry: os.DirEntry[str], name: str, found: _Walk, folders: list[str], links: list[str]
) -> None:
    """Put one entry of a folder where it belongs."""
    if _is_leftover(entry.name):
        if is_image(name) and not entry.name.startswith("._"):
            found.hidden.append(name)
        return
    try:
        status = entry.stat()
    except OSError as error:
        if not entry.is_symlink() or isinstance(error, PermissionError):
            raise
        found.dangling.append(name)
        return
    if stat.S_ISDIR(status.st_mode):
        (links if entry.is_symlink() else folders).append(name)
        if "/" not in name:
            found.folders.append(name)
    elif stat.S_ISREG(status.st_mode):
        found.files[name] = _stamp_of(status)
    else:
        found.special.append(name)


def _is_leftover(name: str) -> bool:
    """Return whether a name is hidden, or what an operating system leaves."""
    return name.startswith(".") or name.casefold() in LEFTOVERS


def _passed_over(root: Path, found: _Walk) -> list[str]:
    """Return a line for each kind of thing that might have been meant, and was not read."""
    kinds = {
        "links that lead nowhere": [name for name in found.dangling if is_image(name)],
        "links to folders that are read already, or hold them": found.again,
        "pipes, devices and the like": found.special,
        "images with hidden names": found.hidden,
    }
    return _notes(root, kinds)


def _notes(root: Path, kinds: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        f"{printable(root)}: passed over {what}: {len(names)} (the first is {printable(min(names))})"
        for what, names in kinds.items()
        if names
    ]


# What zipfile and tarfile raise for a damaged, cut or encrypted archive, or names in it that are no text.
_BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, OSError, EOFError, LookupError, RuntimeError,
    ValueError,
)  # fmt: skip


class ArchiveSource:
    """The files inside a .zip or .tar(.gz), open until closed.

    notes: lines for the user, of what was passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with ExitStack() as stack:
                if zipfile.is_zipfile(path):
                    archive = stack.enter_context(zipfile.ZipFile(path))
                    entries = [(i.filename, i.file_size, _is_file(i)) for i in archive.infolist()]
                    self._open: Callable[[str], IO[bytes] | None] = archive.open
                else:
                    tar = stack.enter_context(tarfile.open(path))
                    entries = [(m.name, m.size, m.isfile()) for m in tar.getmembers()]
                    self._open = tar.extractfile
                self.close = stack.pop_all().close
        except _BROKEN as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{printable(path)}: not a readable zip or tar archive ({reason}); fetch it again"
            ) from None
        self._sizes = {name: size for name, size, is_file in entries if is_file and not _is_in_leftover(name)}
        others = [name for name, _, is_file in entries if not is_file and is_image(name)]
        self.notes = tuple(_notes(path, {"links and the like": others}))

    def names(self) -> list[str]:
        """Return every file's path inside the archive, sorted."""
        return sorted(self._sizes)

    def read(self, name: str) -> bytes:
        """Return a file's bytes, no more than the archive says that it has."""
        what = f"{printable(self.path)}: {printable(name)}"
        size = self._sizes.get(name)
        if size is None:
            raise UserError(f"{what} cannot be read (no such file); fetch the archive again")
        if size > MOST_BYTES:
            raise UserError(_too_large(what, size))
        try:
            stream = self._open(name)
            assert stream is not None
            with stream:
                chunks = [stream.read(CHUNK_BYTES)]
                while chunks[-1] and len(chunks) <= size // CHUNK_BYTES + 1:
                    chunks.append(stream.read(CHUNK_BYTES))
                return b"".join(chunks)
        except _BROKEN as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{what} cannot be read ({reason}); fetch the archive again") from None

    def stamp(self, names: Sequence[str]) -> str:
        """Return the archive's SHA-256, whichever of its files are meant."""
        try:
            return sha256_of(self.path)
        except OSError as error:
            raise UserError(_unreadable(self.path, error)) from None


def _is_in_leftover(name: str) -> bool:
    return any(_is_leftover(part) for part in name.split("/") if part not in (".", ".."))


def _is_file(entry: zipfile.ZipInfo) -> bool:
    """Return whether an entry of a zip is no folder and, where it was made on Unix, no link or pipe."""
    kind = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system == 3 else 0
    return not entry.is_dir() and kind in (0, stat.S_IFREG)


Source = FolderSource | ArchiveSource


def open_source(path: Path) -> Source:
    """Return the files of a folder or an archive. Raises UserError for anything else."""
    mode = mode_of(path)
    if stat.S_ISDIR(mode):
        return FolderSource(path)
    if stat.S_ISREG(mode):
        return ArchiveSource(path)
    found = "is neither a folder nor a file" if mode else "no such file or folder"
    raise UserError(f"{printable(path)}: {found}; expected a folder, or a zip or tar archive")


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256, remembered in the cache folder until the file changes.

    Its size, its times of change and its place on the disk tell whether it has.
    """
    status = path.stat()
    kept = _note_of(path, status)
    if kept in _UNWRITTEN:
        return _UNWRITTEN[kept]
    with suppress(OSError, ValueError, UserError):
        if (
            stat.S_ISREG(mode_of(kept))
            and (found := kept.read_text())
            and re.fullmatch("[0-9a-f]{64}", found)
        ):
            return found
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_S:
        _write_note(kept, found)
    return found


def remember_sha256(path: Path, sha256: str) -> None:
    """Note the SHA-256 of a file that this process has just made and hashed, however young it is."""
    _write_note(_note_of(path, path.stat()), sha256)


def _note_of(path: Path, status: os.stat_result) -> Path:
    """Return where the SHA-256 of a file in that state is noted."""
    name = os.fsencode(path.resolve())
    key = hashlib.sha256(name + b"\0" + _stamp_of(status).encode()).hexdigest()[:24]
    return cache_dir() / "hashes" / key


def _write_note(kept: Path, sha256: str) -> None:
    """Note a SHA-256 for later commands, or for this process alone where the cache cannot be written."""
    try:
        write_file(kept, sha256.encode())
    except UserError:  # it is told of where images go into it
        _UNWRITTEN[kept] = sha256
