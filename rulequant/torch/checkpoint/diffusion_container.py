"""How a plan is told to diffusers: the `quantization_config` of a component, proven by diffusers' own code."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from rulequant.containers import COMPONENT_REMEDY, ContainerName, component_obstacle, used_schemes
from rulequant.diagnostics import Diagnostic, DiagnosticsError
from rulequant.plan import Plan
from rulequant.torch.checkpoint.container import Container, check_quantizes, stock_settings
from rulequant.torch.skeleton import Skeleton

__all__ = ["as_diffusers_loads", "component_container", "diffusers_container"]


def component_container(skeleton: Skeleton, plan: Plan, wanted: ContainerName) -> Container:
    """Plain `bitsandbytes` wherever diffusers' own quantizer can express the plan, otherwise `rulequant`.

    Raises:
        DiagnosticsError: the plan quantizes nothing, or what the wanted container cannot express.
    """
    from rulequant.torch.quantconfig import config_of_plan

    check_quantizes(plan)
    if wanted != "rulequant":
        try:
            return diffusers_container(skeleton, plan)
        except DiagnosticsError:
            if wanted == "bitsandbytes":
                raise
    return Container("rulequant", config_of_plan(plan), replace(plan, container="rulequant"))


def diffusers_container(skeleton: Skeleton, plan: Plan) -> Container:
    """Plain `bitsandbytes`, which diffusers loads.

    Raises:
        DiagnosticsError: the plan quantizes nothing, or something that diffusers would load otherwise.
    """
    check_quantizes(plan)
    problem = component_obstacle(plan)
    if problem:
        raise DiagnosticsError([Diagnostic("RQ542", problem, remedy=COMPONENT_REMEDY)])
    names = {each.name for each in plan.quantized}
    skip = [name for name, each in skeleton.model.named_modules() if isinstance(each, nn.Linear) and name not in names]
    settings = stock_settings(used_schemes(plan), skip, skeleton)
    dispute = _disputed(skeleton.model, names, settings)
    if dispute:
        kept = "plain" if dispute in names else "quantized"
        problem = f"diffusers would load `{dispute}` {kept}, by its rule for the names in a skip list"
        raise DiagnosticsError(
            [Diagnostic("RQ543", problem, remedy="treat all modules whose name ends alike in the same way")]
        )
    return Container("bitsandbytes", settings, replace(plan, container="bitsandbytes"))


def _disputed(model: nn.Module, names: set[str], settings: dict[str, Any]) -> str | None:
    """A module about which diffusers would decide otherwise."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    loaded = as_diffusers_loads(copy.deepcopy(model), settings)
    theirs = {name for name, each in loaded.named_modules() if isinstance(each, Linear4bit | Linear8bitLt)}
    return min(theirs ^ names, default=None)


def as_diffusers_loads(model: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """The layers that diffusers' own code makes of a model on meta and a `quantization_config`; in place."""
    from diffusers.quantizers.bitsandbytes.utils import replace_with_bnb_linear
    from diffusers.quantizers.quantization_config import BitsAndBytesConfig

    config = BitsAndBytesConfig.from_dict(dict(settings))
    skip = [*(settings.get("llm_int8_skip_modules") or ()), *(getattr(model, "_keep_in_fp32_modules", None) or ())]
    found: nn.Module = replace_with_bnb_linear(model, modules_to_not_convert=skip, quantization_config=config)
    return found
