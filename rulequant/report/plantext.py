"""A plan as text: what comes of the model, its modules with equal layers folded, and what stays heavy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rulequant.escaping import printable
from rulequant.plan import Decision, Plan, TypeMass
from rulequant.removal import TAKEN_BACK
from rulequant.report.folding import Fold, fold
from rulequant.report.text import PLAIN, Style, columns, count, percent, size

__all__ = [
    "HEADINGS",
    "NUMERIC",
    "decision_rows",
    "heaviest",
    "is_quantized",
    "loaded",
    "plan_summary",
    "plan_text",
    "verdict",
]

HEADINGS = ("module", "type", "scheme, or why not", "parameters", "before", "after")
NUMERIC = frozenset({3, 4, 5})
HEAVIEST = 5
_DETAIL = 60


def plan_text(plan: Plan, *, every: bool = False, style: Style = PLAIN) -> str:
    """Summary, table and the heaviest unquantized types; diagnostics are printed elsewhere."""
    parts = ["\n".join(plan_summary(plan, style)), "\n".join(_table(plan, every=every, style=style))]
    left = heaviest(plan)
    if left:
        parts.append("\n".join([style.bold("Heaviest unquantized"), *left]))
    return "\n\n".join(part for part in parts if part)


def plan_summary(plan: Plan, style: Style = PLAIN) -> list[str]:
    """Model, rules, sizes, bits per weight and coverage, one line each."""
    facts = plan.summary
    before, after = facts["bytes_before"], facts["bytes_after"]
    kind = ", ".join(each for each in (plan.architecture, plan.model_type) if each)
    rows = [
        ("model", printable(f"{plan.model} ({kind})" if kind else plan.model)),
        ("rules", printable(f"{plan.rules} (sha256 {plan.rules_sha256[:12]})")),
        ("size", f"{size(before)} -> {size(after)} ({percent(after / before)} of it)" if before else "no tensors"),
        ("bits per weight", f"{facts['bits_per_weight']:.2f}"),
        ("parameters", f"{facts['parameters']:,}, {percent(facts['coverage'])} of them quantized"),
        ("layers", f"{percent(facts['layer_coverage'])} of the parameters outside embeddings and heads quantized"),
        ("modules", f"{facts['quantized']:,} of {facts['modules']:,} quantized"),
    ]
    if plan.container:
        rows.append(("container", f"{plan.container}, which {loader(plan)}"))
    rows += [(f"scheme {printable(name)}", text) for name, text in _schemes(plan)]
    width = max(len(label) for label, _ in rows)
    return [f"{style.bold(label.ljust(width))}  {text}" for label, text in rows]


def loader(plan: Plan) -> str:
    """What loads the checkpoint that apply writes."""
    if plan.called:
        return "`rulequant.torch.load_quantized` loads"
    return f"transformers loads {loaded(str(plan.container))}"


def loaded(container: str) -> str:
    """How transformers loads a checkpoint of a container."""
    return "as it is" if container == "bitsandbytes" else "after `import rulequant.torch.transformers`"


def _schemes(plan: Plan) -> Iterable[tuple[str, str]]:
    """The schemes that the plan uses, with their settings."""
    used = dict.fromkeys(each.scheme for each in plan.quantized if each.scheme)
    for name in used:
        settings = plan.schemes[name].model_dump(mode="json")
        listed = ", ".join(f"{key} {str(value).lower()}" for key, value in settings.items() if key != "method")
        yield name, f"{settings['method']}: {listed}"


def _table(plan: Plan, *, every: bool, style: Style) -> list[str]:
    rows = decision_rows(plan.decisions, every=every)
    if not rows:
        return ["the model has no parameters"]
    lines = columns([HEADINGS, *rows], right=NUMERIC)
    return [style.bold(lines[0]), *lines[1:]]


def decision_rows(decisions: Iterable[Decision], *, every: bool = False) -> list[tuple[str, ...]]:
    """A row of HEADINGS for each decision, or for each fold of equal ones."""
    decisions = list(decisions)
    folds = [Fold(each.name, (each,)) for each in decisions] if every else _folds(decisions)
    return [_row(each) for each in folds]


def _folds(decisions: Sequence[Decision]) -> list[Fold[Decision]]:
    return fold(decisions, lambda each: each.name, lambda each: (each.type, each.scheme, each.reason, each.detail))


def _row(folded: Fold[Decision]) -> tuple[str, ...]:
    first = folded.items[0]
    times = f" ×{len(folded)}" if len(folded) > 1 else ""
    return (
        printable(folded.pattern or "(the model itself)") + times,
        printable(first.type),
        printable(verdict(first)),
        f"{sum(each.parameters for each in folded.items):,}",
        size(sum(each.bytes_before for each in folded.items)),
        size(sum(each.bytes_after for each in folded.items)),
    )


def verdict(decision: Decision, limit: int = _DETAIL) -> str:
    """The scheme, or why there is none: `skip: the router decides (rules.yaml:7)`.

    The reason of a rule is left to `why`: it would be the same on many lines.
    """
    detail = (decision.detail or "").removeprefix("skip_modules: ")
    text = decision.scheme or str(decision.reason)
    if detail and (detail.startswith(TAKEN_BACK) if decision.scheme else decision.reason != "type"):
        text += f": {detail if len(detail) <= limit else detail[: limit - 1] + '…'}"
    if decision.scheme:
        return text
    return f"{text} ({decision.rule.file}:{decision.rule.line})" if decision.rule else text


def is_quantized(row: Sequence[str], plan: Plan) -> bool:
    """Whether a row of `decision_rows` is about modules that are quantized."""
    return row[HEADINGS.index("scheme, or why not")].partition(":")[0] in plan.schemes


def heaviest(plan: Plan, limit: int = HEAVIEST) -> list[str]:
    """The classes that keep most of the parameters unquantized, with the reason."""
    total = plan.summary["parameters"]
    masses = [each for each in plan.unquantized_by_type if each.parameters]
    rows = [_mass_row(each, total) for each in masses[:limit]]
    if len(masses) > limit:
        rest = masses[limit:]
        rows.append((
            f"{len(rest)} more",
            "",
            count(sum(each.modules for each in rest), "module"),
            percent(sum(each.parameters for each in rest) / total),
            size(sum(each.bytes for each in rest)),
        ))  # fmt: skip
    return columns(rows, right=frozenset({3, 4}), indent="  ")


def _mass_row(mass: TypeMass, total: int) -> tuple[str, ...]:
    share = percent(mass.parameters / total)
    return (printable(mass.type), mass.reason, count(mass.modules, "module"), share, size(mass.bytes))
