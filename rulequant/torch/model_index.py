"""model_index.json of a pipeline of diffusers: its class, and the library of each of its components."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rulequant.errors import CheckpointError, ModelError
from rulequant.torch.checkpoint.files import close_read, open_regular, printable, read_exactly, strict_json

__all__ = ["INDEX", "ModelIndex", "read_index"]

INDEX = "model_index.json"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelIndex:
    """What it says."""

    kind: str
    """The class of the pipeline."""
    libraries: Mapping[str, str]
    """By component, in the order of the file; without those that the pipeline does without."""


def read_index(folder: Path) -> ModelIndex:
    """Read it.

    Raises:
        ModelError: it cannot be read, or says something else than a pipeline does.
    """
    path = folder / INDEX
    data = _data(path)
    kind = data.get("_class_name")
    if not isinstance(kind, str):
        raise ModelError(f"{path}: `_class_name`, the class of the pipeline, is missing")
    return ModelIndex(kind, dict(_entries(data, path)))


def _data(path: Path) -> dict[str, Any]:
    try:
        fd = open_regular(path, root=path.parent)
        try:
            size = min(os.fstat(fd).st_size, _MAX_BYTES)
            data = strict_json(read_exactly(fd, 0, size, path), str(path))
        finally:
            close_read(fd)
    except CheckpointError as error:
        raise ModelError(error.message, remedy=error.remedy) from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a JSON object")
    return data


def _entries(data: dict[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    """(component, library); `[null, null]` is one that the pipeline does without."""
    for name, value in data.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2 or None in value:
            continue
        if not name.isidentifier():
            raise ModelError(f"{path}: {printable(repr(name))} is no name of a component")
        yield name, str(value[0])
