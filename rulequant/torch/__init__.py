"""Inspecting, swapping and writing models: everything that imports torch lives here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from rulequant.diagnostics import DiagnosticsError, Severity
from rulequant.loader import load_rules
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.ruleset import RuleSet
from rulequant.torch.inspect import inspect_model
from rulequant.torch.swap import swap_layers

__all__ = ["apply", "plan"]

Rules = RuleSet | str | os.PathLike[str] | Mapping[str, Any]


def plan(model: nn.Module, rules: Rules) -> Plan:
    """Every decision about a model, real or on meta; nothing of it is changed.

    `rules` is a rule set, a path, a bundled name, or the data of a rule file.

    Raises:
        DiagnosticsError: the rule file has errors. What the rules get wrong about this model is in
            `Plan.diagnostics` instead.
    """
    ruleset = rules if isinstance(rules, RuleSet) else load_rules(rules)
    return make_plan(ruleset, inspect_model(model))


def apply(model: nn.Module, rules: Rules) -> Plan:
    """Quantize a model in place by its rules, and return the plan that was carried out.

    A model on meta becomes the prepared skeleton that weights are later loaded into.

    Raises:
        DiagnosticsError: the rule file has errors, or does not fit the model; the model is then unchanged.
    """
    made = plan(model, rules)
    if not made.ok:
        raise DiagnosticsError(each for each in made.diagnostics if each.severity is Severity.ERROR)
    swap_layers(model, made)
    return made
