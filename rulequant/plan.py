"""The plan: one decision for each module that owns a tensor, and what they come to; every executor consumes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rulequant.diagnostics import Diagnostic, Location, has_errors
from rulequant.predicate import Reason
from rulequant.schemes import Scheme

__all__ = ["FORMAT_VERSION", "Decision", "Plan", "TypeMass"]

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one module, and why."""

    name: str
    type: str
    parameters: int
    bytes_before: int
    bytes_after: int
    scheme: str | None = None
    """The scheme that it gets; None where it stays as it is."""
    reason: Reason | None = None
    detail: str | None = None
    rule: Location | None = None
    """The line of the rule, or of the skip, that decided."""

    @property
    def quantize(self) -> bool:
        """Whether `Quantize(M)` holds."""
        return self.scheme is not None

    def to_dict(self) -> dict[str, Any]:
        """The decision as an entry of the plan JSON."""
        return {
            "name": self.name,
            "type": self.type,
            "parameters": self.parameters,
            "quantize": self.quantize,
            "scheme": self.scheme,
            "reason": self.reason,
            "detail": self.detail,
            "rule": {"file": self.rule.file, "line": self.rule.line} if self.rule else None,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }


@dataclass(frozen=True, slots=True)
class TypeMass:
    """How much of the model stays unquantized in modules of one class, for one reason."""

    type: str
    reason: Reason
    modules: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Plan:
    """Every decision about a model, and what they come to."""

    model: str
    rules: str
    rules_sha256: str
    decisions: tuple[Decision, ...]
    schemes: dict[str, Scheme]
    diagnostics: tuple[Diagnostic, ...] = ()
    model_type: str | None = None
    architecture: str | None = None
    container: str | None = None
    """Who loads the checkpoint that apply writes, `bitsandbytes` or `rulequant`; None for a model in memory."""
    called: bool = False
    """A callable returned the model, so that rulequant itself loads the checkpoint."""
    layer_coverage: float = 0.0
    """Share of the parameters outside embeddings and output heads that is quantized."""

    @cached_property
    def by_name(self) -> dict[str, Decision]:
        """The decisions by module name."""
        return {each.name: each for each in self.decisions}

    @property
    def quantized(self) -> Iterator[Decision]:
        """The decisions to quantize."""
        return (each for each in self.decisions if each.quantize)

    @property
    def ok(self) -> bool:
        """Whether no diagnostic stands in the way of applying it."""
        return not has_errors(self.diagnostics)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Counts, bytes, bits per weight and coverage."""
        parameters = sum(each.parameters for each in self.decisions)
        quantized = sum(each.parameters for each in self.quantized)
        after = sum(each.bytes_after for each in self.decisions)
        return {
            "modules": len(self.decisions),
            "quantized": sum(1 for _ in self.quantized),
            "parameters": parameters,
            "parameters_quantized": quantized,
            "coverage": quantized / parameters if parameters else 0.0,
            "layer_coverage": self.layer_coverage,
            "bytes_before": sum(each.bytes_before for each in self.decisions),
            "bytes_after": after,
            "bits_per_weight": after * 8 / parameters if parameters else 0.0,
        }

    @cached_property
    def unquantized_by_type(self) -> tuple[TypeMass, ...]:
        """What stays unquantized, by class and reason, heaviest first."""
        groups: dict[tuple[str, Reason], list[Decision]] = {}
        for each in self.decisions:
            if each.reason:
                groups.setdefault((each.type, each.reason), []).append(each)
        masses = [
            TypeMass(
                name,
                reason,
                len(group),
                sum(each.parameters for each in group),
                sum(each.bytes_after for each in group),
            )
            for (name, reason), group in groups.items()
        ]
        return tuple(sorted(masses, key=lambda mass: (-mass.parameters, mass.type, mass.reason)))

    @cached_property
    def sha256(self) -> str:
        """A hash of what the plan makes of which tensors: equal plans write equal checkpoints."""
        meaning = {
            "modules": [(each.name, each.scheme, each.bytes_before) for each in self.decisions],
            "schemes": self._schemes(),
            "container": self.container,
        }
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The plan JSON, format version 1."""
        return {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "model_type": self.model_type,
            "architecture": self.architecture,
            "container": self.container,
            "rules": self.rules,
            "rules_sha256": self.rules_sha256,
            "plan_sha256": self.sha256,
            "schemes": self._schemes(),
            "modules": [each.to_dict() for each in self.decisions],
            "unquantized_by_type": [
                {
                    "type": mass.type,
                    "reason": mass.reason,
                    "modules": mass.modules,
                    "parameters": mass.parameters,
                    "bytes": mass.bytes,
                }
                for mass in self.unquantized_by_type
            ],
            "summary": self.summary,
            "diagnostics": [each.to_dict() for each in self.diagnostics],
        }

    def _schemes(self) -> dict[str, Any]:
        return {name: each.model_dump(mode="json", by_alias=True) for name, each in self.schemes.items()}
