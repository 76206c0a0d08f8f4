"""Making the plan: the predicate evaluated for every module of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rulequant.checks import check_plan, in_layers, quantized_share
from rulequant.containers import ContainerName, in_container
from rulequant.inventory import Inventory, ModuleInfo
from rulequant.plan import Decision, Plan
from rulequant.predicate import Objection, objections
from rulequant.removal import taken_back
from rulequant.ruleset import OriginRule, RemovedSkip, RuleSet
from rulequant.selection import Selection, select
from rulequant.ties import find_ties

__all__ = ["decide", "held_by_ties", "make_plan"]


def make_plan(rules: RuleSet, inventory: Inventory, container: ContainerName | None = "auto") -> Plan:
    """Decide about every module that owns a parameter or a persistent buffer.

    The sizes are those of a checkpoint in a container, or with None of the layers in memory. Problems of the rules with
    this model, or of the model with the container, are in `diagnostics`; nothing is raised for them.
    """
    selection = select(rules, inventory)
    held = held_by_ties(rules, inventory, selection)
    decisions = tuple(decide(info, rules, selection, held) for info in inventory.owners)
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


def decide(info: ModuleInfo, rules: RuleSet, selection: Selection, held: Mapping[str, str]) -> Decision:
    """The decision about one module: the first objection, or else the scheme of the first rule that selects it.

    `held` is what `held_by_ties` gives.
    """
    rule = next(iter(selection.rules_of(info)), None)
    name = rule.selector.scheme if rule else rules.scheme
    scheme = rules.schemes.get(name) if name else None
    objection = next(objections(info, rules, selection, scheme, held), None)
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


def held_by_ties(rules: RuleSet, inventory: Inventory, selection: Selection) -> dict[str, str]:
    """Why modules that share a weight have to keep it, by their names.

    Those that use it alike are quantized together or not at all: all of them, and by the same scheme.
    """
    ties = find_ties(inventory)
    held = dict.fromkeys(ties.mixed, "its weight is the same parameter as another module's, which needs it as it is")
    alone = {name: decide(inventory.by_name[name], rules, selection, {}) for name in ties.twins}
    for name, twins in ties.twins.items():
        why = _at_odds(alone[name], [alone[each] for each in twins], rules) if alone[name].quantize else None
        if why:
            held[name] = why
    return held


def _at_odds(decision: Decision, twins: Sequence[Decision], rules: RuleSet) -> str | None:
    """Why a module cannot be quantized with those that share its weight."""
    scheme = rules.schemes[str(decision.scheme)]
    other = next((each for each in twins if each.scheme != decision.scheme), None)
    if other is None:
        return None if scheme.shares else f"{scheme.method} has no layers that share a weight, as it does with another"
    what = f"stays ({other.reason})" if other.reason else f"gets `{other.scheme}`, and it would get `{decision.scheme}`"
    return f"its weight is the same parameter as that of `{other.name}`, which {what}"
