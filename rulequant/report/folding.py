"""Equal modules of a stack of layers as one line: `model.layers.*.self_attn.q_proj ×32`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Fold", "fold"]

T = TypeVar("T")


@dataclass(frozen=True)
class Fold(Generic[T]):
    """Items whose names differ only in numbers."""

    pattern: str
    """The one name, or a glob for all of them and no other item: `*`, or the numbers as `{0..3,7}`."""
    items: tuple[T, ...]

    def __len__(self) -> int:
        return len(self.items)


def fold(items: Iterable[T], name: Callable[[T], str], key: Callable[[T], Hashable]) -> list[Fold[T]]:
    """The items grouped by the shape of their names and by `key`, in the order of each group's first."""
    items = list(items)
    shapes: dict[str, list[str]] = {}
    groups: dict[tuple[str, Hashable], list[T]] = {}
    for each in items:
        shape = _shape(name(each))
        shapes.setdefault(shape, []).append(name(each))
        groups.setdefault((shape, key(each)), []).append(each)
    return [
        Fold(_pattern([name(each) for each in group], shapes[shape]), tuple(group))
        for (shape, _), group in groups.items()
    ]


def _shape(name: str) -> str:
    return ".".join("*" if _is_number(each) else each for each in name.split("."))


def _is_number(segment: str) -> bool:
    return segment.isascii() and segment.isdigit() and str(int(segment)) == segment


def _pattern(names: Sequence[str], siblings: Sequence[str]) -> str:
    """The glob for some of the names that have one shape; each number is `*` where the group has all there are."""
    if len(names) == 1:
        return names[0]
    ours = _numbers(names)
    theirs = _numbers(siblings)
    segments = [
        segment if not mine else _segment(mine, all_)
        for segment, mine, all_ in zip(names[0].split("."), ours, theirs, strict=True)
    ]
    return ".".join(segments)


def _numbers(names: Sequence[str]) -> list[set[int]]:
    """For each segment, the numbers that stand there; none for a word."""
    rows = [name.split(".") for name in names]
    return [{int(row[index]) for row in rows} if _is_number(rows[0][index]) else set() for index in range(len(rows[0]))]


def _segment(mine: set[int], all_: set[int]) -> str:
    if mine == all_ and len(mine) > 1:
        return "*"
    runs = _runs(sorted(mine))
    if len(runs) == 1 and runs[0][0] == runs[0][1]:
        return str(runs[0][0])
    texts = [str(low) if low == high else f"{low}..{high}" for low, high in runs]
    if len(texts) == 1:
        return f"{{{texts[0]}}}"
    return "{" + ",".join(text if ".." not in text else f"{{{text}}}" for text in texts) + "}"


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
