"""Safetensors files written tensor by tensor, never held in memory, and the index over them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rulequant.torch.checkpoint.header import ITEM_SIZES, MAX_HEADER_BYTES
from rulequant.torch.checkpoint.layout import INDEX_NAME, SINGLE_NAME
from rulequant.torch.checkpoint.partfile import PartFile, copy_file, write_file

__all__ = [
    "ShardWriter",
    "copy_file",
    "estimate_header",
    "plan_shards",
    "shard_names",
    "write_file",
    "write_index",
]

# What transformers writes; it refuses a file that says nothing.
_METADATA: Mapping[str, str] = {"format": "pt"}
_ALIGNMENT = 8
# Decimal digits of the largest 64-bit number, and a comma.
_NUMBER_BYTES = 20


class ShardWriter:
    """One safetensors file, written front to back as `<path>.part` and renamed by `close`.

    The header goes into `header_reserve` bytes at the front, and is written last, padded with spaces: a
    tensor's shape need not be known before it is added. Leaving the `with` block closes; an exception removes
    the file. Threads must not share a writer.

    Raises:
        CheckpointError: the disk is full, or the file may not be written.
        RuntimeError: the reserve is too small, or a tensor was not filled (the caller's mistake).
        ValueError: a name twice, or bytes that do not fit a shape (the caller's mistake).
    """

    def __init__(self, path: Path, *, header_reserve: int, metadata: Mapping[str, str] | None = None) -> None:
        """Create the file; `estimate_header` gives the reserve; no metadata means `{"format": "pt"}`."""
        self._reserve = _aligned(header_reserve)
        if not 0 < self._reserve <= MAX_HEADER_BYTES:
            raise ValueError(f"header_reserve must be from 1 to {MAX_HEADER_BYTES:,}, got {header_reserve:,}")
        self._header: dict[str, object] = {"__metadata__": dict(_METADATA if metadata is None else metadata)}
        self._written = 0
        self._due = 0
        self._file = PartFile(path)

    def __enter__(self) -> ShardWriter:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, or abort after an exception."""
        if kind is None:
            self.close()
        else:
            self.abort()

    @property
    def path(self) -> Path:
        """The final name of the file."""
        return self._file.path

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors so far, in order."""
        return tuple(name for name in self._header if name != "__metadata__")

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors so far, without the header."""
        return self._written

    def add(self, name: str, dtype: str, shape: Sequence[int], data: bytes | bytearray | memoryview) -> None:
        """Write a whole tensor: its bytes in C order, little-endian."""
        size = memoryview(data).nbytes
        if size != _nbytes(dtype, shape):
            raise ValueError(f"{name}: {dtype} of shape {list(shape)} is not {size:,} bytes")
        self.begin(name, dtype, shape)
        self.append(data)

    def begin(self, name: str, dtype: str, shape: Sequence[int]) -> None:
        """Start a tensor whose bytes `append` brings."""
        self._require_filled()
        if name in self._header:
            raise ValueError(f"{name}: already in {self.path.name}")
        self._due = _nbytes(dtype, shape)
        self._header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [self._written, self._written + self._due],
        }

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Write the next bytes of the tensor that `begin` started."""
        size = memoryview(data).nbytes
        if size > self._due:
            raise ValueError(f"{self.path.name}: {size:,} bytes for a tensor that lacks {self._due:,}")
        self._file.write(data, 8 + self._reserve + self._written, needed=self._due)
        self._written += size
        self._due -= size

    def close(self) -> None:
        """Write the header, sync, and give the file its name; on failure nothing is left."""
        try:
            self._require_filled()
            self._file.write(self._header_bytes(), 0)
        except BaseException:
            self.abort()
            raise
        self._file.finish()

    def abort(self) -> None:
        """Remove what was written so far; does nothing after `close`."""
        self._file.discard()

    def _require_filled(self) -> None:
        if self._due:
            raise RuntimeError(f"{self.path.name}: {self._due:,} bytes of `{self.names[-1]}` were not written")

    def _header_bytes(self) -> bytes:
        text = _json_bytes(self._header)
        if len(text) > self._reserve:
            raise RuntimeError(
                f"{self.path.name}: the header needs {len(text):,} bytes, {self._reserve:,} are reserved"
            )
        return struct.pack("<Q", self._reserve) + text.ljust(self._reserve)


def estimate_header(
    entries: Iterable[tuple[str, str, Sequence[int]]], *, metadata: Mapping[str, str] | None = None
) -> int:
    """Bytes that surely hold the header of these (name, dtype, shape), whatever numbers the shapes get."""
    size = len(_json_bytes({"__metadata__": dict(_METADATA if metadata is None else metadata)}))
    for name, dtype, shape in entries:
        frame = _json_bytes({name: {"dtype": dtype, "shape": [], "data_offsets": []}})
        size += len(frame) + _NUMBER_BYTES * (len(shape) + 2)
    return _aligned(size)


def plan_shards(sizes: Iterable[tuple[str, int]], max_shard_bytes: int) -> list[list[str]]:
    """Group consecutive (name, bytes) so that no group exceeds the limit, save one tensor larger than it."""
    if max_shard_bytes <= 0:
        raise ValueError(f"max_shard_bytes must be positive, got {max_shard_bytes}")
    shards: list[list[str]] = []
    filled = 0
    for name, size in sizes:
        if not shards or filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def shard_names(count: int) -> list[str]:
    """The file names of `count` shards, as transformers and its peers expect them."""
    if count == 1:
        return [SINGLE_NAME]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_index(
    folder: Path, weight_map: Mapping[str, str], *, total_size: int, total_parameters: int | None = None
) -> None:
    """Write `model.safetensors.index.json` as transformers does; `total_size` is the bytes of all tensors."""
    metadata = {"total_size": total_size}
    if total_parameters is not None:
        metadata["total_parameters"] = total_parameters
    index = {"metadata": metadata, "weight_map": dict(weight_map)}
    write_file(folder / INDEX_NAME, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode("ascii"))


def _nbytes(dtype: str, shape: Sequence[int]) -> int:
    if dtype not in ITEM_SIZES:
        raise ValueError(f"dtype must be one of {', '.join(sorted(ITEM_SIZES))}, got {dtype!r}")
    return math.prod(shape) * ITEM_SIZES[dtype]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _json_bytes(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
