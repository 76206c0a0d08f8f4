"""A saved plan JSON, read back so that exactly that plan is applied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import ValidationError

from rulequant.diagnostics import Location
from rulequant.errors import UsageError
from rulequant.plan import FORMAT_VERSION, Decision, Plan
from rulequant.predicate import Reason
from rulequant.schemes import Scheme, scheme_class

__all__ = ["load_plan"]


def load_plan(path: Path) -> Plan:
    """Read a plan that `rulequant plan -o FILE` wrote.

    Raises:
        UsageError: the file cannot be read, is no plan of this version, or had findings when it was made.
    """
    remedy = "make it anew with `rulequant plan MODEL RULES -o FILE`"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format_version"]
        if version != FORMAT_VERSION:
            raise UsageError(f"{path}: plan format {version!r}; this rulequant reads {FORMAT_VERSION}", remedy=remedy)
        plan = _plan(data)
    except OSError as error:
        raise UsageError(f"cannot read the plan {path}: {error.strerror}", remedy=remedy) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
        raise UsageError(f"{path} is not a valid plan: {type(error).__name__}: {error}", remedy=remedy) from error
    problems = [each["message"] for each in data["diagnostics"] if each["severity"] == "error"]
    if problems:
        raise UsageError(f"{path} was saved with findings that stand in its way: {problems[0]}", remedy=remedy)
    return plan


def _plan(data: dict[str, Any]) -> Plan:
    schemes = {name: _scheme(each) for name, each in data["schemes"].items()}
    decisions = tuple(_decision(each, schemes) for each in data["modules"])
    return Plan(
        model=str(data["model"]),
        rules=str(data["rules"]),
        rules_sha256=str(data["rules_sha256"]),
        decisions=decisions,
        schemes=schemes,
        model_type=data["model_type"],
        architecture=data["architecture"],
        layer_coverage=float(data["summary"]["layer_coverage"]),
    )


def _scheme(data: dict[str, Any]) -> Scheme:
    found = scheme_class(data["method"])
    if found is None:
        raise ValueError(f"no installed method is called {data['method']!r}")
    return found.model_validate(data)


def _decision(data: dict[str, Any], schemes: dict[str, Scheme]) -> Decision:
    reason, scheme = data["reason"], data["scheme"]
    if scheme is not None and scheme not in schemes:
        raise ValueError(f"module {data['name']!r} has the scheme {scheme!r}, which the plan does not define")
    if reason is not None and reason not in get_args(Reason):
        raise ValueError(f"module {data['name']!r} has the reason {reason!r}")
    if data["quantize"] is not (scheme is not None):
        raise ValueError(f"module {data['name']!r} contradicts itself: quantize and scheme")
    rule = data["rule"]
    return Decision(
        name=str(data["name"]),
        type=str(data["type"]),
        parameters=int(data["parameters"]),
        bytes_before=int(data["bytes_before"]),
        bytes_after=int(data["bytes_after"]),
        scheme=scheme,
        reason=cast("Reason | None", reason),
        detail=data["detail"],
        rule=Location(rule["file"], rule["line"], 1, rule["line"], 1) if rule else None,
    )
