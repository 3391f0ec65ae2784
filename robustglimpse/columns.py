"""Columns of numbers as files: written as .npz, read back only where they are what was written.

NumPy's own reader believes what a file says of itself: it makes room for a shape before it has seen the data,
and builds any dtype that a header spells.  Here a header must be one that we write.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray[np.generic]]
CHECK = "check"  # the member that tells of the others
# The header of a flat array of numbers, as NumPy has always written it: version 1.0.
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<|][iufb][1248])', 'fortran_order': False, "
    rb"'shape': \((\d{1,15}),\), \} *\n",
    re.DOTALL,
)
BROKEN = (BadZipFile, OSError, ValueError, EOFError, KeyError, RuntimeError, zlib.error)


class DamageError(ValueError):
    """A file that does not hold what was written; in words for a user."""


def pack(columns: Mapping[str, NDArray[Any]], told: Mapping[str, Any]) -> bytes:
    """Return flat columns as a file, with what they tell of and a checksum over both."""
    check = np.frombuffer(json.dumps(_check(columns, told)).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, **{**columns, CHECK: check})  # type: ignore[arg-type]
    return content.getvalue()


def unpack(content: bytes, told: Mapping[str, Any]) -> Columns:
    """Return the columns of pack. Raises DamageError unless they are whole and tell of what they should."""
    columns = read_arrays(content, most=len(content))
    try:
        kept = json.loads(bytes(columns.pop(CHECK)))
    except (KeyError, ValueError, RecursionError):
        raise DamageError("it does not say what it holds") from None
    if kept != _check(columns, told):
        raise DamageError("it does not hold what was written there")
    return columns


def _check(columns: Mapping[str, NDArray[Any]], told: Mapping[str, Any]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name in sorted(columns):
        digest.update(np.ascontiguousarray(columns[name]).tobytes())
    listed = {name: [column.dtype.str, len(column)] for name, column in columns.items()}
    return {"told": dict(told), "columns": listed, "sha256": digest.hexdigest()}


def read_arrays(content: bytes, *, most: int) -> Columns:
    """Return the flat arrays of numbers in an .npz file. Raises DamageError for anything else.

    most: bytes that they take together, beyond which nothing is unpacked.
    """
    try:
        with ZipFile(io.BytesIO(content)) as file:
            members = file.infolist()
            if len({member.filename for member in members}) < len(members):
                raise DamageError("it holds something twice")
            if sum(member.file_size for member in members) > most:
                raise DamageError("it holds more than it should")
            return {m.filename.removesuffix(".npy"): _array(file.read(m)) for m in members}
    except DamageError:
        raise
    except (*BROKEN, NotImplementedError, OverflowError, MemoryError) as error:
        raise DamageError(str(error).partition("\n")[0] or type(error).__name__) from None


def _array(content: bytes) -> NDArray[np.generic]:
    header = HEADER.match(content)
    if header is None:
        raise DamageError("it holds something else than flat columns of numbers")
    dtype, length = np.dtype(header[1].decode()), int(header[2])
    data = content[header.end() :]
    if len(data) != length * dtype.itemsize:
        raise DamageError(f"a column of {length} numbers has {len(data)} bytes")
    return np.frombuffer(data, dtype).copy()
