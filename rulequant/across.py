"""What several models say about one rule set: patterns that match in none of them, or in some only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rulequant.diagnostics import Diagnostic, Location, Severity
from rulequant.freed import idle_removals
from rulequant.inventory import Inventory
from rulequant.nearest import nearest_names
from rulequant.ruleset import RuleSet
from rulequant.selection import PatternUse, select

__all__ = ["check_across", "fits"]

_LISTED = 3


def fits(rules: RuleSet, inventory: Inventory) -> bool:
    """Whether the rule set is for the model's type, or for any."""
    return not rules.models or inventory.model_type is None or inventory.model_type in rules.models


def check_across(rules: RuleSet, inventories: Sequence[Inventory]) -> Iterator[Diagnostic]:
    """Findings about the patterns of a rule set, counted over the models that it is for."""
    ours = [each for each in inventories if fits(rules, each)]
    if not ours:
        yield _not_checked(rules, inventories)
        return
    selections = [select(rules, each) for each in ours]
    uses = [each.uses for each in selections]
    for pattern in zip(*uses, strict=True):
        if pattern[0].entry.selector.optional:
            continue
        missing = [model for model, use in zip(ours, pattern, strict=True) if not use.selected]
        if len(missing) == len(ours):
            yield _matches_nowhere(pattern, ours)
        elif missing:
            yield _matches_in_some(pattern[0], missing, len(ours))
    yield from idle_removals(rules, list(zip(ours, selections, strict=True)))


def _not_checked(rules: RuleSet, inventories: Sequence[Inventory]) -> Diagnostic:
    types = sorted({each.model_type or "model without a type" for each in inventories})
    return Diagnostic(
        "RQ410",
        f"{rules.file} is for {' or '.join(rules.models)}, and no given model is one: its patterns were not checked",
        rules.origin("models"),
        Severity.WARNING,
        value=", ".join(types),
        remedy="give one with `--model`, or correct `models`",
    )


def _matches_nowhere(pattern: Sequence[PatternUse], models: Sequence[Inventory]) -> Diagnostic:
    use = pattern[0]
    where = models[0].model if len(models) == 1 else f"any of the {len(models)} models ({_models(models)})"
    if any(each.named for each in pattern):
        message = f"`{use.glob.text}` names modules, but `except`, `types` or `layers` leave none in {where}"
        remedy = "widen them, or mark it `optional: true`"
    else:
        message = f"`{use.glob.text}` matches no module of {where}"
        remedy = _remedy(use.glob.text, models)
    return Diagnostic("RQ401", message, _place(use), value=use.glob.text, remedy=remedy)


def _place(use: PatternUse) -> Location:
    return use.entry.pattern_locations[use.position]


def _remedy(text: str, models: Sequence[Inventory]) -> str:
    near = list(dict.fromkeys(name for model in models for name in nearest_names(text, model)))[:_LISTED]
    if near:
        return f"did you mean {' or '.join(f'`{each}`' for each in near)}?"
    return "correct or remove it; `rulequant inventory` lists the names"


def _matches_in_some(use: PatternUse, missing: Sequence[Inventory], total: int) -> Diagnostic:
    return Diagnostic(
        "RQ409",
        f"`{use.glob.text}` matches in {total - len(missing)} of {total} models, not in {_models(missing)}",
        _place(use),
        Severity.WARNING,
        value=use.glob.text,
        remedy="mark it `optional: true` where members of the family lack the part",
    )


def _models(models: Sequence[Inventory]) -> str:
    names = [each.model for each in models]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
