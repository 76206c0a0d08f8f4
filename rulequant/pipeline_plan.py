"""The plan of a pipeline: one plan for each component that is quantized, and what is copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rulequant.diagnostics import Diagnostic, has_errors
from rulequant.plan import FORMAT_VERSION, Plan

__all__ = ["PipelinePlan", "in_component"]


def in_component(component: str, name: str) -> str:
    """The name that a module of a component has in the pipeline."""
    return f"{component}.{name}" if name else component


@dataclass(frozen=True)
class PipelinePlan:
    """What becomes of the components of a pipeline."""

    model: str
    pipeline: str
    """The class that model_index.json names."""
    rules: str
    rules_sha256: str
    components: Mapping[str, Plan]
    copied: Mapping[str, int]
    """The bytes of the files of every other component."""
    findings: tuple[Diagnostic, ...] = ()
    """About the pipeline as a whole."""

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All findings, those of the components included."""
        return (*self.findings, *(each for plan in self.components.values() for each in plan.diagnostics))

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way of applying it."""
        return not has_errors(self.diagnostics)

    @cached_property
    def merged(self) -> Plan:
        """All components as one plan, whose modules and schemes have the component's name before theirs."""
        plans = self.components.items()
        return Plan(
            model=self.model,
            rules=self.rules,
            rules_sha256=self.rules_sha256,
            decisions=tuple(
                replace(each, name=in_component(name, each.name), scheme=each.scheme and f"{name}/{each.scheme}")
                for name, plan in plans
                for each in plan.decisions
            ),
            schemes={f"{name}/{key}": scheme for name, plan in plans for key, scheme in plan.schemes.items()},
            diagnostics=self.diagnostics,
            architecture=self.pipeline,
            container=self._container,
        )

    @property
    def _container(self) -> str | None:
        """That of rulequant, if any component needs it."""
        found = {each.container for each in self.components.values() if each.container}
        return "rulequant" if "rulequant" in found else next(iter(found), None)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Counts and bytes of the components together, and the bytes of the whole folder of weights."""
        facts = self.merged.summary
        names = (
            "modules",
            "quantized",
            "parameters",
            "parameters_quantized",
            "coverage",
            "bytes_before",
            "bytes_after",
        )
        copied = sum(self.copied.values())
        return {name: facts[name] for name in names} | {
            "bytes_copied": copied,
            "pipeline_bytes_before": facts["bytes_before"] + copied,
            "pipeline_bytes_after": facts["bytes_after"] + copied,
        }

    def to_dict(self) -> dict[str, Any]:
        """The plan JSON of a pipeline, in which each component has the plan JSON of a model."""
        return {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "pipeline": self.pipeline,
            "rules": self.rules,
            "rules_sha256": self.rules_sha256,
            "plan_sha256": self.merged.sha256,
            "components": {name: plan.to_dict() for name, plan in self.components.items()},
            "copied": dict(self.copied),
            "summary": self.summary,
            "diagnostics": [each.to_dict() for each in self.diagnostics],
        }
