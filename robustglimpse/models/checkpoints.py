"""What a file of weights holds: torch's own formats and safetensors, read without running what is in them."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from robustglimpse.models.kinds import check_is_file, kind_of_file, shown
from robustglimpse.pickles import Inert, MalformedError, RunsCodeError, as_dict, read_pickle
from robustglimpse.records import UserError

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64, "UntypedStorage": torch.uint8, "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8, "QInt32Storage": torch.qint32, "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
}  # fmt: skip
DTYPES = {str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
MOST_DIMENSIONS = 16
MOST_HEADER = 100_000_000  # bytes, of safetensors: its own limit
# What reading a damaged file raises.
UNREADABLE = (
    zipfile.BadZipFile, struct.error, OSError, ValueError, OverflowError, EOFError, MemoryError,
)  # fmt: skip
# Objects that usually lie beside weights and tell nothing about them.
USUAL = (
    "argparse.Namespace", "types.SimpleNamespace", "pathlib.", "numpy.", "torch.", "builtins.",
    "collections.", "copyreg.", "_codecs.", "datetime.",
)  # fmt: skip


@dataclass
class Storage:
    """Bytes of a file that tensors are views of; read when they are asked for.

    start: where they begin in the source.  crc: what zlib.crc32 must give for them, None where unknown.
    """

    source: Path | bytes
    dtype: torch.dtype
    start: int = 0
    nbytes: int = 0
    crc: int | None = None

    @cached_property
    def content(self) -> bytearray:
        """The bytes. Raises MalformedError where they are not all there, or differ from their checksum."""
        found = bytearray(_slice(self.source, self.start, self.nbytes))
        if len(found) < self.nbytes:
            raise MalformedError("cut short")
        if self.crc is not None and zlib.crc32(found) != self.crc:
            raise MalformedError("its checksum differs: damaged; copy or fetch it again")
        return found


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read yet: offset, size and stride in elements of dtype."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""
        return torch.Size(self.size)

    def read(self) -> Tensor:
        """Return the tensor. Raises MalformedError where the file holds too few bytes for it."""
        width = self.dtype.itemsize
        count = self.storage.nbytes // width
        reach = sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if prod(self.size) and self.offset + reach >= count:
            raise MalformedError("a tensor is larger than its bytes")
        if not count:
            return torch.empty(self.size, dtype=self.dtype)
        if self.dtype is torch.bool:  # a byte that is neither 0 nor 1 would be no bool
            flat = torch.frombuffer(self.storage.content, dtype=torch.uint8).ne(0)
        else:
            flat = torch.frombuffer(self.storage.content, dtype=self.dtype, count=count)
        return flat.as_strided(self.size, self.stride, self.offset)


Entry = Stored | Tensor


@dataclass(frozen=True)
class Contents:
    """What a file holds: dicts and lists of plain values, Stored tensors (or read ones), Inerts for the rest.

    unknown: names of classes in it that are not usual beside weights; nothing was built of them.
    """

    content: Any
    unknown: tuple[str, ...] = ()


def read_contents(path: Path) -> Contents:
    """Return what a file that torch.save, pickle or safetensors wrote holds.

    Nothing in it is run, imported or built: only tensors and plain containers are put together.
    Raises UserError where it is another kind of file, is damaged, or calls functions.
    """
    check_is_file(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
            if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MOST_HEADER:
                return Contents(read_safetensors(path)[0])
            if head[:4] == b"PK\x03\x04":
                return _zipped(path)
            stream.seek(0)
            return _pickled(stream, path)
    except RunsCodeError as error:
        raise UserError(
            f"{path}: refused, reading it would run code inside it ({shown(str(error))}); "
            "save its state_dict alone: torch.save({'state_dict': model.state_dict()}, FILE)"
        ) from None
    except (*UNREADABLE, NotImplementedError) as error:
        kind = kind_of_file(path)
        reason = shown(str(error) or type(error).__name__)
        raise UserError(f"{path}: {kind or f'not a readable checkpoint ({reason})'}") from None


def read_tensor(entry: Entry, name: str, path: Path) -> Tensor:
    """Return the tensor of an entry. Raises UserError where its bytes are damaged."""
    try:
        return entry if isinstance(entry, Tensor) else entry.read()
    except (MalformedError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{path}: {shown(name)!r} cannot be read ({shown(str(error))})") from None


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of any safetensors file."""
    from safetensors import SafetensorError, safe_open

    check_is_file(path)
    try:
        with safe_open(path, "pt") as stream:
            state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a dict
            return state, stream.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError) as error:
        kind = kind_of_file(path)
        reason = f"not a readable safetensors file ({kind or shown(str(error))})"
        raise UserError(f"{path}: {reason}") from None


# torch's formats


def _zipped(path: Path) -> Contents:
    """Return what a zip archive of torch.save holds."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: part for part in archive.infolist()}
    pickle_name = next((name for name in parts if name.count("/") <= 1 and name.endswith("data.pkl")), None)
    root = "" if pickle_name is None else pickle_name.removesuffix("data.pkl")
    if pickle_name is None or f"{root}constants.pkl" in parts:
        raise MalformedError("no torch.save archive")

    def part(name: str, dtype: torch.dtype = torch.uint8) -> Storage:
        if name not in parts:
            raise MalformedError(f"lacks {name}")
        return _part(path, size, parts[name], dtype)

    def persistent(saved: Any) -> Any:
        dtype, key = _storage_id(saved)
        return part(f"{root}data/{key}", dtype) if isinstance(dtype, torch.dtype) else dtype

    if f"{root}byteorder" in parts and part(f"{root}byteorder").content == b"big":
        raise MalformedError("written on a big-endian machine; save it anew on a usual one")
    stream = io.BytesIO(part(pickle_name).content)
    return _contents(*read_pickle(stream, builders=BUILDERS, persistent=persistent))


def _part(path: Path, size: int, found: zipfile.ZipInfo, dtype: torch.dtype) -> Storage:
    """Return where the bytes of one part of a zip archive lie; torch stores them as they are."""
    if found.compress_type != zipfile.ZIP_STORED or found.flag_bits & 1:
        raise MalformedError("its parts are compressed or encrypted, as torch.save leaves none; save it anew")
    header = _slice(path, found.header_offset, 30)
    name_length, extra_length = struct.unpack("<2H", header[26:30])
    start = found.header_offset + 30 + name_length + extra_length
    if header[:4] != b"PK\x03\x04" or start + found.file_size > size:
        raise MalformedError("cut short")
    return Storage(path, dtype, start, found.file_size, found.CRC)


def _pickled(stream: IO[bytes], source: Path | bytes) -> Contents:
    """Return what torch's format of before 2020 holds, or a plain pickle."""
    stands: dict[str, Storage] = {}

    def persistent(saved: Any) -> Any:
        if isinstance(saved, tuple) and saved[:1] == ("module",):
            return saved[1]
        dtype, key = _storage_id(saved)
        if not isinstance(dtype, torch.dtype):
            return dtype
        if len(saved) > 5 and saved[5] is not None:
            raise MalformedError("storages that are views of others, as torch before 0.4 wrote; save it anew")
        return stands.setdefault(key, Storage(source, dtype))

    def following() -> tuple[Any, set[str]]:
        return read_pickle(stream, builders=builders, persistent=persistent)

    builders = BUILDERS if isinstance(source, bytes) else {**BUILDERS, FROM_BYTES: _from_bytes}
    first, names = following()
    if first != LEGACY_MAGIC:
        return _contents(first, names)
    protocol, _ = following()
    system, _ = following()
    if protocol != LEGACY_PROTOCOL or not isinstance(system, dict) or not system.get("little_endian", True):
        raise MalformedError("an unknown version of torch's old format")
    content, names = following()
    keys, _ = following()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise MalformedError("no list of storages")
    place = stream.tell()
    for key in keys:  # each: its number of elements, i64, then its bytes
        stand = stands.get(key)
        if stand is None:
            raise MalformedError(f"no tensor is of storage {key!r}")
        head = _slice(source, place, 8)
        count = int.from_bytes(head, "little", signed=True)
        if len(head) < 8 or count < 0:
            raise MalformedError("cut short")
        stand.start, stand.nbytes = place + 8, count * stand.dtype.itemsize
        place = stand.start + stand.nbytes
    return _contents(content, names)


def _contents(content: Any, names: set[str]) -> Contents:
    unknown = (name for name in names if name not in BUILDERS and not name.startswith(USUAL))
    return Contents(content, tuple(sorted(map(shown, unknown))))


def _slice(source: Path | bytes, start: int, count: int) -> bytes:
    if isinstance(source, bytes):
        return source[start : start + count]
    with source.open("rb") as stream:
        if start + count > stream.seek(0, io.SEEK_END):
            raise MalformedError("cut short")
        stream.seek(start)
        return stream.read(count)


def _storage_id(saved: Any) -> tuple[torch.dtype | Inert, str]:
    """Return the dtype and the key of a storage that a pickle refers to; an Inert for a type unknown here."""
    if not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != "storage":
        raise MalformedError("it refers to something that is no storage")
    kind, key = saved[1], saved[2]
    if not isinstance(kind, Inert) or not isinstance(key, str | int):
        raise MalformedError("a storage without a type or a key")
    return STORAGES.get(kind.name.rpartition(".")[2], Inert(kind.name)), str(key)


# What a pickle may put together


def _tensor(
    storage: Any, offset: Any = 0, size: Any = (), stride: Any = (), *_: Any, dtype: Any = None
) -> Stored | Inert:
    """Return a tensor of a storage. Raises MalformedError for numbers that no tensor has."""
    if not isinstance(storage, Storage):
        return Inert(storage.name if isinstance(storage, Inert) else "no tensor")
    numbers = (offset, *_shape(size), *_shape(stride))
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers) or len(size) != len(stride):
        raise MalformedError("a tensor of impossible size")
    return Stored(storage, dtype or storage.dtype, offset, tuple(size), tuple(stride))


def _shape(size: Any) -> tuple[Any, ...]:
    if not isinstance(size, tuple | list) or len(size) > MOST_DIMENSIONS:
        raise MalformedError("a tensor of impossible size")
    return tuple(size)


def _tensor_v2(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Stored | Inert:
    metadata = rest[2] if len(rest) > 2 else None
    if metadata:  # conjugated or negated views, which no weights are
        return Inert("torch.Tensor with metadata")
    return _tensor(storage, offset, size, stride)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Stored | Inert:
    known = DTYPES.get(dtype.name) if isinstance(dtype, Inert) else None
    return Inert("torch.Tensor") if known is None else _tensor(storage, offset, size, stride, dtype=known)


def _parameter(data: Any = None, *_: Any) -> Any:
    return data


def _typed(function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    """Return a tensor with attributes, or of a subclass, as the plain tensor it is rebuilt from."""
    if not isinstance(function, Inert) or not isinstance(arguments, tuple):
        raise MalformedError("a tensor of impossible type")
    build = BUILDERS.get(function.name) if function.name.startswith("torch._utils.") else None
    return Inert(function.name) if build is None else build(*arguments)


def _array(kind: Any = None, *_: Any) -> Inert:
    return Inert(kind.name if isinstance(kind, Inert) else "numpy.ndarray")


def _from_bytes(content: Any) -> Any:
    """Return the storage that a plain pickle of a tensor holds: a file of torch's old format inside it."""
    if not isinstance(content, bytes):
        raise MalformedError("a storage that is no bytes")
    return _pickled(io.BytesIO(content), content).content


FROM_BYTES = "torch.storage._load_from_bytes"
BUILDERS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": as_dict,
    "collections.defaultdict": lambda _factory=None, pairs=(): as_dict(pairs),
    "collections.Counter": as_dict,
    "builtins.dict": as_dict,
    "torch.Size": lambda size=(): _shape(size),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
}
