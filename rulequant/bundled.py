"""The bundled rule files as paths: names only, nothing is read."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

__all__ = ["PREFIX", "bundled_names", "bundled_path"]

PREFIX = "bundled:"
"""How messages call a bundled file, whose path says nothing to its reader."""


@cache
def _folder() -> Path:
    return Path(str(resources.files("rulequant.rules")))


@cache
def bundled_names() -> tuple[str, ...]:
    """The names of all bundled rule files, sorted."""
    return tuple(sorted(each.stem for each in _folder().glob("*.yaml")))


def bundled_path(name: str) -> Path | None:
    """The file of a bundled name; None where there is none."""
    return _folder() / f"{name}.yaml" if name in bundled_names() else None
