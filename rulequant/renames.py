"""Which modules that are gone are likely those that have come, under another name."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from difflib import SequenceMatcher
from itertools import takewhile

from rulequant.ranges import numbers_of, shape_of

__all__ = ["pair_renames"]

_MAX_COMPARED = 40_000
"""Pairs of kinds of modules that are compared letter by letter; beyond, whole segments have to do."""
Kind = tuple[Hashable, str]


def pair_renames(gone: Mapping[str, Hashable], come: Mapping[str, Hashable]) -> dict[str, str]:
    """New names by old ones. Both sides map names, in the order of the model, to what a rename leaves as it is.

    Kinds of modules are paired rather than single ones, so that all layers are renamed alike: those that are equal
    but for the name and have the same layer numbers, most similar names first, and then in the order of the model. What
    has moved to other numbers, as `blocks.3.0.fc` to `blocks.3.fc`, is paired if there are as many of it.
    """
    found: dict[str, str] = {}
    olds, news = _kinds(gone), _kinds(come)
    for old, new in _likely(olds, news):
        for numbers in olds[old].keys() & news[new].keys():
            found[olds[old].pop(numbers)] = news[new].pop(numbers)
    for old, new in _likely(olds, news):
        if olds[old] and len(olds[old]) == len(news[new]):
            found |= zip(olds[old].values(), news[new].values(), strict=True)
            olds[old], news[new] = {}, {}
    return {name: found[name] for name in gone if name in found}


def _kinds(modules: Mapping[str, Hashable]) -> dict[Kind, dict[tuple[int, ...], str]]:
    kinds: dict[Kind, dict[tuple[int, ...], str]] = {}
    for name, facts in modules.items():
        kinds.setdefault((facts, shape_of(name)), {})[numbers_of(name)] = name
    return kinds


def _likely(olds: Iterable[Kind], news: Iterable[Kind]) -> list[tuple[Kind, Kind]]:
    """Pairs of kinds with equal facts, the most similar names first."""
    by_facts: dict[Hashable, list[tuple[int, Kind]]] = {}
    for place, new in enumerate(news):
        by_facts.setdefault(new[0], []).append((place, new))
    pairs = [
        (old, new, abs(place - other))
        for place, old in enumerate(olds)
        for other, new in by_facts.get(old[0], ())
    ]  # fmt: skip
    letters = len(pairs) <= _MAX_COMPARED
    ranked = sorted(pairs, key=lambda pair: (-_alike(pair[0][1], pair[1][1], letters=letters), pair[2]))
    return [(old, new) for old, new, _ in ranked]


def _alike(first: str, second: str, *, letters: bool) -> float:
    """How many segments two names share at their ends, and then how similar their letters are."""
    one, two = first.split("."), second.split(".")
    shared = min(_common(one, two) + _common(one[::-1], two[::-1]), len(one), len(two))
    return shared + (SequenceMatcher(None, first, second, autojunk=False).ratio() if letters else 0)


def _common(one: list[str], two: list[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
