"""The writing of files: each is there whole or not at all, even when the process is killed."""

from __future__ import annotations

import os
from pathlib import Path

from robustglimpse.records import UserError


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears only when it is whole. Raises UserError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); mend that or choose another place "
            "(what is done so far is kept)"
        ) from None


def append_text(path: Path, text: str) -> None:
    """Add text to a file, as GitHub's job summary wants it. Raises UserError where that cannot be."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from None
