"""Names that differ in numbers alone, as one pattern: `model.layers.{0..3}.mlp`, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

__all__ = ["brace", "expand", "is_number", "is_range", "numbers_of", "products", "shape_of", "spell"]

_RUN = r"\d+\.\.\d+"
_BRACE = re.compile(rf"\{{(?:{_RUN}|(?:\d+|\{{{_RUN}\}})(?:,(?:\d+|\{{{_RUN}\}}))+)\}}", re.A)
_SEGMENT = re.compile(rf"(?:{_BRACE.pattern})(?=\.|$)|[^.]*", re.A)
_PART = re.compile(r"(\d+)(?:\.\.(\d+))?", re.A)


def is_number(segment: str) -> bool:
    """Whether a segment of a name is a number in the one spelling that a range gives back."""
    return segment.isascii() and segment.isdigit() and str(int(segment)) == segment


def shape_of(name: str) -> str:
    """The name with `*` for each number."""
    return ".".join("*" if is_number(each) else each for each in name.split("."))


def numbers_of(name: str) -> tuple[int, ...]:
    """The numbers in the name, in order."""
    return tuple(int(each) for each in name.split(".") if is_number(each))


def products(points: Iterable[tuple[int, ...]]) -> list[tuple[tuple[int, ...], ...]]:
    """Rows of numbers, all of one length, as disjoint products: for each place the numbers that stand there."""
    ordered = sorted(set(points))
    if not ordered or not ordered[0]:
        return [()] if ordered else []
    by_first: dict[int, list[tuple[int, ...]]] = {}
    for first, *rest in ordered:
        by_first.setdefault(first, []).append(tuple(rest))
    merged: dict[tuple[tuple[tuple[int, ...], ...], ...], list[int]] = {}
    for first, rests in by_first.items():
        merged.setdefault(tuple(products(rests)), []).append(first)
    return [(tuple(firsts), *rest) for rests, firsts in merged.items() for rest in rests]


def spell(name: str, numbers: Sequence[Sequence[int]]) -> str:
    """The name with these numbers in the places of its own, as a glob for all of them."""
    parts = iter(numbers)
    return ".".join(brace(next(parts)) if is_number(each) else each for each in name.split("."))


def brace(numbers: Iterable[int]) -> str:
    """Numbers as a glob for them: `3`, `{0..3}`, `{0,{2..4}}`."""
    texts = [str(low) if low == high else f"{low}..{high}" for low, high in _runs(sorted(numbers))]
    if len(texts) == 1:
        return texts[0] if ".." not in texts[0] else f"{{{texts[0]}}}"
    return "{" + ",".join(text if ".." not in text else f"{{{text}}}" for text in texts) + "}"


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def expand(pattern: str, *, limit: int) -> Iterator[str]:
    """The names that `spell` gave this pattern for.

    Raises:
        ValueError: a range is empty, or there are more names than the limit.
    """
    choices = [_numbers(each, limit) if _BRACE.fullmatch(each) else [each] for each in _segments(pattern)]
    for count, names in enumerate(product(*choices)):
        if count == limit:
            raise ValueError(f"{pattern!r} stands for more than {limit:,} modules")
        yield ".".join(names)


def is_range(segment: str) -> bool:
    """Whether a segment, as the name of a module, would be taken for several."""
    return _BRACE.fullmatch(segment) is not None


def _segments(pattern: str) -> Iterator[str]:
    position = 0
    while position <= len(pattern):
        found = _SEGMENT.match(pattern, position)
        segment = found[0] if found else ""
        yield segment
        position += len(segment) + 1


def _numbers(segment: str, limit: int) -> list[str]:
    found: list[str] = []
    for low, high in _PART.findall(segment):
        first, last = int(low), int(high or low)
        if not first <= last < first + limit:
            raise ValueError(f"the range {segment!r} is empty or too long")
        found += map(str, range(first, last + 1))
    return found
