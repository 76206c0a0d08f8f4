"""What is known of an output once it is verified: what it holds, what is wrong with it, how close its weights are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rulequant.diagnostics import Diagnostic
    from rulequant.plan import Plan

__all__ = ["FORMAT_VERSION", "Comparison", "Sample", "SchemeError", "Verified", "WeightError", "relative_error"]

FORMAT_VERSION = 1


class Sample(NamedTuple):
    """How far some values of a weight are from the original, measured while it was encoded."""

    squared_error: float = 0.0
    squared_norm: float = 0.0
    values: int = 0

    def plus(self, other: Sample) -> Sample:
        """Both taken as one."""
        return Sample(
            self.squared_error + other.squared_error,
            self.squared_norm + other.squared_norm,
            self.values + other.values,
        )

    @property
    def relative_error(self) -> float:
        """As of a whole weight."""
        return relative_error(self.squared_error, self.squared_norm)


@dataclass(frozen=True, slots=True)
class WeightError:
    """How far an encoded weight is from the original."""

    name: str
    """The module; for fused experts the parameter."""
    scheme: str
    parameters: int
    squared_error: float
    """The sum of the squared differences."""
    squared_norm: float
    """The sum of the squares of the original."""
    worst_expert: int | None = None
    worst_expert_error: float | None = None
    """The largest relative error of a single expert."""

    @property
    def relative_error(self) -> float:
        """The Frobenius norm of the difference over that of the original; infinite where only the latter is 0."""
        return relative_error(self.squared_error, self.squared_norm)

    @property
    def snr_db(self) -> float:
        """Signal to noise ratio in dB, 20 dB for a relative error of 0.1; infinite where there is no noise."""
        return _decibels(self.relative_error)

    def to_dict(self) -> dict[str, Any]:
        """The measurement as JSON-ready data, in which null stands for what is not finite."""
        found: dict[str, Any] = {
            "name": self.name,
            "scheme": self.scheme,
            "parameters": self.parameters,
            "relative_error": _finite(self.relative_error),
            "snr_db": _finite(self.snr_db),
        }
        if self.worst_expert is not None:
            found |= {"worst_expert": self.worst_expert, "worst_expert_error": _finite(self.worst_expert_error)}
        return found


@dataclass(frozen=True, slots=True)
class SchemeError:
    """How far all weights of a scheme are from the original, taken as one, and the worst of them."""

    scheme: str
    weights: int
    parameters: int
    relative_error: float
    worst: float

    def to_dict(self) -> dict[str, Any]:
        """The measurement as JSON-ready data, in which null stands for what is not finite."""
        return {
            "weights": self.weights,
            "parameters": self.parameters,
            "relative_error": _finite(self.relative_error),
            "worst_relative_error": _finite(self.worst),
            "snr_db": _finite(_decibels(self.relative_error)),
        }


@dataclass(frozen=True)
class Comparison:
    """What came of comparing an output with its original."""

    weights: tuple[WeightError, ...]
    """Worst first."""
    equal: int
    """Tensors that are not quantized and are those of the original, after the cast to their dtype."""
    different: int = 0
    """Those that are not."""

    @property
    def schemes(self) -> list[SchemeError]:
        """One entry for each scheme."""
        groups: dict[str, list[WeightError]] = {}
        for each in self.weights:
            groups.setdefault(each.scheme, []).append(each)
        return [
            SchemeError(
                name,
                len(group),
                sum(each.parameters for each in group),
                relative_error(sum(each.squared_error for each in group), sum(each.squared_norm for each in group)),
                group[0].relative_error,
            )
            for name, group in sorted(groups.items())
        ]


@dataclass
class Verified:
    """What is known of an output after all checks, and what is wrong with it."""

    output: str
    quick: bool = False
    """Whether files were compared by their sizes alone."""
    files: int = 0
    """Files that the manifest lists."""
    file_bytes: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages that made it."""
    plan: Plan | None = None
    """The plan in it, once it is known to be for its model."""
    in_pipeline: bool = False
    """Whether it is a component, whose files the manifest of the pipeline lists."""
    of_pipeline: bool = False
    """Whether it is a pipeline."""
    components: dict[str, Verified] = field(default_factory=dict)
    """Of a pipeline, those that were quantized."""
    copied: tuple[int, int] | None = None
    """Of a pipeline, the copied files that are those of the original, and those that are not."""
    loader: str = "transformers"
    """What makes its layers of config.json."""
    called: bool = False
    """Whether it holds the model of a callable, without config.json."""
    container: str | None = None
    """The `quant_method` of its config.json, once its layers were built."""
    tensors: int = 0
    shards: int = 0
    payload_bytes: int = 0
    """Bytes of all tensors without records, to compare with the plan's `bytes_after`."""
    against: str | None = None
    comparison: Comparison | None = None
    diagnostics: list[Diagnostic] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.diagnostics and all(each.ok for each in self.components.values())

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready data."""
        data = {
            "format_version": FORMAT_VERSION,
            "output": self.output,
            "ok": self.ok,
            "quick": self.quick,
            "container": self.container,
            "versions": dict(self.versions),
            "files": {"count": self.files, "bytes": self.file_bytes},
            "tensors": {"count": self.tensors, "shards": self.shards, "payload_bytes": self.payload_bytes},
            "plan": _plan_facts(self.plan),
            "against": self._against(),
            "diagnostics": [each.to_dict() for each in self.diagnostics],
        }
        if not self.of_pipeline:
            return data
        copied = None if self.copied is None else {"equal": self.copied[0], "different": self.copied[1]}
        return {
            **data,
            "copied": copied,
            "components": {name: each.to_dict() for name, each in self.components.items()},
        }

    def _against(self) -> dict[str, Any] | None:
        if self.comparison is None:
            return None
        return {
            "model": self.against,
            "unquantized_equal": self.comparison.equal,
            "unquantized_different": self.comparison.different,
            "schemes": {each.scheme: each.to_dict() for each in self.comparison.schemes},
            "weights": [each.to_dict() for each in self.comparison.weights],
        }


def relative_error(squared_error: float, squared_norm: float) -> float:
    """The root of a ratio of sums of squares; infinite where only the second is 0."""
    if squared_norm == 0:
        return math.inf if squared_error else 0.0
    return math.sqrt(squared_error / squared_norm)


def _decibels(error: float) -> float:
    return -20 * math.log10(error) if error else math.inf


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plan_facts(plan: Plan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    facts = plan.summary
    return {
        "model": plan.model,
        "plan_sha256": plan.sha256,
        "rules_sha256": plan.rules_sha256,
        "modules": facts["modules"],
        "quantized": facts["quantized"],
        "bytes_after": facts["bytes_after"],
    }
