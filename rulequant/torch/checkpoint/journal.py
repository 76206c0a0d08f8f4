"""What a run writes down of the shards it has finished, so that the next one can go on where it ended."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import close_read, hash_file, open_regular, read_exactly, strict_json
from rulequant.torch.checkpoint.partfile import explained, write_file
from rulequant.torch.checkpoint.recipe import Recipe
from rulequant.torch.checkpoint.sealed import seal
from rulequant.torch.checkpoint.shards import ShardResult

__all__ = ["Journal"]

_RECIPE_NAME = "recipe.json"
_RECORDS_NAME = "shards"
_SUFFIX = ".json"
_SEAL = "sha256_of_record"
_MAX_BYTES = 100_000_000
_HASHING_THREADS = 4


class Journal:
    """The recipe of a run, and a record of each shard that is finished, beside the files in a staging folder.

    Each is a small file of its own, complete or absent. Nothing of it is trusted: a shard is taken over only where its
    bytes still have the hash that was written down.
    """

    def __init__(self, folder: Path, files: Path) -> None:
        """`folder` is the staging folder, `files` the folder in it that becomes the output."""
        self._recipe = folder / _RECIPE_NAME
        self._records = folder / _RECORDS_NAME
        self._files = files

    @property
    def names(self) -> list[str]:
        """The shards that are recorded."""
        try:
            found = [] if self._records.is_symlink() else list(self._records.iterdir())
        except OSError:
            return []
        return sorted(unquote(each.name.removesuffix(_SUFFIX)) for each in found if each.name.endswith(_SUFFIX))

    def begin(self, recipe: Recipe) -> None:
        """Write the recipe down; CheckpointError if that fails."""
        with explained(self._records):
            self._records.mkdir(exist_ok=True)
        write_file(self._recipe, seal(recipe.to_dict(), _SEAL))

    def add(self, result: ShardResult) -> None:
        """Write down that a shard is finished; CheckpointError if that fails."""
        write_file(self._record(result.name), seal(asdict(result), _SEAL))

    def found(self) -> Mapping[str, Any] | None:
        """The recipe that an earlier run wrote down; None where there is none that can be read."""
        return _read(self._recipe)

    def take(self) -> dict[str, ShardResult]:
        """The recorded shards whose bytes are what they were; of all other files nothing is left.

        Raises:
            CheckpointError: a file cannot be removed.
        """
        recorded = [each for each in (self._read(name) for name in self.names) if each]
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            intact = list(pool.map(self._is_intact, recorded))
        kept = {result.name: result for result, fits in zip(recorded, intact, strict=True) if fits}
        with explained(self._files):
            _clear(self._files, kept)
            _clear(self._records, {self._record(name).name for name in kept})
        return kept

    def remove(self) -> None:
        """Forget everything; what cannot be removed stays."""
        for each in (self._recipe, self._records):
            with suppress(OSError):
                _remove(each)

    def _record(self, name: str) -> Path:
        # A shard of a pipeline lies in the folder of its component; the records lie in one.
        return self._records / f"{quote(name, safe='')}{_SUFFIX}"

    def _read(self, name: str) -> ShardResult | None:
        data = _read(self._record(name))
        try:
            result = ShardResult(**data) if data else None
        except TypeError:
            return None  # of a version whose records are others
        return result if result and result.name == name else None

    def _is_intact(self, result: ShardResult) -> bool:
        path = self._files / result.name
        try:
            state = path.lstat()
            if not stat.S_ISREG(state.st_mode) or state.st_size != result.size:
                return False
            return hash_file(path, root=self._files) == result.sha256
        except (OSError, CheckpointError):
            return False


def _read(path: Path) -> dict[str, Any] | None:
    """The data of a sealed file; None where it is missing, or not the text that was written."""
    try:
        fd = open_regular(path, root=path.parent)
    except CheckpointError:
        return None
    try:
        size = os.fstat(fd).st_size
        text = bytes(read_exactly(fd, 0, size, path)) if size <= _MAX_BYTES else b""
        data = strict_json(text, path.name)
    except CheckpointError:
        return None
    finally:
        close_read(fd)
    if not isinstance(data, dict) or not data.pop(_SEAL, None):
        return None
    return data if seal(data, _SEAL) == text else None


def _clear(folder: Path, kept: Collection[str]) -> None:
    """Remove all but the files of these paths in the folder."""
    for each in list(folder.iterdir()):
        inside = [name.removeprefix(f"{each.name}/") for name in kept if name.startswith(f"{each.name}/")]
        if inside and each.is_dir() and not each.is_symlink():
            _clear(each, inside)
        elif each.name not in kept:
            _remove(each)


def _remove(path: Path) -> None:
    """Remove a file or a folder; a link itself, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
