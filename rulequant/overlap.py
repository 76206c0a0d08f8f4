"""Whether one glob selects all that another can select, whatever the model: for findings about rule files alone.

Each alternative of the narrower glob is walked segment by segment through the wider one. The answer "yes" is always
right; for wildcards inside one segment that only a model could tell apart it is "no".
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from fnmatch2 import fnmatchcase2

from rulequant.globs import Glob
from rulequant.selector import Selector

__all__ = ["covers", "selector_covers"]

ANY = "**"
_WILDCARDS = frozenset("*?[")


def covers(wide: Glob, narrow: Glob) -> bool:
    """Whether everything that `narrow` selects is selected by `wide`."""
    return all(any(_alternative_covers(each, other) for each in wide.alternatives) for other in narrow.alternatives)


def selector_covers(wide: Selector, narrow: Selector) -> bool:
    """Whether everything that one selector selects is selected by another, judged by its globs and narrowings."""
    if wide.except_ and set(wide.except_) - set(narrow.except_):
        return False
    if wide.types and not (narrow.types and set(narrow.types) <= set(wide.types)):
        return False
    if wide.layers and not (narrow.layers and set(narrow.layers) <= set(wide.layers)):
        return False
    return all(any(covers(each, other) for each in wide.modules) for other in narrow.modules)


@lru_cache(maxsize=4096)
def _alternative_covers(wide: tuple[str, ...], narrow: tuple[str, ...]) -> bool:
    states = _closed({0}, wide)
    for segment in narrow:
        if len(wide) in states:
            return True  # a selected module selects everything inside it
        states = _closed(_step(states, wide, segment), wide)
        if not states:
            return False
    return len(wide) in states


def _step(states: Iterable[int], wide: tuple[str, ...], segment: str) -> set[int]:
    reached: set[int] = set()
    for state in states:
        if state == len(wide):
            continue
        if wide[state] == ANY:
            reached.add(state)  # takes any number of segments, those of a `**` too
        elif segment != ANY and _segment_covers(wide[state], segment):
            reached.add(state + 1)
    return reached


def _closed(states: set[int], wide: tuple[str, ...]) -> set[int]:
    """With the states that `**` reaches by taking no segment."""
    closed = set(states)
    for state in states:
        while state < len(wide) and wide[state] == ANY:
            state += 1  # noqa: PLW2901
            closed.add(state)
    return closed


def _segment_covers(wide: str, narrow: str) -> bool:
    if wide in ("*", narrow):
        return True
    if not _WILDCARDS & set(narrow):
        return bool(fnmatchcase2(narrow, wide))
    # Both have wildcards: sure only where the wider is a plain prefix or suffix of the narrower.
    if wide.endswith("*") and not _WILDCARDS & set(wide[:-1]):
        return narrow.startswith(wide[:-1])
    return wide.startswith("*") and not _WILDCARDS & set(wide[1:]) and narrow.endswith(wide[1:])
