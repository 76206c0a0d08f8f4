"""What a rule set and a model say about each other: patterns without effect, floors not met, weight passed over."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from rulequant.diagnostics import Diagnostic, Location, Severity
from rulequant.globs import Glob
from rulequant.inventory import Inventory, ModuleInfo
from rulequant.plan import Decision
from rulequant.predicate import in_quantizable_types
from rulequant.ruleset import OriginRule, OriginSkip, RuleSet
from rulequant.selection import PatternUse, Selection

__all__ = ["check_plan", "in_layers", "nearest_names", "quantized_share"]

HEAVY = 0.01
"""Share of the parameters from which a class that quantizable_types does not list is reported."""


def check_plan(
    rules: RuleSet, inventory: Inventory, selection: Selection, decisions: Sequence[Decision]
) -> Iterator[Diagnostic]:
    """All findings, errors first: family, scheme, patterns, floors, then warnings."""
    yield from _family(rules, inventory)
    yield from _no_scheme(rules)
    yield from (
        _unmatched(use, inventory) for use in selection.uses if not use.selected and not use.entry.selector.optional
    )
    yield from _floors(rules, inventory, decisions)
    yield from _without_effect(rules, inventory, selection)
    yield from _unmatched_exceptions(selection)
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
        remedy = "mark it `optional: true`, or widen them"
    else:
        near = nearest_names(text, inventory)
        message = f"`{text}` matches no module of {inventory.model}"
        remedy = (
            f"did you mean {_or([f'`{each}`' for each in near])}?" if near else "`rulequant inventory` lists the names"
        )
    return Diagnostic("RQ401", message, _place(use), value=text, remedy=remedy)


def _attribute(key: str) -> str:
    return "except_" if key == "except" else key


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
        left_out = max((each for each in counted if not each.quantize), key=lambda each: each.parameters)
        yield Diagnostic(
            "RQ406",
            f"{share:.2%} of {what} would be quantized, `expect.{key}` is {floor:.2%}",
            rules.origin("expect"),
            value=f"{share:.4f}",
            remedy=f"heaviest module left out: {left_out.name} "
            f"({left_out.type}, {left_out.parameters:,} parameters: {left_out.detail})",
        )


def in_layers(info: ModuleInfo) -> bool:
    """Whether a module is part of the layers, as opposed to the embeddings and heads at a model's ends."""
    return not (info.kind == "embedding" or info.output_embedding or info.shares_output_embedding or info.output_head)


def quantized_share(decisions: Sequence[Decision]) -> float:
    """Share of the parameters that is quantized, 0 to 1."""
    total = sum(each.parameters for each in decisions)
    return sum(each.parameters for each in decisions if each.quantize) / total if total else 0.0


def _without_effect(rules: RuleSet, inventory: Inventory, selection: Selection) -> Iterator[Diagnostic]:
    """Entries that select modules, none of which they decide about."""
    effective: set[int] = set()
    quantizable: set[int] = set()
    for info in inventory.owners:
        skips, chosen = selection.skips_of(info), selection.rules_of(info)
        if in_quantizable_types(info, rules) is None:
            quantizable |= {id(each) for each in (*skips, *chosen)}
            effective |= {id(each) for each in (skips[:1] or chosen[:1])}
    reported: set[int] = set()
    for use in selection.uses:
        entry = use.entry
        if not use.selected or id(entry) in effective or id(entry) in reported or entry.selector.optional:
            continue
        reported.add(id(entry))
        inert = id(entry) not in quantizable
        if inert and isinstance(entry, OriginSkip) and entry.selector.reason:
            continue  # the remedy for a heavy type that stays: a skip that says why
        yield _warning(entry, inert=inert, rules=rules)


def _warning(entry: OriginSkip | OriginRule, *, inert: bool, rules: RuleSet) -> Diagnostic:
    kind = "skip" if isinstance(entry, OriginSkip) else "rule"
    texts = ", ".join(f"`{each.text}`" for each in entry.selector.modules)
    if inert:
        message = (
            f"this {kind} ({texts}) selects no module of a quantizable type ({', '.join(rules.quantizable_types)})"
        )
        return Diagnostic(
            "RQ403",
            message,
            entry.location,
            Severity.WARNING,
            remedy="remove it, or list the type in quantizable_types",
        )
    message = f"this {kind} ({texts}) selects only modules that an earlier entry already took"
    return Diagnostic("RQ402", message, entry.location, Severity.WARNING, remedy="remove it, or move it up")


def _unmatched_exceptions(selection: Selection) -> Iterator[Diagnostic]:
    for entry, glob in selection.unused_exceptions:
        if not entry.selector.optional:
            message = f"the exception `{glob.text}` matches no module"
            yield Diagnostic(
                "RQ404",
                message,
                entry.location,
                Severity.WARNING,
                value=glob.text,
                remedy="correct or remove it",
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


def nearest_names(pattern: str, inventory: Inventory, *, count: int = 3) -> list[str]:
    """The patterns most like one that matches nothing, built from the names the model has, numbers as `*`."""
    anchored = not pattern.startswith("**.")
    wanted = pattern if anchored else pattern.removeprefix("**.")
    length = wanted.count(".") + 1
    shapes: dict[str, None] = {}
    for name in inventory.by_name:
        segments = ["*" if each.isdecimal() else each for each in name.split(".")]
        shape = ".".join(segments) if anchored else ".".join(segments[-length:])
        shapes.setdefault(shape)
    found = difflib.get_close_matches(wanted, list(shapes), n=count, cutoff=0.6)
    if not found and anchored:
        # A name that lacks its prefix, such as `layers.*.mlp` for `model.layers.*.mlp`.
        return [f"**.{pattern}"] if _selects_something(f"**.{pattern}", inventory) else []
    return found if anchored else [f"**.{each}" for each in found]


def _selects_something(pattern: str, inventory: Inventory) -> bool:
    try:
        glob = Glob.parse(pattern)
    except ValueError:
        return False
    return any(glob.matches(name) for name in inventory.by_name)


def _or(values: Sequence[Any]) -> str:
    return " or ".join(str(each) for each in values)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"
