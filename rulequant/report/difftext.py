"""The difference of two plans as text."""

from __future__ import annotations

from rulequant.escaping import printable
from rulequant.plan_diff import Change, PlanDiff
from rulequant.report.folding import Fold, fold
from rulequant.report.plantext import verdict
from rulequant.report.text import PLAIN, Style, columns, count, percent, signed_size, size

__all__ = ["diff_text"]


def diff_text(found: PlanDiff, *, every: bool = False, style: Style = PLAIN) -> str:
    """Which modules change, layers folded, and what that does to the size."""
    head = [f"{style.bold(letter)}  {printable(plan.rules)}" for letter, plan in (("a", found.a), ("b", found.b))]
    if not found.changes:
        return "\n".join([*head, "", "every module is decided alike"])
    folds = [Fold(each.name, (each,)) for each in found.changes] if every else _folds(found)
    lines: list[str] = []
    for each in folds:
        lines += _entry(each, style)
    if found.schemes:
        names = ", ".join(printable(each) for each in found.schemes)
        lines += ["", f"same name, other settings: {names}"]
    return "\n".join([*head, "", *lines, "", *_totals(found)])


def _folds(found: PlanDiff) -> list[Fold[Change]]:
    return fold(
        found.changes,
        lambda each: each.name,
        lambda each: (each.before.type, _side(each, "before"), _side(each, "after")),
    )


def _side(change: Change, which: str) -> tuple[object, ...]:
    decision = change.before if which == "before" else change.after
    return (decision.scheme, decision.reason, decision.detail)


def _entry(folded: Fold[Change], style: Style) -> list[str]:
    first = folded.items[0]
    times = f" ×{len(folded)}" if len(folded) > 1 else ""
    before = sum(each.before.bytes_after for each in folded.items)
    after = sum(each.after.bytes_after for each in folded.items)
    parameters = sum(each.before.parameters for each in folded.items)
    about = f"{printable(first.before.type)}, {count(parameters, 'parameter')}, {signed_size(after - before)}"
    return [
        f"{style.bold(printable(folded.pattern))}{times}  {style.dim(f'({about})')}",
        style.paint(f"  - {printable(verdict(first.before))}", "31"),
        style.paint(f"  + {printable(verdict(first.after))}", "32"),
    ]


def _totals(found: PlanDiff) -> list[str]:
    a, b = found.a.summary, found.b.summary
    rows = [
        ("", "a", "b", "change"),
        ("size", size(a["bytes_after"]), size(b["bytes_after"]), signed_size(found.bytes_change)),
        ("bits per weight", f"{a['bits_per_weight']:.2f}", f"{b['bits_per_weight']:.2f}",
         f"{b['bits_per_weight'] - a['bits_per_weight']:+.2f}"),
        ("quantized", percent(a["coverage"]), percent(b["coverage"]),
         f"{100 * (b['coverage'] - a['coverage']):+.1f} points"),
    ]  # fmt: skip
    changed = count(len(found.changes), "module")
    return [f"{changed} changed", "", *columns(rows, right=frozenset({1, 2, 3}))]
