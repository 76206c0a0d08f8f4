"""The names of module classes that torch and transformers have, to tell a misspelt type from a rare one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["FILE", "known_types"]

FILE = Path(__file__).with_name("known_types.txt")
"""Written by `scripts/known_types.py`; its first line says of which versions."""


@cache
def known_types() -> frozenset[str]:
    """All known class names."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return frozenset(each for each in lines if each and not each.startswith("#"))
