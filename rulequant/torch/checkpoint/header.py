"""The header of one safetensors file, parsed strictly: which tensors lie where, nothing taken on trust."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import LARGEST_INT, damaged, printable, read_exactly, strict_json

__all__ = [
    "DTYPE_NAMES",
    "FLOATS",
    "ITEM_SIZES",
    "MAX_HEADER_BYTES",
    "SPELLINGS",
    "Header",
    "TensorEntry",
    "parse_header",
    "printable",
    "read_header",
]

# The limit of the safetensors library itself.
MAX_HEADER_BYTES = 100_000_000

# The largest known models have some 90,000 tensors in all their files; each costs about a kilobyte to hold.
_MAX_TENSORS = 500_000

# Bytes per element of each dtype that safetensors knows by name and that fills whole bytes.
ITEM_SIZES: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2": 1,
    "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}

# As torch and the inventory spell the dtypes that are read.
DTYPE_NAMES: Mapping[str, str] = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
# How safetensors spells what is written; a method may well make tensors that are not read.
SPELLINGS: Mapping[str, str] = {name: dtype for dtype, name in DTYPE_NAMES.items()} | {
    "uint16": "U16", "uint32": "U32", "uint64": "U64", "complex64": "C64", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fn": "F8_E4M3", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

_SUB_BYTE_DTYPES = frozenset({"F4", "F6_E2M3", "F6_E3M2"})
_ENTRY_KEYS = frozenset({"dtype", "shape", "data_offsets"})
_LFS_MAGIC = b"version https://git-lfs"
_DOWNLOAD_AGAIN = "download the file again"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file. `start` and `end` are byte offsets from the beginning of the file `shard`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    shard: str

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.end - self.start

    @property
    def item_size(self) -> int:
        """Bytes of an element."""
        return ITEM_SIZES[self.dtype]

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar (shape `()`)."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: tensors by name, in the order of their bytes, and free-text metadata."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int


def read_header(fd: int, path: Path) -> Header:
    """Read and check the header of an open safetensors file.

    Raises:
        CheckpointError: not a safetensors file, not complete, or not consistent in itself.
    """
    size = os.fstat(fd).st_size
    length = _header_length(fd, size, path)
    return parse_header(read_exactly(fd, 8, length, path), file_size=size, path=path)


def parse_header(text: bytes | bytearray, *, file_size: int, path: Path) -> Header:
    """Check the header's JSON text against the size of the file (in bytes) that it describes.

    A tensor's dtype, shape and offsets must agree; the tensors fill the file without gap or overlap.

    Raises:
        CheckpointError: naming the file and the tensor.
    """
    where = printable(path)
    # The format asks for the brace first; padding may follow, never lead.
    if not text.startswith(b"{"):
        raise damaged(where, "the header does not begin with `{`, so this is not a safetensors file")
    if text.count(b"{") > _MAX_TENSORS:
        raise damaged(where, f"the header names more than {_MAX_TENSORS:,} tensors")
    raw = strict_json(text, where)
    if not isinstance(raw, dict):
        raise damaged(where, "the header is not a JSON object")
    metadata = _metadata(raw.pop("__metadata__", None), where)
    data_start = 8 + len(text)
    entries = [_entry(name, value, data_start, path) for name, value in raw.items()]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    _check_layout(entries, data_start=data_start, file_size=file_size, where=where)
    return Header({entry.name: entry for entry in entries}, metadata, data_start)


def _header_length(fd: int, size: int, path: Path) -> int:
    where = printable(path)
    start = read_exactly(fd, 0, min(size, 32), path)
    if start.startswith(_LFS_MAGIC):
        raise CheckpointError(
            f"{where}: a Git LFS pointer ({size} bytes), not the weights",
            remedy="run `git lfs pull` in the folder of the checkpoint",
        )
    if size < 8:
        raise CheckpointError(
            f"{where}: {size} bytes, too few for a safetensors file: the download is incomplete",
            remedy=_DOWNLOAD_AGAIN,
        )
    (length,) = struct.unpack_from("<Q", start)
    if length > MAX_HEADER_BYTES:
        raise damaged(
            where,
            f"it claims a header of {length:,} bytes, at most {MAX_HEADER_BYTES:,} are allowed, so this is "
            "not a safetensors file",
        )
    if length > size - 8:
        raise CheckpointError(
            f"{where}: the download is incomplete: expected at least {length + 8:,} bytes (for the header), "
            f"the file has {size:,}",
            remedy=_DOWNLOAD_AGAIN,
        )
    return int(length)


def _metadata(value: object, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise damaged(where, "`__metadata__` must map names to strings")
    return value


def _entry(name: str, value: object, data_start: int, path: Path) -> TensorEntry:
    where = f"{printable(path)}: tensor `{printable(name)}`"
    if not name.isprintable():
        raise damaged(where, "its name has control or invisible characters")
    if not isinstance(value, dict) or value.keys() != _ENTRY_KEYS:
        raise damaged(where, "it must have exactly dtype, shape and data_offsets")
    dtype, item_size = _dtype(value["dtype"], where)
    shape = _naturals(value["shape"], "shape", where)
    offsets = _naturals(value["data_offsets"], "data_offsets", where)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(where, f"data_offsets must be [start, end], got {printable(list(offsets))}")
    begin, end = offsets
    expected = _numel(shape, where) * item_size
    if end - begin != expected:
        raise damaged(
            where,
            f"{dtype} of shape {printable(list(shape))} needs {expected:,} bytes, data_offsets give {end - begin:,}",
        )
    return TensorEntry(name, dtype, shape, data_start + begin, data_start + end, path.name)


def _dtype(value: object, where: str) -> tuple[str, int]:
    if isinstance(value, str) and value in ITEM_SIZES:
        return value, ITEM_SIZES[value]
    if isinstance(value, str) and value in _SUB_BYTE_DTYPES:
        raise CheckpointError(
            f"{where}: dtype {value} packs elements smaller than a byte, which rulequant does not read",
            remedy="start from the checkpoint before it was quantized",
        )
    raise damaged(where, f"unknown dtype {printable(repr(value))}; known: {', '.join(sorted(ITEM_SIZES))}")


def _naturals(value: object, key: str, where: str) -> tuple[int, ...]:
    # `type(...) is int`, because JSON's true is an int to isinstance.
    if isinstance(value, list) and all(type(each) is int and 0 <= each <= LARGEST_INT for each in value):
        return tuple(value)
    raise damaged(where, f"{key} must be a list of whole numbers from 0 to 2**63 - 1, got {printable(value)}")


def _numel(shape: Sequence[int], where: str) -> int:
    if 0 in shape:
        return 0
    count = 1
    for size in shape:
        count *= size
        if count > LARGEST_INT:
            raise damaged(where, f"shape {printable(list(shape))} has more elements than 64 bits count")
    return count


def _check_layout(entries: Sequence[TensorEntry], *, data_start: int, file_size: int, where: str) -> None:
    position, previous = data_start, "the header"
    for entry in entries:
        name = f"tensor `{printable(entry.name)}`"
        if entry.start < position:
            raise damaged(where, f"{name} overlaps {previous}: it starts {position - entry.start:,} bytes too early")
        if entry.start > position:
            raise damaged(where, f"{entry.start - position:,} bytes between {previous} and {name} belong to no tensor")
        position, previous = entry.end, name
    if file_size < position:
        raise CheckpointError(
            f"{where}: the download is incomplete: expected {position:,} bytes, the file has {file_size:,}",
            remedy=_DOWNLOAD_AGAIN,
        )
    if file_size > position:
        raise damaged(where, f"{file_size - position:,} bytes after {previous} belong to no tensor")
