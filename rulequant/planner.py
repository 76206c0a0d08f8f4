"""Making the plan: the predicate evaluated for every module of a model."""

from __future__ import annotations

from collections.abc import Sequence

from rulequant.checks import check_plan, in_layers, quantized_share
from rulequant.containers import ContainerName, in_container
from rulequant.inventory import Inventory, ModuleInfo
from rulequant.plan import Decision, Plan
from rulequant.predicate import Objection, objections
from rulequant.removal import taken_back
from rulequant.ruleset import OriginRule, RemovedSkip, RuleSet
from rulequant.selection import Selection, select

__all__ = ["decide", "make_plan", "tied_modules"]


def make_plan(rules: RuleSet, inventory: Inventory, container: ContainerName | None = "auto") -> Plan:
    """Decide about every module that owns a parameter or a persistent buffer.

    The sizes are those of a checkpoint in a container, or with None of the layers in memory. Problems of the rules with
    this model, or of the model with the container, are in `diagnostics`; nothing is raised for them.
    """
    selection = select(rules, inventory)
    tied = tied_modules(inventory)
    decisions = tuple(decide(info, rules, selection, tied) for info in inventory.owners)
    plan = Plan(
        model=inventory.model,
        rules=rules.file,
        rules_sha256=rules.sha256,
        decisions=decisions,
        schemes=dict(rules.schemes),
        diagnostics=tuple(check_plan(rules, inventory, selection, decisions)),
        model_type=inventory.model_type,
        architecture=inventory.architecture,
        called=inventory.called,
        layer_coverage=quantized_share([each for each in decisions if in_layers(inventory.by_name[each.name])]),
    )
    return in_container(plan, inventory, container) if container else plan


def decide(info: ModuleInfo, rules: RuleSet, selection: Selection, tied: frozenset[str]) -> Decision:
    """The decision about one module: the first objection, or else the scheme of the first rule that selects it."""
    rule = next(iter(selection.rules_of(info)), None)
    name = rule.selector.scheme if rule else rules.scheme
    scheme = rules.schemes.get(name) if name else None
    objection = next(objections(info, rules, selection, scheme, tied), None)
    if objection or scheme is None:
        return _keep(info, objection)
    return Decision(
        name=info.name,
        type=info.type,
        parameters=info.parameters,
        bytes_before=info.nbytes,
        bytes_after=scheme.bytes_after(info),
        scheme=name,
        detail=_why(rule, selection.removed_of(info)),
        rule=rule.location if rule else rules.origin("scheme"),
    )


def _why(rule: OriginRule | None, removed: Sequence[RemovedSkip]) -> str | None:
    """Why the skips that would have decided do not, and the reason of the rule that did."""
    reasons = [taken_back(each) for each in removed]
    reasons += [rule.selector.reason] if rule and rule.selector.reason else []
    return "; ".join(reasons) or None


def _keep(info: ModuleInfo, objection: Objection | None) -> Decision:
    return Decision(
        name=info.name,
        type=info.type,
        parameters=info.parameters,
        bytes_before=info.nbytes,
        bytes_after=info.nbytes,
        reason=objection.reason if objection else "unsupported",
        detail=objection.detail if objection else None,
        rule=objection.location if objection else None,
    )


def tied_modules(inventory: Inventory) -> frozenset[str]:
    """The modules whose `weight` is the same parameter as one of another module, whatever it is called there."""
    tied: set[str] = set()
    for info in inventory.modules:
        for tensor in info.tensors:
            if tensor.tied_to:
                owner, _, name = tensor.tied_to.rpartition(".")
                tied |= {info.name} if tensor.name == "weight" else set()
                tied |= {owner} if name == "weight" else set()
    return frozenset(tied)
