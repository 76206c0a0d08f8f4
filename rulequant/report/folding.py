"""Equal modules of a stack of layers as one line: `model.layers.*.self_attn.q_proj ×32`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Generic, TypeVar

from rulequant.ranges import brace, is_number, numbers_of, products, shape_of, spell

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


def fold(
    items: Iterable[T], name: Callable[[T], str], key: Callable[[T], Hashable], *, stars: bool = True
) -> list[Fold[T]]:
    """The items grouped by the shape of their names and by `key`, in the order of each group's first.

    `*` stands for all numbers that the items have at a place; without `stars` numbers are spelled out. A group whose
    numbers are no product, as where one layer has fewer experts, is several folds.
    """
    siblings: dict[str, list[set[int]]] = {}
    groups: dict[tuple[str, Hashable], dict[tuple[int, ...], list[tuple[int, T]]]] = {}
    for position, each in enumerate(items):
        shape, numbers = shape_of(name(each)), numbers_of(name(each))
        for all_, number in zip(siblings.setdefault(shape, [set() for _ in numbers]), numbers, strict=True):
            all_.add(number)
        groups.setdefault((shape, key(each)), {}).setdefault(numbers, []).append((position, each))
    folds: list[tuple[int, Fold[T]]] = []
    for (shape, _), group in groups.items():
        for part in products(group):
            members = sorted((each for numbers in product(*part) for each in group[numbers]), key=lambda pair: pair[0])
            found = tuple(each for _, each in members)
            pattern = _pattern(name(found[0]), part, siblings[shape]) if stars else spell(name(found[0]), part)
            folds.append((members[0][0], Fold(pattern, found)))
    return [each for _, each in sorted(folds, key=lambda pair: pair[0])]


def _pattern(name: str, numbers: Sequence[tuple[int, ...]], siblings: Sequence[set[int]]) -> str:
    """The glob for the names of a product; each number is `*` where the product has all there are."""
    places = iter(zip(numbers, siblings, strict=True))
    return ".".join(_segment(*next(places)) if is_number(each) else each for each in name.split("."))


def _segment(mine: tuple[int, ...], all_: set[int]) -> str:
    return "*" if len(mine) > 1 and set(mine) == all_ else brace(mine)
