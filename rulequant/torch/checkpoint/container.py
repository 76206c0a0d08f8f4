"""How a plan is told to transformers: `quantization_config` in config.json, proven by the consumer's own matcher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from rulequant.containers import ContainerName, container_problem, in_container, used_schemes
from rulequant.diagnostics import Diagnostic, DiagnosticsError, Severity
from rulequant.errors import ModelError
from rulequant.inventory import Inventory
from rulequant.plan import Plan
from rulequant.schemes import Bnb4bit, BnbInt8, Scheme
from rulequant.torch.checkpoint.skiplist import stock_skip_list, vllm_dispute
from rulequant.torch.skeleton import Skeleton
from rulequant.torch.stock_experts import as_loaded
from rulequant.unfused import expert_linears
from rulequant.vllm import misread_by_vllm

__all__ = ["Container", "ContainerName", "check_quantizes", "choose_container", "own_container", "stock_settings"]


@dataclass(frozen=True)
class Container:
    """The quantization method that config.json names, its settings, and the plan with the bytes that it has there."""

    quant_method: str
    config: dict[str, Any]
    plan: Plan


def choose_container(
    skeleton: Skeleton, plan: Plan, wanted: ContainerName = "auto", *, inventory: Inventory | None = None
) -> Container:
    """Plain `bitsandbytes` wherever stock transformers can express the plan, otherwise `rulequant`.

    Raises:
        DiagnosticsError: the plan quantizes nothing, or `bitsandbytes` is wanted and cannot express it; the modules
            that stand in the way are named.
    """
    check_quantizes(plan)
    known = inventory or skeleton.inventory()
    placed = _checked(in_container(plan, known, wanted))
    if placed.container != "bitsandbytes":
        return _own(placed)
    names = _stock_names(placed, known)
    try:
        model = as_loaded(skeleton.model)
        skip = stock_skip_list(model, names)
    except ModelError as error:
        problem = container_problem("RQ505", error.message)
        return _own(_checked(in_container(plan, known, wanted, problems=[problem])))
    dispute = vllm_dispute(model, names, skip)
    if dispute:
        placed = replace(placed, diagnostics=(*placed.diagnostics, misread_by_vllm(dispute)))
    return Container("bitsandbytes", stock_settings(used_schemes(placed), skip, skeleton), placed)


def own_container(plan: Plan, inventory: Inventory, wanted: ContainerName) -> Container:
    """The container `rulequant`, for a model that a callable returned.

    Raises:
        DiagnosticsError: the plan quantizes nothing, or another container is wanted.
    """
    check_quantizes(plan)
    return _own(_checked(in_container(plan, inventory, wanted)))


def check_quantizes(plan: Plan) -> None:
    """Refuse a plan that quantizes nothing, as DiagnosticsError."""
    if not any(plan.quantized):
        message = "the plan quantizes no module, so there is nothing to apply"
        raise DiagnosticsError([Diagnostic("RQ501", message, remedy="see `rulequant plan`")])


def _checked(plan: Plan) -> Plan:
    if not plan.ok:
        raise DiagnosticsError(each for each in plan.diagnostics if each.severity is Severity.ERROR)
    return plan


def _own(plan: Plan) -> Container:
    from rulequant.torch.quantconfig import config_of_plan

    return Container("rulequant", config_of_plan(plan), plan)


def _stock_names(plan: Plan, inventory: Inventory) -> set[str]:
    """The layers to quantize as the loader calls them."""
    names: set[str] = set()
    for each in plan.quantized:
        info = inventory.by_name[each.name]
        names |= {linear.name for linear in expert_linears(info)} if info.stock_linears else {info.name}
    return names


def _setting(scheme: Scheme, name: str, skeleton: Skeleton) -> object:
    value: object = getattr(scheme, name, None)
    return _dtype_name(skeleton) if (name, value) == ("compute_dtype", "auto") else value


def _dtype_name(skeleton: Skeleton) -> str:
    return str(skeleton.dtype).removeprefix("torch.")


def stock_settings(used: dict[str, Scheme], skip: list[str], skeleton: Skeleton) -> dict[str, Any]:
    """What a `BitsAndBytesConfig` says of these schemes, all of one method, and of the modules that stay."""
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
