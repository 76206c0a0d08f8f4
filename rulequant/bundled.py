"""The bundled rule files as paths: names only, nothing is read."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

__all__ = ["PREFIX", "bundled_names", "bundled_path"]

PREFIX = "bundled:"
"""How messages call a bundled file, whose path says nothing to its reader."""


@cache
def _folder() -> Path:
    # Not by importlib.resources: importing that takes as long as reading and checking a rule file.
    return Path(import_module("rulequant.rules").__path__[0])


@cache
def bundled_names() -> tuple[str, ...]:
    """The names of all bundled rule files, sorted."""
    return tuple(sorted(each.stem for each in _folder().glob("*.yaml")))


def bundled_path(name: str) -> Path | None:
    """The file of a bundled name; None where there is none."""
    return _folder() / f"{name}.yaml" if name in bundled_names() else None
