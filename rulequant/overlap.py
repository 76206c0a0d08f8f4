"""Whether one glob selects all that another can select, whatever the model: for findings about rule files alone.

Each alternative of the narrower glob is walked segment by segment through the wider ones. The answer "yes" is always
right; for wildcards inside one segment that only a model could tell apart it is "no".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from fnmatch2 import fnmatchcase2

from rulequant.globs import Glob
from rulequant.selector import Selector

__all__ = ["GlobCover", "SelectorCover", "Steps", "TooManyStepsError", "covers", "selector_covers"]

ANY = "**"
MAX_STEPS = 300_000
_WILDCARDS = frozenset("*?[")


class TooManyStepsError(Exception):
    """The globs are so many, and so much alike, that comparing them all would take seconds."""


@dataclass
class Steps:
    """What a search may still cost, in comparisons of a segment with a segment; under a second in all."""

    left: int = MAX_STEPS

    def spend(self, number: int) -> None:
        """Count steps.

        Raises:
            TooManyStepsError: none are left.
        """
        self.left -= number
        if self.left < 0:
            raise TooManyStepsError


@dataclass(slots=True, eq=False)
class _Node:
    """A place in the tree of segments."""

    is_any: bool = False
    """Its own segment is `**`, which takes any number of segments."""
    following: dict[str, _Node] = field(default_factory=dict)
    wild: list[tuple[str, _Node]] = field(default_factory=list)
    """Those of the following that have a wildcard, but for `**`."""
    ends: list[int] = field(default_factory=list)
    """The globs of which an alternative ends here."""

    def child(self, segment: str) -> _Node:
        """The place that a segment leads to, made where it is new."""
        found = self.following.get(segment)
        if found is None:
            found = self.following[segment] = _Node(is_any=segment == ANY)
            if not found.is_any and _WILDCARDS & set(segment):
                self.wild.append((segment, found))
        return found


class GlobCover:
    """Many globs as one tree of their segments, to find those that select all that another one selects."""

    def __init__(self, globs: Iterable[Glob], steps: Steps | None = None) -> None:
        self._root = _Node()
        self._steps = steps or Steps()
        for index, glob in enumerate(globs):
            for alternative in glob.alternatives:
                node = self._root
                for segment in alternative:
                    node = node.child(segment)
                node.ends.append(index)

    def of(self, narrow: Glob) -> set[int]:
        """The indices of the globs that cover a glob.

        Raises:
            TooManyStepsError: the search takes too long.
        """
        found = self._taken(narrow.alternatives[0])
        for alternative in narrow.alternatives[1:]:
            if not found:
                break
            found &= self._taken(alternative)
        return found

    def _taken(self, segments: Sequence[str]) -> set[int]:
        taken: set[int] = set()
        active = self._entered({self._root}, taken)
        for segment in segments:
            if not active:
                break
            active = self._entered(self._next(active, segment), taken)
        return taken

    def _entered(self, nodes: set[_Node], taken: set[int]) -> set[_Node]:
        """With the nodes that a `**` reaches by taking no segment; what ends in any of them is taken."""
        entered = nodes | {each.following[ANY] for each in nodes if ANY in each.following}
        self._steps.spend(sum(1 + len(each.ends) for each in entered))
        for each in entered:
            taken.update(each.ends)  # for good: a selected module selects everything inside it
        return entered

    def _next(self, nodes: set[_Node], segment: str) -> set[_Node]:
        reached = {each for each in nodes if each.is_any}  # it takes a `**` too
        if segment == ANY:
            return reached
        for each in nodes:
            if segment in each.following:
                reached.add(each.following[segment])
            self._steps.spend(len(each.wild))
            reached.update(node for wide, node in each.wild if _segment_covers(wide, segment))
        return reached


class SelectorCover:
    """Many selectors, to find those that select all that another one selects, by their globs and narrowings."""

    def __init__(self, selectors: Iterable[Selector], steps: Steps | None = None) -> None:
        self._selectors = tuple(selectors)
        self._owner = [index for index, each in enumerate(self._selectors) for _ in each.modules]
        self._globs = GlobCover((glob for each in self._selectors for glob in each.modules), steps)

    def of(self, narrow: Selector) -> list[int]:
        """The indices of the selectors that cover a selector, in order.

        Raises:
            TooManyStepsError: the search takes too long.
        """
        common = {self._owner[each] for each in self._globs.of(narrow.modules[0])}
        for glob in narrow.modules[1:]:
            if not common:
                break
            common &= {self._owner[each] for each in self._globs.of(glob)}
        return sorted(each for each in common if _is_as_wide(self._selectors[each], narrow))


def covers(wide: Glob, narrow: Glob) -> bool:
    """Whether everything that `narrow` selects is selected by `wide`."""
    return bool(GlobCover([wide]).of(narrow))


def selector_covers(wide: Selector, narrow: Selector) -> bool:
    """Whether everything that one selector selects is selected by another, judged by its globs and narrowings."""
    return bool(SelectorCover([wide]).of(narrow))


def _is_as_wide(wide: Selector, narrow: Selector) -> bool:
    """Whether the exceptions and narrowings of a selector leave out nothing that another's do not."""
    if wide.except_ and {each.text for each in wide.except_} - {each.text for each in narrow.except_}:
        return False
    if wide.types and not (narrow.types and set(narrow.types) <= set(wide.types)):
        return False
    return not wide.layers or bool(narrow.layers and set(narrow.layers) <= set(wide.layers))


@lru_cache(maxsize=4096)
def _segment_covers(wide: str, narrow: str) -> bool:
    if wide in ("*", narrow):
        return True
    if not _WILDCARDS & set(narrow):
        return bool(fnmatchcase2(narrow, wide))
    # Both have wildcards: sure only where the wider is a plain prefix or suffix of the narrower.
    if wide.endswith("*") and not _WILDCARDS & set(wide[:-1]):
        return narrow.startswith(wide[:-1])
    return wide.startswith("*") and not _WILDCARDS & set(wide[1:]) and narrow.endswith(wide[1:])
