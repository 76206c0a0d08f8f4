"""Which skips and rules select which modules of a model: all patterns of a rule set, matched in one walk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rulequant.globs import Glob, GlobSet
from rulequant.inventory import Inventory, ModuleInfo
from rulequant.ruleset import OriginRule, OriginSkip, RemovedSkip, RuleSet

__all__ = ["PatternUse", "Selection", "select"]


@dataclass(slots=True)
class PatternUse:
    """One pattern of one skip or rule, and what it came to."""

    entry: OriginSkip | OriginRule
    glob: Glob
    position: int
    """Index in `modules` of the entry."""
    named: int = 0
    """Modules whose names the glob selects."""
    selected: int = 0
    """Those of them that pass the entry's except, types and layers."""
    owners: list[ModuleInfo] = field(default_factory=list)
    """Those of them that own a tensor."""

    @property
    def weighty(self) -> int:
        """How many of the selected modules own a tensor."""
        return len(self.owners)


@dataclass(frozen=True)
class Selection:
    """The skips and rules that select each module, in order of precedence, before any of them wins."""

    skips: dict[str, tuple[OriginSkip, ...]] = field(default_factory=dict)
    rules: dict[str, tuple[OriginRule, ...]] = field(default_factory=dict)
    uses: tuple[PatternUse, ...] = ()
    removed: dict[str, tuple[RemovedSkip, ...]] = field(default_factory=dict)
    """The skips that would select each module, had no file taken them back."""
    unused_exceptions: tuple[tuple[OriginSkip | OriginRule, Glob], ...] = ()
    """The `except` patterns that leave out nothing of what the patterns beside them name."""

    def skips_of(self, info: ModuleInfo) -> tuple[OriginSkip, ...]:
        """The skips that select a module."""
        return self.skips.get(info.name, ())

    def rules_of(self, info: ModuleInfo) -> tuple[OriginRule, ...]:
        """The rules that select a module; the first one wins."""
        return self.rules.get(info.name, ())

    def removed_of(self, info: ModuleInfo) -> tuple[RemovedSkip, ...]:
        """The skips that were taken back and would select a module."""
        return self.removed.get(info.name, ())


def select(rules: RuleSet, inventory: Inventory) -> Selection:
    """Match every pattern of the rule set against every module, under its name and its aliases."""
    table = _Table([*rules.skips, *rules.rules])
    skips: dict[str, tuple[OriginSkip, ...]] = {}
    found: dict[str, tuple[OriginRule, ...]] = {}
    for info, taken in _taken(table, inventory):
        skips[info.name] = tuple(each for each in taken if isinstance(each, OriginSkip))
        found[info.name] = tuple(each for each in taken if isinstance(each, OriginRule))
    return Selection(skips, found, tuple(table.uses), _removed(rules, inventory), tuple(table.unused_exceptions()))


def _removed(rules: RuleSet, inventory: Inventory) -> dict[str, tuple[RemovedSkip, ...]]:
    if not rules.removed_skips:
        return {}
    by_skip = {id(each.skip): each for each in rules.removed_skips}
    table = _Table([each.skip for each in rules.removed_skips])
    return {info.name: tuple(by_skip[id(each)] for each in taken) for info, taken in _taken(table, inventory)}


def _taken(table: _Table, inventory: Inventory) -> Iterator[tuple[ModuleInfo, list[OriginSkip | OriginRule]]]:
    """The modules that any glob of a table selects, with the entries that take them."""
    chosen = GlobSet(table.globs).select(name for info in inventory.modules for name in info.names)
    for info in inventory.modules:
        hits = chosen[info.name].union(*(chosen[alias] for alias in info.aliases))
        if hits:
            yield info, table.take(info, hits)


class _Table:
    """The globs of all entries in one list, and which of them belong to which entry."""

    def __init__(self, entries: Sequence[OriginSkip | OriginRule]) -> None:
        self.globs: list[Glob] = []
        self.uses: list[PatternUse] = []
        self._entries = entries
        self._patterns: dict[int, tuple[int, PatternUse]] = {}
        """Of each glob in `modules`: the number of its entry, and its use."""
        self._except: list[frozenset[int]] = []
        self._used_exceptions: set[int] = set()
        self._concerned: dict[frozenset[int], dict[int, list[PatternUse]]] = {}
        for number, entry in enumerate(entries):
            for position, glob in enumerate(entry.selector.modules):
                use = PatternUse(entry, glob, position)
                self.uses.append(use)
                self._patterns[self._add(glob)] = number, use
            self._except.append(frozenset(self._add(glob) for glob in entry.selector.except_))

    def take(self, info: ModuleInfo, hits: frozenset[int]) -> list[OriginSkip | OriginRule]:
        """The entries that select a module, given the globs that do, in order; counts on the way."""
        taken = []
        for number, uses in self._by_entry(hits).items():
            excluded = hits & self._except[number]
            self._used_exceptions |= excluded
            selected = not excluded and self._entries[number].selector.narrows(info)
            for use in uses:
                use.named += 1
                use.selected += selected
                if selected and info.tensors:
                    use.owners.append(info)
            if selected:
                taken.append(self._entries[number])
        return taken

    def unused_exceptions(self) -> Iterator[tuple[OriginSkip | OriginRule, Glob]]:
        """The `except` patterns that left nothing out."""
        for entry, exceptions in zip(self._entries, self._except, strict=True):
            yield from ((entry, self.globs[index]) for index in sorted(exceptions - self._used_exceptions))

    def _by_entry(self, hits: frozenset[int]) -> dict[int, list[PatternUse]]:
        """The patterns among the hits by entry; most modules of a model share one of a few sets of hits."""
        if hits not in self._concerned:
            found: dict[int, list[PatternUse]] = {}
            for number, use in (self._patterns[index] for index in sorted(hits & self._patterns.keys())):
                found.setdefault(number, []).append(use)
            self._concerned[hits] = found
        return self._concerned[hits]

    def _add(self, glob: Glob) -> int:
        self.globs.append(glob)
        return len(self.globs) - 1
