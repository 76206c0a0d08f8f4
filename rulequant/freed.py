"""What skips that were taken back set free in a model, and a warning where that is nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rulequant.diagnostics import Diagnostic, Severity
from rulequant.inventory import Inventory, ModuleInfo
from rulequant.predicate import in_quantizable_types
from rulequant.ruleset import RemovedSkip, RuleSet
from rulequant.selection import Selection

__all__ = ["idle_removals"]

_LISTED = 3


def idle_removals(rules: RuleSet, models: Sequence[tuple[Inventory, Selection]]) -> Iterator[Diagnostic]:
    """Patterns under `remove_skips` that set no quantizable module of any of the models free.

    One pattern may have stood in several skips; it has to be of use in one of them.
    """
    for place in dict.fromkeys(each.location for each in rules.removed_skips):
        removed = [each for each in rules.removed_skips if each.location == place]
        owners = [found for each in models for found in _selected(removed, *each)]
        freed = [info for info, selection in owners if not selection.skips_of(info)]
        if not any(in_quantizable_types(info, rules) is None for info in freed):
            yield _idle(removed[0], rules, models, owners, freed)


def _selected(
    removed: Sequence[RemovedSkip], inventory: Inventory, selection: Selection
) -> Iterator[tuple[ModuleInfo, Selection]]:
    """The modules with weights that would be skipped."""
    for info in inventory.owners:
        if any(each in removed for each in selection.removed_of(info)):
            yield info, selection


def _idle(
    removed: RemovedSkip,
    rules: RuleSet,
    models: Sequence[tuple[Inventory, Selection]],
    owners: Sequence[tuple[ModuleInfo, Selection]],
    freed: Sequence[ModuleInfo],
) -> Diagnostic:
    if not owners:
        names = [inventory.model for inventory, _ in models]
        where = names[0] if len(names) == 1 else f"any of the {len(names)} models"
        why, remedy = f"it selects no module with weights of {where}", "remove the entry"
    elif not freed:
        info, selection = owners[0]
        other = selection.skips_of(info)[0].location
        why, remedy = f"the skip at {other.file}:{other.line} keeps {info.name} all the same", "take that one back too"
    else:
        types = list(dict.fromkeys(each.type for each in freed))[:_LISTED]
        why = f"it selects only {' or '.join(types)}, no quantizable type ({', '.join(rules.quantizable_types)})"
        remedy = "list the type in quantizable_types"
    text = removed.selector.modules[0].text
    return Diagnostic(
        "RQ412",
        f"taking back the skip `{text}` frees nothing: {why}",
        removed.location,
        Severity.WARNING,
        value=text,
        remedy=remedy,
    )
