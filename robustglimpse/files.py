"""The reading and writing of files: each is there whole or not at all, even when the process is killed."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BufferedWriter
from pathlib import Path
from platform import node

from robustglimpse.records import UserError

MOST_BYTES = 1 << 30  # of a file that is read whole; a results directory holds none that is larger
# A file that is being written: .robustglimpse-HOST-PROCESS-THREAD-RANDOM.part
HOST = hashlib.sha256(node().encode()).hexdigest()[:8]
PARTIAL = re.compile(r"\.robustglimpse-([0-9a-f]{8})-(\d+)-\d+-[0-9a-f]{16}\.part")
DAY_S = 24 * 3600


def write_file(path: Path, content: bytes, *, lasting: bool = False) -> None:
    """Write a file that appears only when it is whole. Raises UserError where that cannot be.

    lasting: wait until it is on the disk, so that it also outlives a power cut.
    A link in its place is replaced, not followed.
    """
    try:
        with appearing(path, lasting=lasting) as file:
            file.write(content)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
        raise UserError(
            f"{path}: cannot be written ({_reason(error)}); mend that or choose another place "
            "(what is done so far is kept)"
        ) from None


@contextmanager
def appearing(path: Path, *, lasting: bool = False) -> Iterator[BufferedWriter]:
    """Yield a new file that takes the path's place at the end, and is gone if that is not reached.

    lasting: as write_file.  Raises OSError where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _swept_once(path.parent)
    partial = _new_partial(path.parent)
    try:
        with _created(partial) as file:
            yield file
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    if lasting:
        _sync_folder(path.parent)


def check_writable(folder: Path) -> None:
    """Make a folder where there is none. Raises OSError unless files can be written into it."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = _new_partial(folder)
    _created(partial).close()
    partial.unlink()


def read_file(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of a file. Raises UserError for what is none, such as a pipe, and above most bytes."""
    try:
        # A pipe nobody writes to would block the opening, a device never ends.
        with open(path, "rb", opener=_without_waiting) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise UserError(f"{path}: expected a file, found a pipe, a device or a folder; remove it")
            content = file.read(state.st_size + 1) if state.st_size <= most else b""
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); check that it is there") from None
    if max(state.st_size, len(content)) > most:
        raise UserError(f"{path}: expected at most {most:,} bytes, got {state.st_size:,}; remove it")
    return content


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def append_text(path: Path, text: str) -> None:
    """Add text to a file, as GitHub's job summary wants it. Raises UserError where that cannot be."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from None


def sweep(folder: Path) -> None:
    """Remove what processes left half written in a folder before they died.

    Those of other machines cannot be asked for: their files count as left after a day.
    """
    with suppress(OSError):
        for entry in os.scandir(folder):
            if found := PARTIAL.fullmatch(entry.name):
                host, process = found.groups()
                with suppress(OSError):
                    is_old = time.time() - entry.stat(follow_symlinks=False).st_mtime > DAY_S
                    if is_dead(int(process)) if host == HOST else is_old:
                        Path(entry.path).unlink()


@lru_cache(maxsize=4096)
def _swept_once(folder: Path) -> None:
    """Sweep a folder the first time that this process writes into it: one may hold 50 000 files."""
    sweep(folder)


def is_dead(process: int) -> bool:
    """Return whether no process of this machine has that number any more, False where that cannot be told."""
    if os.name != "posix":  # elsewhere os.kill ends what it is asked about
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's
        return False
    return False


def _new_partial(folder: Path) -> Path:
    """Return a name for a file under way that nobody else takes, whatever the length of its own name."""
    told = (HOST, os.getpid(), threading.get_ident(), secrets.token_hex(8))
    return folder / f".robustglimpse-{'-'.join(map(str, told))}.part"


def _created(path: Path) -> BufferedWriter:
    """Return a new file, opened for writing; a planted link of that name is an error."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return open(path, "wb", opener=lambda name, _: os.open(name, flags, 0o666))


def _sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk, where its file system can say so."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: Exception) -> str:
    return str((isinstance(error, OSError) and error.strerror) or error)
