"""A checkpoint folder opened for reading: one list of tensors over all its shards, read by position."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import (
    close_read,
    cut_short,
    hash_fd,
    open_regular,
    printable,
    read_exactly,
    read_into,
)
from rulequant.torch.checkpoint.header import MAX_HEADER_BYTES, Header, TensorEntry, read_header
from rulequant.torch.checkpoint.layout import (
    INDEX_NAME,
    MODEL_STEM,
    SINGLE_NAME,
    check_index,
    find_layout,
    index_name,
    merge_headers,
    natural_key,
)

__all__ = ["INDEX_NAME", "SINGLE_NAME", "CheckpointReader", "natural_key"]

_MAX_OPEN_SHARDS = 16
_SAMPLED_TENSORS = 128
"""Of each file; on a disk that turns, each costs a move of its arm."""
_SAMPLE_BYTES = 64


class _Stamp(NamedTuple):
    """What tells one state of a file from another. (Not the inode: some network file systems change it.)"""

    size: int
    mtime_ns: int


@dataclass(slots=True)
class _OpenShard:
    fd: int
    users: int = 0


class CheckpointReader:
    """The tensors of a checkpoint folder, read by position and never mapped; threads may share one reader.

    `tensors` is in natural order of the names; `metadata` has the free text of each shard's header.
    """

    has_files = True
    """Whether the tensors lie in files, so that `copy` works."""

    def __init__(self, folder: Path, stem: str = MODEL_STEM) -> None:
        """An empty reader; use `CheckpointReader.open`."""
        self.folder = folder
        self._index_name = index_name(stem)
        self._stem = stem
        self.tensors: Mapping[str, TensorEntry] = {}
        self.metadata: Mapping[str, Mapping[str, str]] = {}
        self._stamps: dict[str, _Stamp] = {}
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, folder: Path, stem: str = MODEL_STEM) -> CheckpointReader:
        """Open a folder with `model.safetensors`, or with an index and its shards, and check them all.

        Names that begin with something else than `model` have that for `stem`.
        Every header is read, and compared with the index; no weight is.

        Raises:
            CheckpointError: naming the file, the tensor and what to do.
        """
        reader = cls(folder, stem)
        try:
            reader._load()
        except BaseException:
            reader.close()
            raise
        return reader

    @classmethod
    def attach(cls, folder: Path, fingerprint: Mapping[str, Mapping[str, int]]) -> CheckpointReader:
        """A reader of a folder that was opened before, maybe by another process; it knows no tensors by name.

        A file that is not as the fingerprint says is refused when it is opened.
        """
        reader = cls(folder)
        reader._stamps = {file: _Stamp(each["size"], each["mtime_ns"]) for file, each in fingerprint.items()}
        return reader

    def __enter__(self) -> CheckpointReader:
        """The reader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files."""
        self.close()

    def close(self) -> None:
        """Close all files; a read that still runs in another thread closes its own when it ends."""
        with self._lock:
            self._closed = True
            for shard in [name for name, each in self._open.items() if each.users == 0]:
                close_read(self._open.pop(shard).fd)

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the files that hold tensors."""
        return tuple(self.metadata)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.nbytes for entry in self.tensors.values())

    def entry(self, name: str) -> TensorEntry:
        """Where a tensor lies; CheckpointError for a name that the checkpoint lacks."""
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{printable(self.folder)}: no tensor `{printable(name)}`") from None

    def read(self, name: str) -> bytearray:
        """All bytes of a tensor."""
        return self.read_slice(name, 0, self.entry(name).nbytes)

    def read_slice(self, name: str, start_byte: int, length: int) -> bytearray:
        """`length` bytes of a tensor from its byte `start_byte` on."""
        data = bytearray(length)
        self.read_into(name, start_byte, data)
        return data

    def read_into(self, name: str, start_byte: int, buffer: bytearray | memoryview) -> None:
        """Fill a buffer with the bytes of a tensor from its byte `start_byte` on.

        Raises:
            CheckpointError: the file changed since it was opened, or cannot be read.
            ValueError: the slice leaves the tensor.
        """
        self.fill(self.entry(name), start_byte, buffer)

    def fill(self, entry: TensorEntry, start_byte: int, buffer: bytearray | memoryview) -> None:
        """As `read_into`, of an entry."""
        length = memoryview(buffer).nbytes
        _check_slice(entry, start_byte, length)
        with self._descriptor(entry.shard) as fd:
            read_into(fd, entry.start + start_byte, buffer, self.folder / entry.shard)

    def expect(self, entry: TensorEntry, start_byte: int, length: int) -> None:
        """Tell the system that bytes of a tensor will be read soon."""
        if self.has_files and hasattr(os, "posix_fadvise"):
            with self._descriptor(entry.shard) as fd:
                os.posix_fadvise(fd, entry.start + start_byte, length, os.POSIX_FADV_WILLNEED)

    def copy(self, entry: TensorEntry, start_byte: int, length: int, copy: Callable[[int, int, int], int]) -> None:
        """Have bytes of a tensor copied from file to file.

        `copy` is called with a descriptor, an offset and a length until all are done, and returns how many it copied.

        Raises:
            CheckpointError: the file ends too early; what `copy` raises passes as it is.
        """
        _check_slice(entry, start_byte, length)
        position, end = entry.start + start_byte, entry.start + start_byte + length
        with self._descriptor(entry.shard) as fd:
            while position < end:
                count = copy(fd, position, end - position)
                if count == 0:
                    raise cut_short(self.folder / entry.shard, position, end - position)
                position += count

    def sha256(self, file: str) -> str:
        """The sha256, in hex, of the index or of a shard."""
        if file not in self._stamps:
            raise ValueError(f"{file!r} is neither the index nor a shard")
        with self._descriptor(file) as fd:
            return hash_fd(fd, self.folder / file)

    def fingerprint(self) -> dict[str, dict[str, int]]:
        """Size in bytes and time of change of the index and of each shard, as they were when opened."""
        return {file: {"size": stamp.size, "mtime_ns": stamp.mtime_ns} for file, stamp in sorted(self._stamps.items())}

    def content_sha256(self) -> str:
        """The sha256, in hex, of a few bytes from the middle of many tensors of each shard.

        It tells one training of a model from another where sizes and times do not: some archives and stores give all
        files the same time. Restored copies of the same files have the same.
        """
        digest = hashlib.sha256()
        for entry in self._sampled():
            length = min(entry.nbytes, _SAMPLE_BYTES)
            digest.update(self.read_slice(entry.name, (entry.nbytes - length) // 2, length))
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the index or a shard is no longer the file that was opened."""
        for file in self._stamps:
            close_read(self._open_checked(file))

    def _sampled(self) -> Iterator[TensorEntry]:
        """At most so many of each shard, all over it, in the order of its bytes."""
        by_shard: dict[str, list[TensorEntry]] = {}
        for entry in self.tensors.values():
            by_shard.setdefault(entry.shard, []).append(entry)
        for _, entries in sorted(by_shard.items()):
            entries.sort(key=lambda each: each.start)
            yield from entries[:: -(-len(entries) // _SAMPLED_TENSORS)]

    def _load(self) -> None:
        layout = find_layout(self.folder, self._read_index, self._stem)
        headers = {shard: self._read_header(shard) for shard in layout.shards}
        entries = merge_headers(headers, self.folder)
        if layout.index is not None:
            check_index(layout.index, entries, self.folder / self._index_name)
        self.tensors = {name: entries[name] for name in sorted(entries, key=natural_key)}
        self.metadata = {shard: header.metadata for shard, header in headers.items()}

    def _read_header(self, shard: str) -> Header:
        with self._descriptor(shard) as fd:
            return read_header(fd, self.folder / shard)

    def _read_index(self) -> bytearray:
        path = self.folder / self._index_name
        with self._descriptor(self._index_name) as fd:
            size = os.fstat(fd).st_size
            if size > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{printable(path)}: an index of {size:,} bytes, at most {MAX_HEADER_BYTES:,} are allowed"
                )
            return read_exactly(fd, 0, size, path)

    @contextmanager
    def _descriptor(self, file: str) -> Iterator[int]:
        shard = self._acquire(file)
        try:
            yield shard.fd
        finally:
            self._release(file, shard)

    def _acquire(self, file: str) -> _OpenShard:
        with self._lock:
            if self._closed:
                raise ValueError("the reader is closed")
            shard = self._open.get(file)
            if shard is None:
                shard = self._open[file] = _OpenShard(self._open_checked(file))
            self._open.move_to_end(file)
            shard.users += 1
            self._close_oldest()
            return shard

    def _release(self, file: str, shard: _OpenShard) -> None:
        with self._lock:
            shard.users -= 1
            if self._closed and shard.users == 0:
                close_read(self._open.pop(file).fd)

    def _open_checked(self, file: str) -> int:
        path = self.folder / file
        fd = open_regular(path, root=self.folder)
        state = os.fstat(fd)
        stamp = _Stamp(state.st_size, state.st_mtime_ns)
        if self._stamps.setdefault(file, stamp) == stamp:
            return fd
        close_read(fd)
        raise CheckpointError(
            f"{printable(path)}: the file changed while the checkpoint was read",
            remedy="leave the folder alone while rulequant reads it, and run again",
        )

    def _close_oldest(self) -> None:
        idle = [name for name, each in self._open.items() if each.users == 0]
        for name in idle[: max(0, len(self._open) - _MAX_OPEN_SHARDS)]:
            close_read(self._open.pop(name).fd)


def _check_slice(entry: TensorEntry, start_byte: int, length: int) -> None:
    if start_byte < 0 or start_byte + length > entry.nbytes:
        raise ValueError(f"bytes {start_byte} to {start_byte + length} of a tensor of {entry.nbytes}")
