"""How a plan is told to transformers: `quantization_config` in config.json, proven by the consumer's own matcher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from rulequant.diagnostics import Diagnostic, DiagnosticsError
from rulequant.errors import ModelError
from rulequant.plan import Plan
from rulequant.schemes import Bnb4bit, BnbInt8, Scheme
from rulequant.torch.checkpoint.skiplist import stock_skip_list
from rulequant.torch.skeleton import Skeleton

__all__ = ["Container", "ContainerName", "choose_container", "own_container"]


ContainerName = Literal["auto", "bitsandbytes", "rulequant"]


@dataclass(frozen=True)
class Container:
    """The quantization method that config.json names, and its settings."""

    quant_method: str
    config: dict[str, Any]


def choose_container(skeleton: Skeleton, plan: Plan, wanted: ContainerName = "auto") -> Container:
    """Plain `bitsandbytes` wherever stock transformers can express the plan, otherwise `rulequant`.

    Raises:
        DiagnosticsError: the plan quantizes nothing, or `bitsandbytes` is wanted and cannot express it; the modules
            that stand in the way are named.
    """
    own, used = own_container(plan), _used_schemes(plan)
    if wanted == "rulequant":
        return own
    skip, problem = [], _obstacle(plan, used, skeleton)
    if problem is None:
        try:
            skip = stock_skip_list(skeleton.model, {each.name for each in plan.quantized})
        except ModelError as error:
            problem = Diagnostic("RQ505", error.message, remedy=_REMEDY)
    if problem is None:
        return Container("bitsandbytes", _stock(used, skip, skeleton))
    if wanted == "bitsandbytes":
        raise DiagnosticsError([problem])
    return own


def own_container(plan: Plan) -> Container:
    """The container `rulequant`, which holds whatever a plan says.

    Raises:
        DiagnosticsError: the plan quantizes nothing.
    """
    from rulequant.torch.quantconfig import config_of_plan

    if not _used_schemes(plan):
        message = "the plan quantizes no module, so there is nothing to apply"
        raise DiagnosticsError([Diagnostic("RQ501", message, remedy="see `rulequant plan`")])
    return Container("rulequant", config_of_plan(plan))


_REMEDY = "let the container be `rulequant`, or change the rules"


def _used_schemes(plan: Plan) -> dict[str, Scheme]:
    names = dict.fromkeys(cast(str, each.scheme) for each in plan.quantized)
    return {name: plan.schemes[name] for name in names}


def _obstacle(plan: Plan, used: dict[str, Scheme], skeleton: Skeleton) -> Diagnostic | None:
    """Why the schemes do not fit into one plain bitsandbytes checkpoint, or None."""
    foreign = next((name for name, each in used.items() if not isinstance(each, Bnb4bit | BnbInt8)), None)
    if foreign:
        method = used[foreign].method
        message = f"transformers' bitsandbytes loader does not know the method `{method}` ({_example(plan, foreign)})"
        return Diagnostic("RQ502", message, remedy=_REMEDY)
    methods = {each.method: name for name, each in used.items()}
    if len(methods) > 1:
        examples = ", ".join(_example(plan, name) for _, name in sorted(methods.items()))
        message = f"a bitsandbytes checkpoint holds 4-bit or int8 modules, not both: {examples}"
        return Diagnostic("RQ503", message, remedy=_REMEDY)
    for setting in ("threshold", "compute_dtype", "quant_storage"):
        values = {_setting(each, setting, skeleton): name for name, each in used.items()}
        if len(values) > 1:
            examples = ", ".join(f"{value} for {_example(plan, name)}" for value, name in values.items())
            message = f"all modules of a bitsandbytes checkpoint share one `{setting}`: {examples}"
            return Diagnostic("RQ504", message, remedy=_REMEDY)
    return None


def _setting(scheme: Scheme, name: str, skeleton: Skeleton) -> object:
    value: object = getattr(scheme, name, None)
    return _dtype_name(skeleton) if (name, value) == ("compute_dtype", "auto") else value


def _dtype_name(skeleton: Skeleton) -> str:
    return str(skeleton.dtype).removeprefix("torch.")


def _example(plan: Plan, scheme: str) -> str:
    names = [each.name for each in plan.quantized if each.scheme == scheme]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"`{scheme}` on {names[0]}{more}"


def _stock(used: dict[str, Scheme], skip: list[str], skeleton: Skeleton) -> dict[str, Any]:
    first = next(iter(used.values()))
    return _int8(first, skip) if isinstance(first, BnbInt8) else _four_bit(used, skip, skeleton)


def _four_bit(used: dict[str, Scheme], skip: list[str], skeleton: Skeleton) -> dict[str, Any]:
    """Settings of the first scheme; the loader reads code, block size and double quantization from each tensor."""
    first = cast(Bnb4bit, next(iter(used.values())))
    return {
        "quant_method": "bitsandbytes",
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": first.quant_type,
        "bnb_4bit_use_double_quant": first.double_quant,
        "bnb_4bit_compute_dtype": _setting(first, "compute_dtype", skeleton),
        "bnb_4bit_quant_storage": first.quant_storage,
        "llm_int8_skip_modules": skip,
        "llm_int8_threshold": 6.0,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
    }


def _int8(scheme: BnbInt8, skip: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "bitsandbytes",
        "_load_in_4bit": False,
        "_load_in_8bit": True,
        "load_in_4bit": False,
        "load_in_8bit": True,
        "llm_int8_threshold": scheme.threshold,
        "llm_int8_skip_modules": skip,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
    }
