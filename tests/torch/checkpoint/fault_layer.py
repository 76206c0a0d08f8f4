"""A layer between rulequant and the system, in this process, in which a chosen call fails."""

from __future__ import annotations

import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rulequant.torch.checkpoint import rename, staging

__all__ = ["CALLS", "FaultLayer"]

CALLS = (
    "open", "mkdir", "write", "pwrite", "pwritev", "copy_file_range", "ftruncate", "posix_fallocate", "fsync",
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
