"""Which skips and rules select which modules of a model: all patterns of a rule set, matched in one walk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rulequant.globs import Glob, GlobSet
from rulequant.inventory import Inventory, ModuleInfo
from rulequant.ruleset import OriginRule, OriginSkip, RuleSet

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
    weighty: int = 0
    """Those of them that own a parameter."""


@dataclass(frozen=True)
class Selection:
    """The skips and rules that select each module, in order of precedence, before any of them wins."""

    skips: dict[str, tuple[OriginSkip, ...]] = field(default_factory=dict)
    rules: dict[str, tuple[OriginRule, ...]] = field(default_factory=dict)
    uses: tuple[PatternUse, ...] = ()
    unused_exceptions: tuple[tuple[OriginSkip | OriginRule, Glob], ...] = ()
    """The `except` patterns that no module's name matches."""

    def skips_of(self, info: ModuleInfo) -> tuple[OriginSkip, ...]:
        """The skips that select a module."""
        return self.skips.get(info.name, ())

    def rules_of(self, info: ModuleInfo) -> tuple[OriginRule, ...]:
        """The rules that select a module; the first one wins."""
        return self.rules.get(info.name, ())


def select(rules: RuleSet, inventory: Inventory) -> Selection:
    """Match every pattern of the rule set against every module, under its name and its aliases."""
    entries: list[OriginSkip | OriginRule] = [*rules.skips, *rules.rules]
    table = _Table(entries)
    chosen = GlobSet(table.globs).select(name for info in inventory.modules for name in info.names)
    matched: set[int] = set()
    skips: dict[str, tuple[OriginSkip, ...]] = {}
    found: dict[str, tuple[OriginRule, ...]] = {}
    for info in inventory.modules:
        hits = (
            chosen[info.name].union(*(chosen[alias] for alias in info.aliases)) if info.aliases else chosen[info.name]
        )
        if not hits:
            continue
        matched |= hits
        taken = [entry for number, entry in enumerate(entries) if table.takes(number, entry, info, hits)]
        skips[info.name] = tuple(each for each in taken if isinstance(each, OriginSkip))
        found[info.name] = tuple(each for each in taken if isinstance(each, OriginRule))
    unused = tuple(
        (entries[number], table.globs[index]) for number, index in table.exceptions() if index not in matched
    )
    return Selection(skips, found, tuple(table.uses), unused)


class _Table:
    """The globs of all entries in one list, and which of them belong to which entry."""

    def __init__(self, entries: Sequence[OriginSkip | OriginRule]) -> None:
        self.globs: list[Glob] = []
        self.uses: list[PatternUse] = []
        self._modules: list[list[tuple[int, PatternUse]]] = []
        self._except: list[frozenset[int]] = []
        for entry in entries:
            uses = [PatternUse(entry, glob, position) for position, glob in enumerate(entry.selector.modules)]
            self._modules.append([(self._add(use.glob), use) for use in uses])
            self.uses += uses
            self._except.append(frozenset(self._add(glob) for glob in entry.selector.except_))

    def takes(self, number: int, entry: OriginSkip | OriginRule, info: ModuleInfo, hits: frozenset[int]) -> bool:
        """Whether an entry selects a module, given the globs that do; counts on the way."""
        uses = [use for index, use in self._modules[number] if index in hits]
        if not uses:
            return False
        taken = not (hits & self._except[number]) and entry.selector.narrows(info)
        for use in uses:
            use.named += 1
            use.selected += taken
            use.weighty += taken and bool(info.tensors)
        return taken

    def exceptions(self) -> Iterator[tuple[int, int]]:
        """(entry, glob) indices of all `except` patterns."""
        return ((number, index) for number, indices in enumerate(self._except) for index in sorted(indices))

    def _add(self, glob: Glob) -> int:
        self.globs.append(glob)
        return len(self.globs) - 1
