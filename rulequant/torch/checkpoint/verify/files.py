"""The files of an output against its manifest, several at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rulequant.diagnostics import Diagnostic
from rulequant.torch.checkpoint.manifest import FileProblem, FileRecord, Manifest, compare_file, unlisted_files

__all__ = ["check_files", "compare_all"]

_FINDINGS = {
    "changed": ("RQ530", "get the file again from where the folder came from, or make the output again"),
    "missing": ("RQ531", "get the file again from where the folder came from, or make the output again"),
    "added": ("RQ532", "move it elsewhere, unless you put it there yourself"),
}
_STEP = 16 << 20
"""Bytes between two calls of `told`, so that threads do not wait for each other."""

Told = Callable[[str, int], None]


def check_files(
    folder: Path, manifest: Manifest, *, quick: bool = False, told: Told = lambda *_: None
) -> list[Diagnostic]:
    """Every file that is not what the manifest says, and every one that it does not list; by size alone where `quick`.

    `told` is called with a file's name and the bytes of it that were read, by one thread at a time.
    """
    compared = compare_all(folder, manifest.files, quick=quick, told=told)
    return list(_findings([*compared, *unlisted_files(folder, manifest)]))


def compare_all(
    folder: Path, files: Mapping[str, FileRecord], *, quick: bool = False, told: Told = lambda *_: None
) -> list[FileProblem]:
    """The files of a folder that are missing there, or not as their records say; as `check_files`."""
    lock = threading.Lock()

    def compare(name: str) -> FileProblem | None:
        with _Steps(name, told, lock) as steps:
            return compare_file(folder, name, files[name], quick=quick, told=steps.add)

    # The interpreter lock is free while a file is read and hashed; memory is a piece of a file for each thread.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return [*filter(None, pool.map(compare, files))]


def _findings(problems: list[FileProblem]) -> Iterator[Diagnostic]:
    for each in problems:
        code, remedy = _FINDINGS[each.kind]
        yield Diagnostic(code, each.message, value=each.file, remedy=remedy)


class _Steps:
    """Collects small steps of one file, and tells the sum of many."""

    def __init__(self, name: str, told: Told, lock: threading.Lock) -> None:
        self._name, self._told, self._lock = name, told, lock
        self._untold = 0

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *_: object) -> None:
        self._tell()

    def add(self, nbytes: int) -> None:
        self._untold += nbytes
        if self._untold >= _STEP:
            self._tell()

    def _tell(self) -> None:
        with self._lock:
            self._told(self._name, self._untold)
        self._untold = 0
