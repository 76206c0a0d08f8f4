"""What carries out units: the source opened for reading, the files of the output for writing."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rulequant.torch.checkpoint.files import MAX_CALL_BYTES
from rulequant.torch.checkpoint.header import TensorEntry
from rulequant.torch.checkpoint.partfile import explained, open_part, write_at
from rulequant.torch.checkpoint.reader import CheckpointReader

__all__ = ["Bench"]

# What a file system says that cannot copy between these two files, or not at all.
_NO_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.ETXTBSY, errno.EPERM})
_CHUNK = 1 << 20
_MAX_OPEN = 4
"""More files than are written at a time."""


class Bench:
    """One process's view of a source and an output folder; to be closed."""

    def __init__(
        self, reader: CheckpointReader, folder: Path, *, mean_threads: int, outputs: Mapping[str, int] | None = None
    ) -> None:
        """`mean_threads` is the number of threads with which torch takes the one mean whose bits depend on it.

        `outputs` are descriptors of files that have no names yet, by those that they may get; they are closed with it.
        """
        self.reader = reader
        self.folder = folder
        self.mean_threads = mean_threads
        self._outputs: dict[str, int] = dict(outputs or {})
        self._copies_in_kernel = hasattr(os, "copy_file_range")

    def close(self) -> None:
        """Close the files of the output; the reader is its owner's."""
        while self._outputs:
            with suppress(OSError):
                os.close(self._outputs.popitem()[1])

    def output(self, shard: str) -> int:
        """The descriptor of a file that is being written."""
        if shard not in self._outputs:
            self._outputs[shard] = open_part(self.folder / shard)
            for oldest in list(self._outputs)[:-_MAX_OPEN]:
                with explained(self.folder / oldest):  # some file systems write only now
                    os.close(self._outputs.pop(oldest))
        return self._outputs[shard]

    def write(self, shard: str, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write at a byte offset."""
        write_at(self.output(shard), data, offset, self.folder / shard)

    def copy(self, entry: TensorEntry, start_byte: int, length: int, shard: str, offset: int) -> None:
        """Copy bytes of a source tensor; in the kernel where it can."""
        target, path = self.output(shard), self.folder / shard
        if not self.reader.has_files:
            self._copy_from_memory(entry, start_byte, length, shard, offset)
            return
        shift = offset - entry.start - start_byte

        def copy(fd: int, position: int, count: int) -> int:
            if self._copies_in_kernel:
                try:
                    return os.copy_file_range(fd, target, min(count, MAX_CALL_BYTES), position, position + shift)
                except OSError as error:
                    if error.errno not in _NO_COPY:
                        raise
                    self._copies_in_kernel = False
            data = os.pread(fd, min(count, _CHUNK), position)
            write_at(target, data, position + shift, path)
            return len(data)

        with explained(path, needed=length):
            self.reader.copy(entry, start_byte, length, copy)

    def _copy_from_memory(self, entry: TensorEntry, start_byte: int, length: int, shard: str, offset: int) -> None:
        for at in range(0, length, _CHUNK):
            data = bytearray(min(_CHUNK, length - at))
            self.reader.fill(entry, start_byte + at, data)
            self.write(shard, data, offset + at)

    @contextmanager
    def mapped(self, shard: str, offset: int, length: int) -> Iterator[NDArray[np.uint8]]:
        """Bytes of a file that is being written, without a copy of them in memory; only to be read."""
        if not length:
            yield np.empty(0, np.uint8)
            return
        with explained(self.folder / shard):
            view = mmap.mmap(self.output(shard), length, offset=offset)
        values = np.frombuffer(view, np.uint8)
        try:
            yield values
        finally:
            del values
            with suppress(BufferError):  # a traceback may hold a view; it is unmapped with the last of them
                view.close()
