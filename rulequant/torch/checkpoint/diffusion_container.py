"""How a plan is told to diffusers: the `quantization_config` of a component, proven by diffusers' own code."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from rulequant.containers import ContainerName, used_schemes
from rulequant.diagnostics import Diagnostic, DiagnosticsError
from rulequant.inventory import Inventory
from rulequant.plan import Plan
from rulequant.schemes import Bnb4bit, BnbInt8, Scheme
from rulequant.torch.checkpoint.container import Container, check_quantizes, stock_settings
from rulequant.torch.skeleton import Skeleton

__all__ = ["as_diffusers_loads", "component_container", "diffusers_container"]

_REMEDY = "let the container be `auto`, or change the rules: one kind of bitsandbytes layers in each component"


def component_container(skeleton: Skeleton, plan: Plan, wanted: ContainerName, inventory: Inventory) -> Container:
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
    other = next((each for each in plan.quantized if inventory.by_name[each.name].kind != "linear"), None)
    if other:
        problem = f"with diffusers only `Linear` may be quantized, and `{other.name}` is a {other.type}"
        raise DiagnosticsError([Diagnostic("RQ542", problem, remedy=f"take {other.type} out of `quantizable_types`")])
    return Container("rulequant", config_of_plan(plan), replace(plan, container="rulequant"))


def diffusers_container(skeleton: Skeleton, plan: Plan) -> Container:
    """Plain `bitsandbytes`, which diffusers loads.

    Raises:
        DiagnosticsError: the plan quantizes nothing, or something that diffusers would load otherwise.
    """
    check_quantizes(plan)
    used = used_schemes(plan)
    problem = _obstacle(used, plan)
    if problem:
        raise DiagnosticsError([Diagnostic("RQ542", problem, remedy=_REMEDY)])
    names = {each.name for each in plan.quantized}
    skip = [name for name, each in skeleton.model.named_modules() if isinstance(each, nn.Linear) and name not in names]
    settings = stock_settings(used, skip, skeleton)
    dispute = _disputed(skeleton.model, names, settings)
    if dispute:
        kept = "plain" if dispute in names else "quantized"
        problem = f"diffusers would load `{dispute}` {kept}, by its rule for the names in a skip list"
        raise DiagnosticsError(
            [Diagnostic("RQ543", problem, remedy="treat all modules whose name ends alike in the same way")]
        )
    return Container("bitsandbytes", settings, replace(plan, container="bitsandbytes"))


def _obstacle(used: dict[str, Scheme], plan: Plan) -> str | None:
    """What no component of diffusers can hold."""
    for name, scheme in used.items():
        if not isinstance(scheme, Bnb4bit | BnbInt8):
            return f"diffusers does not know the method `{scheme.method}` (`{name}` on {_example(plan, name)})"
        if getattr(scheme, "quant_storage", "uint8") != "uint8":
            return f"diffusers loads 4-bit weights with `quant_storage: uint8` only (`{name}`)"
    for setting in ("method", "compute_dtype", "threshold"):
        values = {getattr(scheme, setting, None): name for name, scheme in used.items()}
        if len(values) > 1:
            listed = ", ".join(f"{value} on {_example(plan, name)}" for value, name in values.items())
            return f"all layers of a component share one `{setting}` in diffusers: {listed}"
    return None


def _example(plan: Plan, scheme: str) -> str:
    return next(each.name for each in plan.quantized if each.scheme == scheme)


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
