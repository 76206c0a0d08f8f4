"""What a change of the rules changes in the plan: the modules that are decided differently, and the sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rulequant.plan import Decision, Plan

__all__ = ["Change", "PlanDiff", "compare"]


@dataclass(frozen=True, slots=True)
class Change:
    """One module under both rule sets."""

    before: Decision
    after: Decision

    @property
    def name(self) -> str:
        """The module."""
        return self.before.name

    def to_dict(self) -> dict[str, Any]:
        """The change as JSON-ready data."""
        return {
            "name": self.name,
            "type": self.before.type,
            "parameters": self.before.parameters,
            "a": _side(self.before),
            "b": _side(self.after),
        }


@dataclass(frozen=True)
class PlanDiff:
    """Two plans for one model, and the modules in which they differ."""

    a: Plan
    b: Plan
    changes: tuple[Change, ...]
    schemes: tuple[str, ...]
    """The schemes that both plans use under one name, with other settings."""

    @property
    def bytes_change(self) -> int:
        """How many bytes more the second plan takes."""
        return int(self.b.summary["bytes_after"] - self.a.summary["bytes_after"])

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON-ready data."""
        return {
            "format_version": 1,
            "model": self.a.model,
            "a": {"rules": self.a.rules, "rules_sha256": self.a.rules_sha256, "summary": self.a.summary},
            "b": {"rules": self.b.rules, "rules_sha256": self.b.rules_sha256, "summary": self.b.summary},
            "schemes_changed": list(self.schemes),
            "changes": [each.to_dict() for each in self.changes],
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
    used = {each.scheme for each in a.quantized} & {each.scheme for each in b.quantized}
    schemes = sorted(name for name in used if name and a.schemes[name] != b.schemes[name])
    return PlanDiff(a, b, tuple(changes), tuple(schemes))


def _meaning(decision: Decision, plan: Plan) -> tuple[object, object]:
    return (plan.schemes[decision.scheme] if decision.scheme else None, decision.reason)


def _side(decision: Decision) -> dict[str, Any]:
    return {
        "scheme": decision.scheme,
        "reason": decision.reason,
        "detail": decision.detail,
        "rule": {"file": decision.rule.file, "line": decision.rule.line} if decision.rule else None,
        "bytes": decision.bytes_after,
    }
