"""What tells one state of a file from another: the sha256 of all of it, and a crc32 of each tensor in it.

The sha256 is what is trusted. The checksums say where in a shard a change is; a crc32 finds any single changed byte.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import close_read, open_regular, read_into
from rulequant.torch.checkpoint.header import TensorEntry, read_header

__all__ = ["Digest", "checksums_fd", "digest_file"]

_CHUNK = 1 << 20
_SUFFIX = ".safetensors"

Told = Callable[[int], None]


class Digest(NamedTuple):
    """The sha256 of a file, in hex, and the crc32 of each tensor in it, in hex, in the order of the file."""

    size: int
    sha256: str
    crc32: dict[str, str]


def digest_file(path: Path, *, root: Path, told: Told = lambda _: None) -> Digest:
    """Read a file once, in pieces; `told` is called with the bytes of each.

    Only a file that is called safetensors has tensors, and only if its header can be read.

    Raises:
        CheckpointError: the file is missing, unreadable, not a regular file, or outside of `root`.
    """
    fd = open_regular(path, root=root)
    try:
        whole, checksums = hashlib.sha256(), _Checksums(_tensors(fd, path))
        for position, chunk in _pieces(fd, path):
            whole.update(chunk)
            checksums.update(chunk, position)
            told(len(chunk))
        return Digest(os.fstat(fd).st_size, whole.hexdigest(), checksums.finish())
    finally:
        close_read(fd)


def checksums_fd(fd: int, path: Path) -> dict[str, str]:
    """The crc32 of each tensor in an open file that is to have this name; its position is neither used nor moved.

    Raises:
        CheckpointError: it cannot be read.
    """
    checksums = _Checksums(_tensors(fd, path))
    for position, chunk in _pieces(fd, path):
        checksums.update(chunk, position)
    return checksums.finish()


def _tensors(fd: int, path: Path) -> Sequence[TensorEntry]:
    if path.suffix != _SUFFIX:
        return ()
    try:
        return tuple(read_header(fd, path).tensors.values())
    except CheckpointError:
        return ()


def _pieces(fd: int, path: Path) -> Iterator[tuple[int, memoryview]]:
    """All bytes of an open file, (offset, bytes); a piece is valid until the next is asked for."""
    buffer = memoryview(bytearray(_CHUNK))
    position, size = 0, os.fstat(fd).st_size
    while position < size:
        chunk = buffer[: size - position]
        read_into(fd, position, chunk, path)
        yield position, chunk
        position += len(chunk)


class _Checksums:
    """The crc32 of consecutive tensors, from the bytes of their file in order."""

    def __init__(self, tensors: Iterable[TensorEntry]) -> None:
        self._left = iter(tensors)
        self._current = next(self._left, None)
        self._value = 0
        self._done: dict[str, str] = {}

    def update(self, chunk: memoryview, start: int) -> None:
        """Take the bytes from offset `start` of the file on."""
        end = start + len(chunk)
        while self._current is not None and self._current.start < end:
            low, high = (max(start, min(end, each)) for each in (self._current.start, self._current.end))
            self._value = zlib.crc32(chunk[low - start : high - start], self._value)
            if self._current.end > end:
                return
            self._next(self._current)

    def finish(self) -> dict[str, str]:
        """All that were seen; a tensor without bytes at the end of the file has nothing to be seen."""
        while self._current is not None and self._current.nbytes == 0:
            self._next(self._current)
        return self._done

    def _next(self, tensor: TensorEntry) -> None:
        self._done[tensor.name] = f"{self._value:08x}"
        self._current, self._value = next(self._left, None), 0
