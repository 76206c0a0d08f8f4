"""A layer between rulequant and the system, in this process or in the workers, in which a chosen call fails."""

from __future__ import annotations

import fcntl
import os
import pathlib
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rulequant.torch.checkpoint import crew, rename, staging

__all__ = ["CALLS", "Fault", "FaultLayer", "WorkersLayer", "join"]

CALLS = (
    "open", "close", "mkdir", "write", "pwrite", "pwritev", "copy_file_range", "ftruncate", "posix_fallocate", "fsync",
    "fdatasync", "rename", "replace", "rename_without_replacing",
)  # fmt: skip
"""What writes, names or brings to the disk; `open` is that of the sources too."""


class FaultLayer:
    """Counts the calls by name, and lets the one of a given number raise an OSError; or that and all after it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._faults: tuple[str, int, int, bool] | None = None

    @contextmanager
    def installed(self) -> Iterator[FaultLayer]:
        """All calls pass through the layer."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                if hasattr(os, name):
                    patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
            patch.setattr(
                staging,
                "rename_without_replacing",
                self._wrapped("rename_without_replacing", rename.rename_without_replacing),
            )
            accessor: Any = getattr(pathlib, "_NormalAccessor", None)  # Python 3.10: a copy of the names in os
            for name in ("open", "mkdir", "rename", "replace") if accessor else ():
                patch.setattr(accessor, name, staticmethod(getattr(os, name)))
            yield self

    @contextmanager
    def failing(self, name: str, number: int, code: int, *, persistent: bool) -> Iterator[None]:
        """Let call `number` of `name` fail, counted from 1, and where `persistent` all of that name after it."""
        self.counts.clear()
        self._faults = name, number, code, persistent
        try:
            yield
        finally:
            self._faults = None

    def _wrapped(self, name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.counts[name] += 1
            if self._faults:
                failing, number, code, persistent = self._faults
                count = self.counts[name]
                if name == failing and (count == number or (persistent and count > number)):
                    raise OSError(code, os.strerror(code))
            return usual(*arguments, **options)

        return call


class Fault(NamedTuple):
    """Call `number` of `name`, counted from 1 over all workers, fails; where `persistent`, so do all after it."""

    name: str
    number: int
    code: int
    persistent: bool


class WorkersLayer:
    """The same in the head of a crew and in its workers, and not here; they count together, in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._counts = folder / "counts"

    @contextmanager
    def installed(self, fault: Fault | None = None) -> Iterator[None]:
        """All heads that start meanwhile have the layer."""
        self._counts.write_bytes(bytes(_NUMBER.size * len(CALLS)))
        layer = f"import fault_layer; fault_layer.join({str(self._counts)!r}, {fault and tuple(fault)!r}); "
        with pytest.MonkeyPatch.context() as patch:
            path = "import sys; sys.path[:] = sys.argv[2:]; "
            patch.setattr(crew, "_START", path + layer + crew._START)
            yield

    @property
    def counts(self) -> dict[str, int]:
        """The calls of the last run, by name."""
        data = self._counts.read_bytes()
        return {name: _NUMBER.unpack_from(data, _NUMBER.size * place)[0] for place, name in enumerate(CALLS)}


_NUMBER = struct.Struct("=q")
_open, _pwrite = os.open, os.pwrite


def join(counts: str, fault: tuple[str, int, int, bool] | None) -> None:
    """In a head: have its calls, and those of its copies, counted, and the one fail that should."""
    fd = _open(counts, os.O_RDWR)
    for place, name in enumerate(CALLS):
        if hasattr(os, name):
            number = fault[1:] if fault and fault[0] == name else None
            setattr(os, name, _counted(getattr(os, name), fd, _NUMBER.size * place, number))


def _counted(usual: Callable[..., Any], fd: int, place: int, fault: tuple[int, int, bool] | None) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        count = _count(fd, place)
        if fault and (count == fault[0] or (fault[2] and count > fault[0])):
            raise OSError(fault[1], os.strerror(fault[1]))
        return usual(*arguments, **options)

    return call


def _count(fd: int, place: int) -> int:
    """One more of a call; the lock goes with a process that is killed here."""
    fcntl.lockf(fd, fcntl.LOCK_EX)
    try:
        count = int(_NUMBER.unpack(os.pread(fd, _NUMBER.size, place))[0]) + 1
        _pwrite(fd, _NUMBER.pack(count), place)
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN)
    return count
