"""A saved plan JSON, read back so that exactly that plan is applied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rulequant.diagnostics import Diagnostic, Location, Severity, has_errors
from rulequant.errors import UsageError
from rulequant.pipeline_plan import PipelinePlan
from rulequant.plan import FORMAT_VERSION, Decision, Plan
from rulequant.predicate import Reason
from rulequant.schemes import Scheme, scheme_class

__all__ = ["Count", "Part", "Share", "first_problem", "load_plan", "read_plan", "read_scheme"]

_REMEDY = "make it anew with `rulequant plan MODEL RULES -o FILE`"
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A mapping of the file; keys that a later version adds are let pass."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _Rule(Part):
    file: str
    line: Count


class _Place(_Rule):
    column: Count
    end_line: Count
    end_column: Count


class _Module(Part):
    name: str
    type: str
    parameters: Count
    quantize: bool
    scheme: str | None
    reason: Reason | None
    detail: str | None
    rule: _Rule | None
    bytes_before: Count
    bytes_after: Count


class _Summary(Part):
    modules: Count
    quantized: Count
    parameters: Count
    parameters_quantized: Count
    coverage: Share
    layer_coverage: Share
    bytes_before: Count
    bytes_after: Count
    bits_per_weight: float


class _Finding(Part):
    code: str
    severity: Literal["error", "warning", "note"]
    message: str
    location: _Place | None
    value: str | None
    allowed: list[str]
    remedy: str | None


class _PlanFile(Part):
    model: str
    model_type: str | None
    architecture: str | None
    container: Literal["bitsandbytes", "rulequant"] | None = None
    rules: str
    rules_sha256: str
    plan_sha256: str
    schemes: dict[str, dict[str, Any]]
    modules: list[_Module]
    summary: _Summary
    diagnostics: list[_Finding]


class _PipelineFile(Part):
    model: str
    pipeline: str
    rules: str
    rules_sha256: str
    plan_sha256: str
    components: dict[str, _PlanFile]
    copied: dict[str, Count]
    diagnostics: list[_Finding]


def load_plan(path: Path) -> Plan:
    """Read a plan of one model that `rulequant plan -o FILE` wrote; as `read_plan`."""
    plan = read_plan(path)[0]
    if isinstance(plan, PipelinePlan):
        raise UsageError(f"{path} is the plan of a pipeline, of several models", remedy="give the plan of one of them")
    return plan


def read_plan(path: Path) -> tuple[Plan | PipelinePlan, dict[str, Any] | None]:
    """Read a plan that `rulequant plan -o FILE` wrote, and what was saved with it of its checkpoint, unchecked.

    Raises:
        UsageError: the file cannot be read, is no plan of this version, was changed since, or had findings with
            severity error when it was made.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read the plan {path}: {error.strerror or error}", remedy=_REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a plan: it is no JSON: {error}", remedy=_REMEDY) from error
    if not isinstance(data, dict) or "format_version" not in data:
        raise UsageError(f"{path} is not a plan: it has no `format_version`", remedy=_REMEDY)
    version = data["format_version"]
    if version != FORMAT_VERSION:
        raise UsageError(f"{path}: plan format {version!r}; this rulequant reads {FORMAT_VERSION}", remedy=_REMEDY)
    try:
        if "pipeline" in data:
            return _checked_pipeline(_PipelineFile.model_validate(data)), None
        plan = _checked(_PlanFile.model_validate(data))
    except ValidationError as error:
        raise UsageError(f"{path} is not a valid plan: {first_problem(error)}", remedy=_REMEDY) from error
    except ValueError as error:
        raise UsageError(f"{path} is not a valid plan: {error}", remedy=_REMEDY) from error
    section = data.get("checkpoint")
    return plan, section if isinstance(section, dict) else None


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints about a file, and how many more there are."""
    problems = error.errors(include_url=False, include_input=False)
    where = ".".join(str(each) for each in problems[0]["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    what = problems[0]["msg"].partition(" or instance of ")[0]  # the class is ours, and says nothing to a reader
    return f"`{where}`: {what[:1].lower()}{what[1:]}{more}"


def _checked(file: _PlanFile) -> Plan:
    plan = Plan(
        model=file.model,
        rules=file.rules,
        rules_sha256=file.rules_sha256,
        decisions=tuple(_decision(each, file) for each in file.modules),
        schemes={name: read_scheme(name, each) for name, each in file.schemes.items()},
        diagnostics=tuple(_diagnostic(each) for each in file.diagnostics),
        model_type=file.model_type,
        architecture=file.architecture,
        container=file.container,
        layer_coverage=file.summary.layer_coverage,
    )
    _require_ok(plan.diagnostics)
    if len(plan.by_name) != len(plan.decisions):
        raise ValueError("a module comes twice")
    for key, value in file.summary.model_dump().items():
        if plan.summary[key] != value:
            raise ValueError(f"it was edited: `summary.{key}` is {value}, its modules come to {plan.summary[key]}")
    if plan.sha256 != file.plan_sha256:
        raise ValueError("it was edited, or another version made it: modules and schemes do not hash to plan_sha256")
    return plan


def _checked_pipeline(file: _PipelineFile) -> PipelinePlan:
    _require_ok(tuple(_diagnostic(each) for each in file.diagnostics))
    plan = PipelinePlan(
        model=file.model,
        pipeline=file.pipeline,
        rules=file.rules,
        rules_sha256=file.rules_sha256,
        components={name: _checked(each) for name, each in file.components.items()},
        copied=file.copied,
    )
    if plan.merged.sha256 != file.plan_sha256:
        raise ValueError("it was edited: its components do not hash to plan_sha256")
    return plan


def _require_ok(diagnostics: tuple[Diagnostic, ...]) -> None:
    if has_errors(diagnostics):
        first = next(each for each in diagnostics if each.severity is Severity.ERROR)
        raise ValueError(f"it was saved with findings that stand in its way: {first.concise()}")


def read_scheme(name: str, data: dict[str, Any]) -> Scheme:
    """The scheme of a saved file.

    Raises:
        ValueError: its method is not installed, or the settings are not the method's.
    """
    method = data.get("method")
    found = scheme_class(method) if isinstance(method, str) else None
    if found is None:
        raise ValueError(f"the scheme {name!r}: no installed method is called {method!r}")
    try:
        return found.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"the scheme {name!r}: {first_problem(error)}") from error


def _decision(module: _Module, file: _PlanFile) -> Decision:
    if module.scheme is not None and module.scheme not in file.schemes:
        raise ValueError(f"module {module.name!r} has the scheme {module.scheme!r}, which the plan does not define")
    if module.quantize is (module.scheme is None) or module.quantize is (module.reason is not None):
        raise ValueError(f"module {module.name!r} contradicts itself: a scheme if it is quantized, or else a reason")
    rule = module.rule
    return Decision(
        name=module.name,
        type=module.type,
        parameters=module.parameters,
        bytes_before=module.bytes_before,
        bytes_after=module.bytes_after,
        scheme=module.scheme,
        reason=module.reason,
        detail=module.detail,
        rule=Location(rule.file, rule.line, 1, rule.line, 1) if rule else None,
    )


def _diagnostic(finding: _Finding) -> Diagnostic:
    return Diagnostic(
        code=finding.code,
        message=finding.message,
        location=Location(**finding.location.model_dump()) if finding.location else None,
        severity=Severity(finding.severity),
        value=finding.value,
        allowed=tuple(finding.allowed),
        remedy=finding.remedy,
    )
