"""One pattern over dotted module names, and many patterns moved together down the tree of modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from fnmatch2 import fnmatchcase2

from rulequant.globtext import alternatives

__all__ = ["Glob", "GlobSet"]

# fnmatch2 splits both arguments at slashes and accepts a prefix. A pattern may hold no slash; those of a name
# are judged as this character, which no pattern can hold and no class can name.
_SLASHES = str.maketrans("/\\", "\0\0")


@dataclass(frozen=True, slots=True)
class Glob:
    """One pattern: the segments of each alternative that its braces expand to.

    Within one segment, `*`, `?` and `[abc]` are those of fnmatch, case-sensitive; the segment `**` is any
    number of segments, none included. The root module has the name "", which is no segment at all.
    """

    text: str
    alternatives: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Glob:
        """The glob that the text spells.

        Raises:
            GlobError: it is malformed, or means something else than its author believes.
        """
        return cls(text, alternatives(text))

    def matches(self, name: str) -> bool:
        """Whether the pattern matches the whole name; to lie inside a matched module does not count."""
        return _alone(self).matches(name)

    def selects(self, name: str) -> bool:
        """Whether the pattern matches the name or one of its ancestors."""
        return bool(_alone(self).select([name])[name])


@dataclass(slots=True, eq=False)
class _State:
    """Where all patterns stand after one name, and where each next segment leads."""

    bits: int
    selected: frozenset[int]
    following: dict[str, _State] = field(default_factory=dict)


class GlobSet:
    """Patterns that advance together, one segment of a name at a time.

    A bit-parallel automaton (shift-and, Baeza-Yates and Gonnet, doi:10.1145/135239.135243), whose letters are
    segments. Each alternative has one bit per token and one for "accepted"; a state is one integer. A segment
    moves the bits whose token it satisfies one up; `**` stays where it is and lets the next token begin; an
    accepted bit stays, since a selected module selects everything inside it.
    """

    def __init__(self, globs: Sequence[Glob]) -> None:
        self.globs = tuple(globs)
        self._owners: dict[int, int] = {}  # the position of each "accepted" bit to the index of its glob
        start = position = 0
        tokens: dict[str, int] = {}
        for index, glob in enumerate(self.globs):
            for segments in glob.alternatives:
                start |= 1 << position
                for token in segments:
                    tokens[token] = tokens.get(token, 0) | 1 << position
                    position += 1
                self._owners[position] = index
                position += 1
        self._accept = sum(1 << end for end in self._owners)
        self._stars = tokens.pop("**", 0)
        self._wildcards = {token: bits for token, bits in tokens.items() if re.search(r"[*?[]", token)}
        self._literals = {token: bits for token, bits in tokens.items() if token not in self._wildcards}
        self._masks: dict[str, int] = {}
        self._states: dict[int, _State] = {}
        self._selections: dict[int, frozenset[int]] = {}
        self._start = self._state(start | (start & self._stars) << 1)

    def select(self, names: Iterable[str]) -> dict[str, frozenset[int]]:
        """For each name, in order, the indices of the globs that select it; parents may be missing."""
        names = list(names)
        self._learn({name.rpartition(".")[2] for name in names})
        parents: dict[str, _State] = {}
        selected = {}
        for name in names:
            parent, _, leaf = name.rpartition(".")
            if parent:
                above = parents.get(parent)
                if above is None:
                    above = parents[parent] = self._walk(parent.split("."))
                state = above.following.get(leaf) or self._advance(above, leaf)
            else:
                state = self._walk(name.split(".") if name else [])
            selected[name] = state.selected
        return selected

    def matches(self, name: str) -> bool:
        """Whether any of the globs matches the whole name."""
        if not name:
            return bool(self._start.selected)
        *above, leaf = name.split(".")
        # What was accepted on the way would stay: taken out, only the last segment can accept.
        return bool(self._moved(self._walk(above).bits & ~self._accept, leaf) & self._accept)

    def _walk(self, segments: Sequence[str]) -> _State:
        state = self._start
        for segment in segments:
            state = state.following.get(segment) or self._advance(state, segment)
        return state

    def _advance(self, state: _State, segment: str) -> _State:
        following = state.following[segment] = self._state(self._moved(state.bits, segment))
        return following

    def _moved(self, bits: int, segment: str) -> int:
        if segment not in self._masks:
            self._learn({segment})
        stay = bits & (self._stars | self._accept)
        moved = (bits & self._masks[segment]) << 1 | stay
        # One shift skips every `**` that may be empty: parse leaves no two side by side.
        return moved | (moved & self._stars) << 1

    def _state(self, bits: int) -> _State:
        state = self._states.get(bits)
        if state is None:
            accepted = bits & self._accept
            selected = self._selections.get(accepted)
            if selected is None:
                selected = frozenset(self._owners[end] for end in _set_bits(accepted))
                self._selections[accepted] = selected
            state = self._states[bits] = _State(bits, selected)
        return state

    def _learn(self, segments: set[str]) -> None:
        """Judge each new segment once against each distinct token."""
        fresh = [(segment, segment.translate(_SLASHES)) for segment in segments if segment not in self._masks]
        for segment, _ in fresh:
            self._masks[segment] = self._literals.get(segment, 0)
        # Tokens outside, segments inside: fnmatch keeps only 256 compiled patterns before Python 3.12.
        for token, bits in self._wildcards.items():
            for segment, judged in fresh:
                if fnmatchcase2(judged, token):
                    self._masks[segment] |= bits


def _set_bits(bits: int) -> Iterator[int]:
    """The positions of the bits that are set, lowest first."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


@lru_cache(maxsize=128)
def _alone(glob: Glob) -> GlobSet:
    """The engine for one glob, so that one pattern and many have the same semantics."""
    return GlobSet([glob])
