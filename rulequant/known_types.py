"""The names of module classes that torch and transformers have, to tell a misspelt type from a rare one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from rulequant.diagnostics import closest

__all__ = ["FILE", "known_types", "nearest_types"]

FILE = Path(__file__).with_name("known_types.txt")
"""Written by `scripts/known_types.py`; its first line says of which versions."""


@cache
def known_types() -> frozenset[str]:
    """All known class names."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return frozenset(each for each in lines if each and not each.startswith("#"))


def nearest_types(pattern: str) -> list[str]:
    """The class names most like one that is not known; for `*Xperts`, `LLama*` and `Experts` the patterns that are."""
    end = re.fullmatch(r"(.*[*?\]])(\w+)", pattern)
    start = re.fullmatch(r"(\w+)([*?\[].*)", pattern)
    whole = end[2] if end else pattern
    if whole in _parts()[1]:
        return [f"*{whole}"]  # what names end with: what stands before it is wrong, or missing
    if end:
        return [f"{end[1]}{each}" for each in _closest(end[2], _parts()[1])]
    if start:
        return [f"{each}{start[2]}" for each in _closest(start[1], _parts()[0])]
    return _closest(pattern, known_types())


def _closest(name: str, known: Iterable[str]) -> list[str]:
    # Among thousands of names something is a little like any word.
    return closest(name, known, cutoff=0.75)


@cache
def _parts() -> tuple[frozenset[str], frozenset[str]]:
    """What the known names start with, and what they end with, word by word."""
    cuts = [(name, found.start()) for name in known_types() for found in re.finditer(r"(?<![A-Z])[A-Z]", name)]
    return frozenset(name[:at] for name, at in cuts if at), frozenset(name[at:] for name, at in cuts)
