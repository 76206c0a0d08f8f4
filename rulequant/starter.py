"""A commented rule file to start from, made for one model: what it has, and what usually wants a second thought."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rulequant.checks import HEAVY
from rulequant.diagnostics import DiagnosticsError, Severity, has_errors
from rulequant.escaping import printable
from rulequant.inventory import Inventory, ModuleInfo
from rulequant.known_types import known_types
from rulequant.library import find
from rulequant.loader import Loader, load_rules
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.report.folding import fold
from rulequant.report.rulestext import scalar
from rulequant.report.text import columns, count, percent, size
from rulequant.ruleset import OriginSkip, RuleSet
from rulequant.selection import select
from rulequant.tasks import CONNECTORS, TOWERS, task_of
from rulequant.ties import find_ties

__all__ = ["starter_text"]

_CLASSES = 8
_ROUTERS = frozenset({"gate", "router", "wg", "shared_expert_gate"})
_ROUTER_REASON = "it chooses the experts, and a wrong choice is not averaged out"


@dataclass(frozen=True)
class _Base:
    """What the file extends, and what that alone makes of the model."""

    name: str
    rules: RuleSet
    plan: Plan
    is_family: bool
    misfit: str | None = None
    """Why it is not the family's file, where there is one."""


def starter_text(inventory: Inventory) -> str:
    """YAML that validates cleanly and plans without errors for this model."""
    base = _base(inventory)
    parts = [
        _head(inventory, base),
        _types(inventory, base),
        _outputs(inventory),
        _skips(inventory, base),
        _inherited_skips(inventory, base),
        _schemes(base),
    ]
    text = _joined(parts)
    floor = _expect(make_plan(_loaded(text), inventory), base)
    return _joined([text.rstrip("\n").splitlines(), floor])


def _joined(parts: Sequence[Sequence[str]]) -> str:
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _loaded(text: str) -> RuleSet:
    """The rule set of the text so far, without the floor that depends on it."""
    loader = Loader()
    loaded = loader.load_text(text, file="<starter>")
    rules = loader.resolve(loaded) if loaded else None
    if rules is None:
        raise DiagnosticsError(loader.diagnostics)
    return rules


def _base(inventory: Inventory) -> _Base:
    """The family's file where it fits the model, else the default for its task."""
    family = find(inventory.model_type) if inventory.model_type else None
    misfit = None
    if family:
        rules = load_rules(family)
        plan = make_plan(rules, inventory)
        if not has_errors(plan.diagnostics):
            return _Base(family, rules, plan, is_family=True)
        first = next(each for each in plan.diagnostics if each.severity is Severity.ERROR)
        misfit = f"{family}, the bundled file of the family, does not fit: {first.message}"
    task = task_of(inventory)
    rules = load_rules(task)
    return _Base(task, rules, make_plan(rules, inventory), is_family=False, misfit=misfit)


def _head(inventory: Inventory, base: _Base) -> list[str]:
    kind = inventory.model_type or inventory.architecture or "model"
    facts = f"{inventory.parameters:,} parameters, {size(base.plan.summary['bytes_before'])}"
    lines = [
        f"# Rules for {printable(inventory.model)} ({printable(inventory.architecture or kind)}, {facts}).",
        "# `rulequant plan` shows what they come to, `rulequant why` what decides about one module,",
        "# `rulequant explain CODE` what a finding means.",
        "version: 1",
        f"name: {scalar(f'{kind}-quantized')}",
        *([f"# {printable(base.misfit)}"] if base.misfit else []),
        f"extends: {base.name}  # `rulequant show {base.name}` prints it; what stands here comes on top",
    ]
    if inventory.model_type and not base.is_family:
        lines.append(f"models: [{scalar(inventory.model_type)}]")
    return lines


def _types(inventory: Inventory, base: _Base) -> list[str]:
    """The classes by weight, those to list because the scheme can hold them, and why it cannot hold the others."""
    lines = ["# The classes that hold the parameters:"]
    lines += columns((_class_row(each, inventory) for each in _classes(inventory)[:_CLASSES]), indent="#   ")
    for name, reason in _left_out(inventory, base):
        lines.append(f"# {printable(name)} stays as it is: {printable(reason)}.")
    for name in _on_request(inventory, base):
        lines.append(f"# {printable(name)} can be listed too; then only transformers with rulequant loads the result.")
    listed = base.rules.quantizable_types
    more = _more_types(inventory, base)
    types = f"quantizable_types: [{', '.join(scalar(each) for each in (*listed, *more))}]"
    return [*lines, types if more else f"# {types}"]


def _classes(inventory: Inventory) -> list[tuple[str, list[ModuleInfo]]]:
    groups: dict[str, list[ModuleInfo]] = {}
    for each in inventory.owners:
        groups.setdefault(each.type, []).append(each)
    return sorted(groups.items(), key=lambda item: -sum(each.parameters for each in item[1]))


def _class_row(group: tuple[str, list[ModuleInfo]], inventory: Inventory) -> tuple[str, ...]:
    name, modules = group
    share = sum(each.parameters for each in modules) / max(1, inventory.parameters)
    return (printable(name), percent(share), count(len(modules), "module"))


def _more_types(inventory: Inventory, base: _Base) -> list[str]:
    """Classes that the base passes over, that its scheme can hold, and that are known by name."""
    known = known_types()
    reasons = _passed_over(inventory, base)
    own = _own_layers(inventory)
    return sorted(name for name, reason in reasons.items() if reason is None and name in known and name not in own)


def _left_out(inventory: Inventory, base: _Base) -> Iterator[tuple[str, str]]:
    """Heavy classes that the scheme cannot hold, and why; embeddings are left out on purpose."""
    reasons = _passed_over(inventory, base)
    for name, modules in _classes(inventory):
        share = sum(each.parameters for each in modules) / max(1, inventory.parameters)
        reason = reasons.get(name)
        if reason and share >= HEAVY and modules[0].kind != "embedding":
            yield name, reason


def _on_request(inventory: Inventory, base: _Base) -> list[str]:
    """Heavy embeddings and convolutions that the scheme can hold; who lists one gives plain bitsandbytes up."""
    reasons = _passed_over(inventory, base)
    mixed = find_ties(inventory).mixed
    free = {
        name: sum(each.parameters for each in modules if each.name not in mixed) / max(1, inventory.parameters)
        for name, modules in _classes(inventory)
    }
    return [each for each in _own_layers(inventory) if reasons.get(each, "") is None and free[each] >= HEAVY]


def _own_layers(inventory: Inventory) -> list[str]:
    """Classes whose quantized layers are rulequant's own, which the stock loader does not know."""
    return list(dict.fromkeys(each.type for each in inventory.owners if each.kind in {"embedding", "convolution"}))


def _passed_over(inventory: Inventory, base: _Base) -> dict[str, str | None]:
    """The classes that quantizable_types lacks, and why the scheme cannot hold one of their modules, if so."""
    scheme = base.rules.schemes[base.rules.scheme or ""]
    found: dict[str, str | None] = {}
    for each in inventory.owners:
        if base.plan.by_name[each.name].reason == "type":
            found[each.type] = found.get(each.type) or scheme.unsupported(each)
    return found


def _outputs(inventory: Inventory) -> list[str]:
    found = [each for each in inventory.modules if each.output_embedding or each.output_head]
    if not found:
        return []
    names = ", ".join(f"{printable(each.name)} ({printable(each.type)})" for each in found[:3])
    tied = sum(each.shares_output_embedding for each in inventory.modules)
    also = f" {count(tied, 'module')} tied to it stay{'s' if tied == 1 else ''} too." if tied else ""
    return [f"# Output: {names}.{also}", "# output_embeddings: skip"]


def _skips(inventory: Inventory, base: _Base) -> list[str]:
    """Routers as an entry, towers as a proposal, an example where there is neither."""
    routers = list(_patterns(inventory, base, _ROUTERS))
    towers = _tower_names(inventory, base)
    lines = ["# Modules that stay as they are, and why; what is inside a selected module is selected too."]
    if not routers:
        lines += ["# skip_modules:"]
        example = towers[0] if towers else _first_quantized(base)
        lines += [f"#   - modules: {scalar(example)}", "#     reason: say why"] if example else []
        return lines if example else []
    lines += ["skip_modules:"]
    for pattern in routers:
        lines += [f"  - modules: {scalar(pattern)}", f"    reason: {scalar(_ROUTER_REASON)}"]
    for name in towers:
        lines += [f"  # - modules: {scalar(name)}", "  #   reason: say why"]
    return lines


def _inherited_skips(inventory: Inventory, base: _Base) -> list[str]:
    """The skips that the file comes with, of those that select something here."""
    uses = (each for each in select(base.rules, inventory).uses if isinstance(each.entry, OriginSkip))
    texts = dict.fromkeys(each.glob.text for each in uses if each.owners)
    if not texts:
        return []
    listed = ", ".join(scalar(each) for each in texts)
    return [f"# What {base.name} skips is taken back by its patterns:", f"# remove_skips: [{listed}]"]


def _patterns(inventory: Inventory, base: _Base, leaves: frozenset[str]) -> Iterator[str]:
    """`**.mlp.gate` for each shape of module of these names that would be quantized now, beside experts."""
    types = {*base.rules.quantizable_types, *_more_types(inventory, base)}
    seen: set[str] = set()
    for each in inventory.owners:
        above, _, leaf = each.name.rpartition(".")
        decision = base.plan.by_name[each.name]
        taken = decision.quantize or (decision.reason == "type" and each.type in types)
        if leaf not in leaves or not taken or not _has_experts(above, inventory):
            continue
        pattern = f"**.{above.rpartition('.')[2]}.{leaf}"
        if pattern not in seen:
            seen.add(pattern)
            yield pattern


def _has_experts(above: str, inventory: Inventory) -> bool:
    return any(f"{above}.{each}" in inventory.by_name for each in ("experts", "shared_expert", "expert_weights"))


def _tower_names(inventory: Inventory, base: _Base) -> list[str]:
    """Parts beside a language model, of which something would be quantized."""
    towers = [each.name for each in inventory.modules if each.name.rpartition(".")[2] in TOWERS | CONNECTORS]
    quantized = [each.name for each in base.plan.quantized]
    return [
        name
        for name in towers
        if any(each.startswith(f"{name}.") for each in quantized)
        and any(not each.startswith(f"{name}.") for each in quantized)
    ]


def _first_quantized(base: _Base) -> str | None:
    """A pattern of the model for an example: the last kind of layer that is quantized."""
    folds = fold(base.plan.quantized, lambda each: each.name, lambda each: each.type)
    return folds[-1].pattern if folds else None


def _schemes(base: _Base) -> list[str]:
    example = _first_quantized(base)
    names = ", ".join(base.rules.schemes)
    lines = [f"# The scheme of all others is {base.rules.scheme}; {base.name} defines {names}."]
    if example:
        lines += [
            "# Exceptions, of which the first that matches wins:",
            "# rules:",
            f"#   - modules: {scalar(example)}",
            '#     layers: ["0:2", "-2:"]  # the first two and the last two',
            f"#     scheme: {_other_scheme(base)}",
        ]
    return lines


def _other_scheme(base: _Base) -> str:
    """One of the same method, so that the checkpoint stays one that plain transformers loads."""
    schemes = base.rules.schemes
    default = schemes[base.rules.scheme] if base.rules.scheme else None
    others = [name for name, each in schemes.items() if each is not default]
    return next((each for each in others if default and schemes[each].method == default.method), others[0])


def _expect(plan: Plan, base: _Base) -> list[str]:
    """A floor just below what the plan reaches now, where nobody set one."""
    share = plan.summary["coverage"]
    floor = math.floor(share * 100) / 100
    lines = ["# plan and apply refuse to quantize less: a renamed module in a new version shows at once."]
    if floor <= 0 or base.rules.expect.min_quantized is not None:
        return []
    return [*lines, "expect:", f"  min_quantized: {floor:g}  # of all parameters; now it is {percent(share)}"]
