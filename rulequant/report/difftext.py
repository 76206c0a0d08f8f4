"""The difference of two plans as text, and that of a plan and its lock."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from rulequant.escaping import printable
from rulequant.lock_file import Lock
from rulequant.plan import Decision, Plan
from rulequant.plan_diff import Change, PlanDiff
from rulequant.ranges import shape_of
from rulequant.report.folding import Fold, fold
from rulequant.report.plantext import verdict
from rulequant.report.text import PLAIN, Style, columns, count, percent, signed_size, size

__all__ = ["check_text", "diff_text"]

T = TypeVar("T")
Sides = tuple[str, str]


def diff_text(found: PlanDiff, *, every: bool = False, style: Style = PLAIN) -> str:
    """Which modules change, layers folded, and what that does to the size."""
    head = [f"{style.bold(letter)}  {printable(plan.rules)}" for letter, plan in (("a", found.a), ("b", found.b))]
    if not found:
        return "\n".join([*head, "", "every module is decided alike"])
    return "\n".join([*head, "", *_entries(found, every=every, style=style), "", *_totals(found, ("a", "b"))])


def check_text(
    found: PlanDiff, locks: tuple[Lock, Lock], file: str, *, every: bool = False, style: Style = PLAIN
) -> str:
    """What has changed since a lock was written to a file, or that nothing has."""
    locked, now = locks
    notes = _notes(locked, now)
    if not found:
        modules = count(len(now.plan.decisions), "module")
        total = size(now.plan.summary["bytes_after"])
        return "\n".join([f"{printable(file)} holds: {modules} decided as locked, {total}", *notes])
    head = [
        f"{style.bold('locked')}  {printable(file)}: {printable(locked.plan.model)}, {_rules(locked.plan)}",
        f"{style.bold('now   ')}  {printable(now.plan.model)}, {_rules(now.plan)}",
        *notes,
    ]
    return "\n".join([*head, "", *_entries(found, every=every, style=style), "", *_totals(found, ("locked", "now"))])


def _rules(plan: Plan) -> str:
    return f"{printable(plan.rules)} (sha256 {plan.rules_sha256[:12]})"


def _notes(locked: Lock, now: Lock) -> list[str]:
    """What is not the same, whether or not it shows in a module."""
    notes = [
        f"  {printable(name)} {printable(locked.versions.get(name, 'none'))} -> "
        f"{printable(now.versions.get(name, 'none'))}"
        for name in dict.fromkeys([*locked.versions, *now.versions])
        if locked.versions.get(name) != now.versions.get(name)
    ]
    if locked.plan.rules_sha256 != now.plan.rules_sha256:
        notes.append("  the rules were edited")
    return notes


def _entries(found: PlanDiff, *, every: bool, style: Style) -> list[str]:
    lines: list[str] = []
    for each in _folds(found.renamed, _name, lambda change: (_kind(change), shape_of(change.after.name)), every):
        lines += _change(each, style)
    for each in _folds(found.changes, _name, _kind, every):
        lines += _change(each, style)
    for decisions, sign, word, code in ((found.removed, "-", "gone", "31"), (found.added, "+", "new", "32")):
        for one in _folds(decisions, lambda decision: decision.name, _decided, every):
            lines += _alone(one, f"{sign} {word}", code, style)
    if found.schemes:
        names = ", ".join(printable(each) for each in found.schemes)
        lines += ["", f"same name, other settings: {names}"]
    return lines


def _folds(items: Sequence[T], name: Callable[[T], str], key: Callable[[T], Hashable], every: bool) -> list[Fold[T]]:
    return [Fold(name(each), (each,)) for each in items] if every else fold(items, name, key, stars=False)


def _name(change: Change) -> str:
    return change.name


def _kind(change: Change) -> Hashable:
    contents = tuple(tuple(each.items()) for each in change.contents or ())
    return (_decided(change.before), _decided(change.after), contents)


def _decided(decision: Decision) -> Hashable:
    return (decision.type, decision.scheme, decision.reason, decision.detail)


def _change(folded: Fold[Change], style: Style) -> list[str]:
    first = folded.items[0]
    before = sum(each.before.bytes_after for each in folded.items)
    after = sum(each.after.bytes_after for each in folded.items)
    about = [printable(first.before.type), _parameters([each.before for each in folded.items])]
    about += [signed_size(after - before)] if after != before or not first.renamed else []
    head = _head(folded, f" ({', '.join(about)})", style)
    lines = [head] if not first.renamed else [head, f"  likely renamed to {style.bold(printable(_new_names(folded)))}"]
    old, new = (f"{_content(first, side)}{verdict(each)}" for side, each in enumerate((first.before, first.after)))
    if first.renamed and _same(first):
        return lines
    return [*lines, style.paint(f"  - {printable(old)}", "31"), style.paint(f"  + {printable(new)}", "32")]


def _same(change: Change) -> bool:
    before, after = change.before, change.after
    return (before.scheme, before.reason, before.bytes_after) == (after.scheme, after.reason, after.bytes_after)


def _new_names(folded: Fold[Change]) -> str:
    names = [each.after.name for each in folded.items]
    return ", ".join(each.pattern for each in fold(names, str, lambda _: None, stars=False))


def _content(change: Change, side: int) -> str:
    """What the module is, where that is among what changed."""
    if change.contents is None:
        return ""
    tensors = ", ".join(f"{name} {text}" for name, text in change.contents[side].items())
    return f"{(change.before, change.after)[side].type}, {tensors}: "


def _alone(folded: Fold[Decision], sign: str, code: str, style: Style) -> list[str]:
    first = folded.items[0]
    nbytes = size(sum(each.bytes_after for each in folded.items))
    head = _head(folded, f" ({printable(first.type)}, {_parameters(folded.items)}, {nbytes})", style)
    return [head, style.paint(f"  {sign}: {printable(verdict(first))}", code)]


def _head(folded: Fold[T], about: str, style: Style) -> str:
    times = f" ×{len(folded)}" if len(folded) > 1 else ""
    name = printable(folded.pattern) or "(the model itself)"
    return f"{style.bold(name)}{times} {style.dim(about)}"


def _parameters(decisions: Sequence[Decision]) -> str:
    return count(sum(each.parameters for each in decisions), "parameter")


def _totals(found: PlanDiff, names: tuple[str, str]) -> list[str]:
    a, b = found.a.summary, found.b.summary
    rows = [
        ("", *names, "change"),
        ("size", size(a["bytes_after"]), size(b["bytes_after"]), signed_size(found.bytes_change)),
        ("bits per weight", f"{a['bits_per_weight']:.2f}", f"{b['bits_per_weight']:.2f}",
         f"{b['bits_per_weight'] - a['bits_per_weight']:+.2f}"),
        ("quantized", percent(a["coverage"]), percent(b["coverage"]),
         f"{100 * (b['coverage'] - a['coverage']):+.1f} points"),
    ]  # fmt: skip
    if found.a.container != found.b.container:
        rows.append(("container", str(found.a.container), str(found.b.container), "differs"))
    return [f"{count(found.modules, 'module')} changed", "", *columns(rows, right=frozenset({1, 2, 3}))]
