"""What a rule set and a model say about each other: patterns without effect, floors not met, weight passed over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rulequant.diagnostics import Diagnostic, Location, Severity
from rulequant.freed import idle_removals
from rulequant.inventory import Inventory, ModuleInfo
from rulequant.nearest import nearest_names
from rulequant.plan import Decision
from rulequant.predicate import in_quantizable_types
from rulequant.ruleset import OriginRule, OriginSkip, RuleSet
from rulequant.selection import PatternUse, Selection
from rulequant.selector import type_matches

__all__ = ["check_plan", "in_layers", "quantized_share"]

_LISTED = 3
HEAVY = 0.01
"""Share of the parameters from which a class that quantizable_types does not list is reported."""


def check_plan(
    rules: RuleSet, inventory: Inventory, selection: Selection, decisions: Sequence[Decision]
) -> Iterator[Diagnostic]:
    """All findings, errors first: family, scheme, patterns, floors, then warnings."""
    if rules.components:
        yield _for_a_pipeline(rules, inventory)
        return
    yield from _family(rules, inventory)
    yield from _no_scheme(rules)
    yield from (
        _unmatched(use, inventory) for use in selection.uses if not use.selected and not use.entry.selector.optional
    )
    yield from _floors(rules, inventory, decisions)
    yield from _without_effect(rules, selection, {each.name: each for each in decisions})
    yield from _unmatched_exceptions(inventory, selection)
    yield from idle_removals(rules, [(inventory, selection)])
    yield from _heavy_types(rules, inventory, selection, decisions)


def _family(rules: RuleSet, inventory: Inventory) -> Iterator[Diagnostic]:
    if not rules.models or inventory.model_type is None or inventory.model_type in rules.models:
        return
    yield Diagnostic(
        "RQ405",
        f"{rules.file} is for {_or(rules.models)}, but the model is a {inventory.model_type}",
        rules.origin("models"),
        value=inventory.model_type,
        allowed=rules.models,
        remedy=f"choose the rule file of its family, or add {inventory.model_type} to `models`",
    )


def _for_a_pipeline(rules: RuleSet, inventory: Inventory) -> Diagnostic:
    files = " or ".join(dict.fromkeys(each.file for each in rules.components.values()))
    return Diagnostic(
        "RQ325",
        f"{rules.file} is for the components of a pipeline, and {inventory.model} is one model",
        rules.origin("components"),
        remedy=f"give the rule file of the component: {files}",
    )


def _no_scheme(rules: RuleSet) -> Iterator[Diagnostic]:
    if rules.scheme is None and not rules.rules:
        yield Diagnostic(
            "RQ407",
            f"{rules.file} names no `scheme` and has no `rules`, so nothing says how to quantize",
            rules.origin("version"),
            remedy="add `scheme: NAME`, or `extends: causal_lm` for the bundled ones",
        )


def _unmatched(use: PatternUse, inventory: Inventory) -> Diagnostic:
    text = use.glob.text
    if use.named:
        narrowing = [key for key in ("except", "types", "layers") if getattr(use.entry.selector, _attribute(key))]
        message = f"`{text}` names {_count(use.named, 'module')}, but none passes {_or(narrowing)}"
        remedy = "; ".join((*_narrowing_hints(use, inventory), "widen them, or mark it `optional: true`"))
    else:
        message = f"`{text}` matches no module of {inventory.model}"
        remedy = _near(text, inventory) or (
            "correct it, or mark it `optional: true`; `rulequant inventory` lists the names"
        )
    return Diagnostic("RQ401", message, _place(use), value=text, remedy=remedy)


def _attribute(key: str) -> str:
    return "except_" if key == "except" else key


def _near(pattern: str, inventory: Inventory) -> str | None:
    near = nearest_names(pattern, inventory)
    return f"did you mean {_or([f'`{each}`' for each in near])}?" if near else None


def _narrowing_hints(use: PatternUse, inventory: Inventory) -> Iterator[str]:
    """What the modules are that a pattern names and its entry leaves out, as far as it asks for that."""
    selector = use.entry.selector
    named = [each for each in inventory.modules if any(use.glob.selects(name) for name in each.names)]
    types = list(dict.fromkeys(each.type for each in named))
    if selector.types and not any(type_matches(each, wanted) for each in types for wanted in selector.types):
        yield f"they are of type {_or(types[:_LISTED])}{' and others' if len(types) > _LISTED else ''}"
    lengths = sorted({each.layer.length for each in named if each.layer})
    if selector.layers and not any(wanted.covers(each.layer) for each in named for wanted in selector.layers):
        yield f"they are in a stack of {_or(lengths)} layers" if lengths else "they are in no stack of layers"


def _place(use: PatternUse) -> Location:
    return use.entry.pattern_locations[use.position]


def _floors(rules: RuleSet, inventory: Inventory, decisions: Sequence[Decision]) -> Iterator[Diagnostic]:
    layers = [each for each in decisions if in_layers(inventory.by_name[each.name])]
    floors = (
        ("min_quantized", rules.expect.min_quantized, decisions, "the parameters"),
        (
            "min_quantized_layers",
            rules.expect.min_quantized_layers,
            layers,
            "the parameters outside embeddings and heads",
        ),
    )
    for key, floor, counted, what in floors:
        share = quantized_share(counted)
        if floor is None or not counted or share >= floor:
            continue
        left_out = max(counted, key=lambda each: (not each.quantize, each.parameters))
        yield Diagnostic(
            "RQ406",
            f"{share:.2%} of {what} would be quantized, `expect.{key}` is {floor:.2%}",
            rules.origin(f"expect.{key}"),
            value=f"{share:.4f}",
            remedy=f"heaviest module left out: {left_out.name or 'the model itself'} "
            f"({left_out.type}, {left_out.parameters:,} parameters: {left_out.detail})",
        )


def in_layers(info: ModuleInfo) -> bool:
    """Whether a module is part of the layers, as opposed to the embeddings and heads at a model's ends."""
    return not (info.kind == "embedding" or info.output_embedding or info.shares_output_embedding or info.output_head)


def quantized_share(decisions: Sequence[Decision]) -> float:
    """Share of the parameters that is quantized, 0 to 1."""
    total = sum(each.parameters for each in decisions)
    return sum(each.parameters for each in decisions if each.quantize) / total if total else 0.0


def _without_effect(rules: RuleSet, selection: Selection, decisions: Mapping[str, Decision]) -> Iterator[Diagnostic]:
    """Patterns that select modules, and decide about none of them."""
    for use in selection.uses:
        if not use.selected or use.entry.selector.optional:
            continue
        candidates = [each for each in use.owners if in_quantizable_types(each, rules) is None]
        if not candidates:
            yield from _no_candidate(use, rules)
            continue
        first = [_first(each, selection, use.entry) for each in candidates]
        if not any(each is use.entry for each in first):
            yield _taken(use, list({id(each): each for each in first}.values()))
        elif isinstance(use.entry, OriginRule) and not any(decisions[each.name].quantize for each in candidates):
            yield _all_stay(use, [decisions[each.name] for each in candidates])


def _first(info: ModuleInfo, selection: Selection, entry: OriginSkip | OriginRule) -> OriginSkip | OriginRule:
    """The entry that comes before all others at a module, of those that can stand before this one."""
    return (*selection.skips_of(info), *selection.rules_of(info), entry)[0]


def _no_candidate(use: PatternUse, rules: RuleSet) -> Iterator[Diagnostic]:
    is_skip = isinstance(use.entry, OriginSkip)
    if is_skip and use.entry.selector.reason:
        return  # the remedy for a heavy type that stays: a skip that says why
    types = list(dict.fromkeys(each.type for each in use.owners))
    what = f"only {_or(types[:_LISTED])}" if types else "only modules without weights"
    yield _warning(
        "RQ403",
        use,
        f"selects {what}, no quantizable type ({', '.join(rules.quantizable_types)})",
        "remove it: they stay as they are anyway" if is_skip else "remove it, or list the type in quantizable_types",
    )


def _taken(use: PatternUse, earlier: Sequence[OriginSkip | OriginRule]) -> Diagnostic:
    takers = [f"the {_kind(each)} at {each.location.file}:{each.location.line}" for each in earlier[:_LISTED]]
    more = " and others" if len(earlier) > _LISTED else ""
    if isinstance(use.entry, OriginSkip):
        remedy = "remove it"
    elif all(isinstance(each, OriginSkip) for each in earlier):
        ours = any(each.location.file == use.entry.location.file for each in earlier)
        way = "give the skip an `except`" if ours else "take the skip back with `remove_skips`"
        remedy = f"remove it, or {way}: a skip always beats a rule"
    else:
        remedy = "remove it, or move it up"
    message = f"selects only modules that {' and '.join(takers)}{more} already took"
    return _warning("RQ402", use, message, remedy)


def _all_stay(use: PatternUse, decisions: Sequence[Decision]) -> Diagnostic:
    first = decisions[0]
    message = f"selects only modules that stay as they are: {first.name}, since {first.detail}"
    remedy = (
        "remove it, or set `output_embeddings: quantize`"
        if all(each.reason == "output_embedding" for each in decisions)
        else "remove it; `rulequant why` tells the reason of each"
    )
    return _warning("RQ403", use, message, remedy)


def _warning(code: str, use: PatternUse, what: str, remedy: str) -> Diagnostic:
    message = f"`{use.glob.text}` in this {_kind(use.entry)} {what}"
    return Diagnostic(code, message, _place(use), Severity.WARNING, value=use.glob.text, remedy=remedy)


def _kind(entry: OriginSkip | OriginRule) -> str:
    return "skip" if isinstance(entry, OriginSkip) else "rule"


def _unmatched_exceptions(inventory: Inventory, selection: Selection) -> Iterator[Diagnostic]:
    for entry, glob in selection.unused_exceptions:
        if entry.selector.optional:
            continue
        elsewhere = any(glob.selects(name) for name in inventory.by_name)
        what = "leaves out nothing that the patterns select" if elsewhere else "matches no module"
        yield Diagnostic(
            "RQ404",
            f"the exception `{glob.text}` {what}",
            entry.except_locations[entry.selector.except_.index(glob)],
            Severity.WARNING,
            value=glob.text,
            remedy=(None if elsewhere else _near(glob.text, inventory)) or "correct or remove it",
        )


def _heavy_types(
    rules: RuleSet, inventory: Inventory, selection: Selection, decisions: Sequence[Decision]
) -> Iterator[Diagnostic]:
    """Classes with much weight that quantizable_types passes over; embeddings are left out on purpose."""
    total = sum(each.parameters for each in decisions)
    masses: dict[str, int] = {}
    for each in decisions:
        info = inventory.by_name[each.name]
        if each.reason == "type" and info.kind != "embedding" and not selection.skips_of(info):
            masses[each.type] = masses.get(each.type, 0) + sum(
                tensor.numel
                for tensor in info.tensors
                if len(tensor.shape) > 1 and not tensor.buffer and not tensor.tied_to
            )
    for name, mass in sorted(masses.items(), key=lambda item: -item[1]):
        if total and mass / total >= HEAVY:
            yield Diagnostic(
                "RQ408",
                f"{name} holds {mass / total:.1%} of the parameters and is not one of quantizable_types",
                rules.origin("quantizable_types"),
                Severity.WARNING,
                value=name,
                remedy="list it, or say why not with a skip and a reason",
            )


def _or(values: Sequence[Any]) -> str:
    return " or ".join(str(each) for each in values)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"
