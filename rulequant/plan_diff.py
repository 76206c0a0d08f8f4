"""What a change of the rules or of the model changes in the plan: modules decided differently or moved, and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rulequant.inventory import TensorInfo
from rulequant.lock_file import Lock, contents
from rulequant.plan import Decision, Plan
from rulequant.renames import pair_renames

__all__ = ["Change", "PlanDiff", "compare", "compare_locks"]

Tensors = Mapping[str, tuple[TensorInfo, ...]]


@dataclass(frozen=True, slots=True)
class Change:
    """One module in both plans."""

    before: Decision
    after: Decision
    contents: tuple[Mapping[str, str], Mapping[str, str]] | None = None
    """The tensors as text by local name, where class or tensors differ."""

    @property
    def name(self) -> str:
        """The module, as the first plan calls it."""
        return self.before.name

    @property
    def renamed(self) -> bool:
        """Whether the second plan calls it otherwise."""
        return self.before.name != self.after.name

    def to_dict(self) -> dict[str, Any]:
        """The change as JSON-ready data."""
        return {
            "name": self.name,
            **({"name_after": self.after.name} if self.renamed else {}),
            "type": self.before.type,
            "parameters": self.before.parameters,
            "a": _side(self.before) | self._contents(0),
            "b": _side(self.after) | self._contents(1),
        }

    def _contents(self, side: int) -> dict[str, Any]:
        if self.contents is None:
            return {}
        return {"type": (self.before, self.after)[side].type, "tensors": dict(self.contents[side])}


@dataclass(frozen=True)
class PlanDiff:
    """Two plans, and the modules in which they differ."""

    a: Plan
    b: Plan
    changes: tuple[Change, ...]
    schemes: tuple[str, ...]
    """The schemes that both plans use under one name, with other settings."""
    removed: tuple[Decision, ...] = ()
    """Modules of the first plan that the second lacks."""
    added: tuple[Decision, ...] = ()
    """Modules that only the second plan has."""
    renamed: tuple[Change, ...] = ()
    """Modules that are likely the same under another name; those decided differently too."""

    def __bool__(self) -> bool:
        moved = self.a.container != self.b.container
        return bool(self.changes or self.removed or self.added or self.renamed or moved)

    @property
    def modules(self) -> int:
        """How many modules differ."""
        return len(self.changes) + len(self.removed) + len(self.added) + len(self.renamed)

    @property
    def bytes_change(self) -> int:
        """How many bytes more the second plan takes."""
        return int(self.b.summary["bytes_after"] - self.a.summary["bytes_after"])

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON-ready data."""
        return {
            "format_version": 1,
            "model": self.a.model,
            "a": _about(self.a),
            "b": _about(self.b),
            "schemes_changed": list(self.schemes),
            "changes": [each.to_dict() for each in self.changes],
            "renamed": [each.to_dict() for each in self.renamed],
            "removed": [_alone(each) for each in self.removed],
            "added": [_alone(each) for each in self.added],
        }


def compare(a: Plan, b: Plan) -> PlanDiff:
    """The difference of two plans for one model; a scheme counts by its settings, not by its name.

    A "no" counts as changed when its reason does: the module stays as it is, and for another cause.
    """
    changes = [
        Change(before, after)
        for before, after in zip(a.decisions, b.decisions, strict=True)
        if _meaning(before, a) != _meaning(after, b)
    ]
    return PlanDiff(a, b, tuple(changes), _schemes_changed(a, b))


def compare_locks(a: Lock, b: Lock) -> PlanDiff:
    """The difference of a lock and what it would be now: the model may have other modules, or the same changed.

    Class, shapes and dtypes count beside the decision, and so do the bytes that come of it.
    """
    gone = _facts(a, (each for each in a.plan.decisions if each.name not in b.plan.by_name))
    come = _facts(b, (each for each in b.plan.decisions if each.name not in a.plan.by_name))
    renames = pair_renames(gone, come)
    arrived = set(renames.values())
    both = [(each, b.plan.by_name[each.name]) for each in a.plan.decisions if each.name in b.plan.by_name]
    return PlanDiff(
        a.plan,
        b.plan,
        changes=tuple(change for before, after in both if (change := _change(before, after, a, b))),
        schemes=_schemes_changed(a.plan, b.plan),
        removed=tuple(a.plan.by_name[name] for name in gone if name not in renames),
        added=tuple(b.plan.by_name[name] for name in come if name not in arrived),
        renamed=tuple(Change(a.plan.by_name[old], b.plan.by_name[new]) for old, new in renames.items()),
    )


def _facts(lock: Lock, decisions: Iterable[Decision]) -> dict[str, tuple[object, ...]]:
    """What a rename leaves as it is: the class, and the tensors; what they are tied to is renamed with the rest."""
    return {
        each.name: (each.type, *(replace(tensor, tied_to=None) for tensor in lock.tensors[each.name]))
        for each in decisions
    }


def _change(before: Decision, after: Decision, a: Lock, b: Lock) -> Change | None:
    old, new = (contents(lock.tensors[before.name]) for lock in (a, b))
    change = Change(before, after, (old, new) if (before.type, old) != (after.type, new) else None)
    alike = _meaning(before, a.plan) == _meaning(after, b.plan) and before.bytes_after == after.bytes_after
    return None if alike and change.contents is None else change


def _schemes_changed(a: Plan, b: Plan) -> tuple[str, ...]:
    used = {each.scheme for each in a.quantized} & {each.scheme for each in b.quantized}
    return tuple(sorted(name for name in used if name and a.schemes[name] != b.schemes[name]))


def _meaning(decision: Decision, plan: Plan) -> tuple[object, object]:
    return (plan.schemes[decision.scheme] if decision.scheme else None, decision.reason)


def _about(plan: Plan) -> dict[str, Any]:
    return {
        "rules": plan.rules,
        "rules_sha256": plan.rules_sha256,
        "container": plan.container,
        "summary": plan.summary,
    }


def _alone(decision: Decision) -> dict[str, Any]:
    return {
        "name": decision.name,
        "type": decision.type,
        "parameters": decision.parameters,
        **_side(decision),
    }


def _side(decision: Decision) -> dict[str, Any]:
    return {
        "scheme": decision.scheme,
        "reason": decision.reason,
        "detail": decision.detail,
        "rule": {"file": decision.rule.file, "line": decision.rule.line} if decision.rule else None,
        "bytes": decision.bytes_after,
    }
