"""`RuleQuantConfig`: rules on the way into transformers, and what became of them in a checkpoint's config.json."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any, cast

from transformers.quantizers import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from rulequant.errors import UsageError
from rulequant.loader import load_rules
from rulequant.plan import Decision, Plan
from rulequant.ruleset import RuleSet
from rulequant.schemes import Scheme, scheme_class

__all__ = ["METHOD", "RuleQuantConfig", "config_of_plan"]

METHOD = "rulequant"
FORMAT_VERSION = 1


@register_quantization_config(METHOD)
class RuleQuantConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What `from_pretrained` takes as `quantization_config`: a rule file, a bundled name, or the data of one.

    In a saved config.json it holds what became of the rules instead: the schemes, and the modules that got each.
    """

    def __init__(
        self,
        rules: RuleSet | str | os.PathLike[str] | Mapping[str, Any] | None = None,
        *,
        schemes: Mapping[str, Any] | None = None,
        modules: Mapping[str, list[str]] | None = None,
        rules_sha256: str | None = None,
        format_version: int = FORMAT_VERSION,
        **_: Any,
    ) -> None:
        """Take rules (checked here), or the contents of a saved config.

        Raises:
            DiagnosticsError: the rule file has errors.
            UsageError: a saved config is of another version, or names a method that is not installed.
        """
        self.quant_method = METHOD
        if format_version != FORMAT_VERSION:
            raise UsageError(
                f"the quantization_config has format {format_version}; this rulequant reads {FORMAT_VERSION}",
                remedy="upgrade rulequant",
            )
        self.rules: RuleSet | None = rules if rules is None or isinstance(rules, RuleSet) else load_rules(rules)
        self.schemes = {name: _read_scheme(each) for name, each in (schemes or {}).items()}
        self.modules = {name: list(each) for name, each in (modules or {}).items()}
        self.rules_sha256 = rules_sha256

    def adopt(self, plan: Plan) -> None:
        """Hold what a plan decided, for saving."""
        self.schemes = {
            name: plan.schemes[name] for name in dict.fromkeys(_scheme_name(each) for each in plan.quantized)
        }
        self.modules = {name: [each.name for each in plan.quantized if each.scheme == name] for name in self.schemes}
        self.rules_sha256 = plan.rules_sha256

    def scheme_names(self) -> dict[str, str]:
        """The scheme of each module by the module's name."""
        return {module: scheme for scheme, modules in self.modules.items() for module in modules}

    def to_dict(self) -> dict[str, Any]:
        """The JSON of config.json: no rules, but what became of them."""
        return {
            "quant_method": METHOD,
            "format_version": FORMAT_VERSION,
            "schemes": {name: each.model_dump(mode="json") for name, each in self.schemes.items()},
            "modules": copy.deepcopy(self.modules),
            "rules_sha256": self.rules_sha256,
        }

    def to_diff_dict(self) -> dict[str, Any]:
        """As `to_dict`: nothing is left out as a default."""
        return self.to_dict()

    def __repr__(self) -> str:
        """The method, and how many modules got which scheme."""
        counts = ", ".join(f"{name}: {len(each)} modules" for name, each in self.modules.items())
        return f"RuleQuantConfig({counts or (self.rules.file if self.rules else '')})"


def config_of_plan(plan: Plan) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint that holds what a plan decides."""
    config = RuleQuantConfig()
    config.adopt(plan)
    return config.to_dict()


def _read_scheme(data: Any) -> Scheme:
    if isinstance(data, Scheme):
        return data
    method = data.get("method")
    found = scheme_class(method)
    if found is None:
        raise UsageError(f"the checkpoint uses the method `{method}`, which no installed package provides")
    return found.model_validate(data)


def _scheme_name(decision: Decision) -> str:
    return cast(str, decision.scheme)
