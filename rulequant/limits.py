"""How much the patterns of a rule set come to with their braces written out, counted before any of them is expanded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from rulequant.diagnostics import Diagnostic, Location
from rulequant.globtext import MAX_LENGTH
from rulequant.globtext import MAX_SEGMENTS as MAX_SEGMENTS_OF_ONE
from rulequant.source import DataPath
from rulequant.sourcetext import shorten

__all__ = ["MAX_SEGMENTS", "past_limit", "patterns_of", "segments", "too_many"]

T = TypeVar("T")

MAX_SEGMENTS = 50_000
"""Of all patterns of a rule set. Memory and time of matching grow with them; this many is 7,000 full module names."""

_TOKEN = re.compile(r"\{(-?\d{1,9})\.\.(-?\d{1,9})(?:\.\.(\d{1,9}))?\}|\{(\w)\.\.(\w)(?:\.\.(\d{1,9}))?\}|[{},.]", re.A)


class _Size(NamedTuple):
    """How many alternatives there are, and dots in all of them together."""

    alternatives: int
    dots: int

    def either(self, other: _Size) -> _Size:
        """One or the other."""
        return _Size(self.alternatives + other.alternatives, self.dots + other.dots)

    def then(self, other: _Size) -> _Size:
        """One followed by the other, in every combination."""
        return _Size(
            self.alternatives * other.alternatives, self.dots * other.alternatives + other.dots * self.alternatives
        )


_NONE, _ONE, _DOT = _Size(0, 0), _Size(1, 0), _Size(1, 1)


def segments(pattern: str) -> int:
    """The segments of all alternatives of a pattern; 1 where it is malformed, and never more than one may have."""
    if len(pattern) > MAX_LENGTH:
        return 1
    if "{" not in pattern:
        return pattern.count(".") + 1
    # For each brace that is open: its words so far, and the word that is being read.
    stack = [(_NONE, _ONE)]
    for found in _TOKEN.finditer(pattern):
        words, word = stack[-1]
        match found[0]:
            case "{":
                stack.append((_NONE, _ONE))
            case ".":
                stack[-1] = (words, word.then(_DOT))
            case "," | "}" if len(stack) == 1:
                return 1  # malformed
            case ",":
                stack[-1] = (words.either(word), _ONE)
            case "}":
                stack.pop()
                stack[-1] = (stack[-1][0], stack[-1][1].then(words.either(word)))
            case _:
                stack[-1] = (words, word.then(_Size(_length(found), 0)))
    total = stack[-1][1]
    return min(total.alternatives + total.dots, MAX_SEGMENTS_OF_ONE) if len(stack) == 1 else 1


def _length(found: re.Match[str]) -> int:
    """How many words a range such as `{0..12}`, `{0..12..2}` or `{a..f}` stands for."""
    low, high = (int(found[1]), int(found[2])) if found[1] else (ord(found[4]), ord(found[5]))
    step = int(found[3] or found[6] or 1) or 1
    return abs(high - low) // step + 1


def past_limit(patterns: Iterable[tuple[str, T]]) -> tuple[str, T] | None:
    """The pattern, and what came with it, with which a rule set passes the limit, if there is one."""
    total = 0
    for text, place in patterns:
        total += segments(text)
        if total > MAX_SEGMENTS:
            return text, place
    return None


def too_many(pattern: str, place: Location) -> Diagnostic:
    """The error at the pattern that passes the limit."""
    return Diagnostic(
        "RQ306",
        f"with `{shorten(pattern)}` the patterns come to more than {MAX_SEGMENTS:,} segments, braces written out",
        place,
        value=shorten(pattern),
        remedy="write `*` where any number will do, and narrow with `layers`",
    )


def patterns_of(data: Any) -> Iterator[tuple[str, DataPath]]:
    """The patterns of a file, with their paths; the file may be wrong in any other way."""
    for key in ("skip_modules", "rules"):
        entries = data.get(key) if isinstance(data, dict) else None
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            yield from _patterns_of(entry, (key, index))


def _patterns_of(entry: Any, path: DataPath) -> Iterator[tuple[str, DataPath]]:
    if isinstance(entry, str):
        yield entry, path
    for key in ("modules", "except") if isinstance(entry, dict) else ():
        value = entry.get(key)
        for index, each in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(each, str):
                yield each, (*path, key, index)
