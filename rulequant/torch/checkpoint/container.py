"""How a plan is told to transformers: `quantization_config` in config.json, proven by the consumer's own matcher."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from rulequant.diagnostics import Diagnostic, DiagnosticsError
from rulequant.errors import ModelError
from rulequant.plan import Plan
from rulequant.schemes import Bnb4bit, BnbInt8, Scheme
from rulequant.torch.inspect import is_conv1d
from rulequant.torch.skeleton import Skeleton

__all__ = ["Container", "choose_container", "stock_skip_list"]


@dataclass(frozen=True)
class Container:
    """The quantization method that config.json names, and its settings."""

    quant_method: str
    config: dict[str, Any]


def choose_container(skeleton: Skeleton, plan: Plan) -> Container:
    """Express a plan as a plain `bitsandbytes` checkpoint.

    Raises:
        DiagnosticsError: transformers' bitsandbytes quantizer cannot express the plan; the modules are named.
        ModelError: the emitted skip list would make transformers decide differently from the plan.
    """
    used = _used_schemes(plan)
    problem = _obstacle(plan, used)
    if problem:
        raise DiagnosticsError([problem])
    skip = stock_skip_list(skeleton.model, {each.name for each in plan.quantized})
    scheme = next(iter(used.values()))
    settings = _int8(scheme, skip) if isinstance(scheme, BnbInt8) else _four_bit(used, skip, skeleton)
    return Container("bitsandbytes", settings)


def _used_schemes(plan: Plan) -> dict[str, Scheme]:
    names = dict.fromkeys(cast(str, each.scheme) for each in plan.quantized)
    return {name: plan.schemes[name] for name in names}


def _obstacle(plan: Plan, used: dict[str, Scheme]) -> Diagnostic | None:
    """Why stock transformers cannot load what the plan writes, or None."""
    if not used:
        return Diagnostic(
            "RQ501",
            "the plan quantizes no module, so there is nothing to apply",
            remedy="see `rulequant plan`",
        )
    foreign = next((name for name, each in used.items() if not isinstance(each, Bnb4bit | BnbInt8)), None)
    if foreign:
        method = used[foreign].method
        return Diagnostic(
            "RQ502",
            f"transformers' bitsandbytes loader does not know the method `{method}` ({_example(plan, foreign)})",
            remedy="apply it in memory: rulequant.torch.apply(model, rules)",
        )
    eight = [name for name, each in used.items() if isinstance(each, BnbInt8)]
    four = [name for name, each in used.items() if isinstance(each, Bnb4bit)]
    if eight and four:
        return Diagnostic(
            "RQ503",
            "a bitsandbytes checkpoint holds 4-bit or int8 modules, not both: "
            f"{_example(plan, four[0])}, {_example(plan, eight[0])}",
            remedy="use one of the two methods, or apply the mix in memory: rulequant.torch.apply(model, rules)",
        )
    settings = {(cast(BnbInt8, used[name]).threshold) for name in eight}
    if len(settings) > 1:
        return Diagnostic(
            "RQ504",
            "int8 modules of one checkpoint share one `threshold`",
            remedy="give the schemes one value",
        )
    globals_ = {(each.compute_dtype, each.quant_storage) for each in used.values() if isinstance(each, Bnb4bit)}
    if len(globals_) > 1:
        message = "the 4-bit modules of one checkpoint share one `compute_dtype` and one `quant_storage`"
        return Diagnostic("RQ504", message, remedy="give the schemes one value each")
    return None


def _example(plan: Plan, scheme: str) -> str:
    names = [each.name for each in plan.quantized if each.scheme == scheme]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"`{scheme}` on {names[0]}{more}"


def _four_bit(used: dict[str, Scheme], skip: list[str], skeleton: Skeleton) -> dict[str, Any]:
    """Settings of the first scheme; the loader reads code, block size and double quantization from each tensor."""
    first = cast(Bnb4bit, next(iter(used.values())))
    compute = str(skeleton.dtype).removeprefix("torch.") if first.compute_dtype == "auto" else first.compute_dtype
    return {
        "quant_method": "bitsandbytes",
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": first.quant_type,
        "bnb_4bit_use_double_quant": first.double_quant,
        "bnb_4bit_compute_dtype": compute,
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


def stock_skip_list(model: nn.Module, quantized: set[str]) -> list[str]:
    """The `llm_int8_skip_modules` with which transformers' matcher decides as the plan does, for every module.

    Names are full names, and the same without the base model's prefix: the bare base model loads the same folder, and
    other readers of the list match names literally. A subtree that stays as it is as a whole is one entry.

    Raises:
        ModelError: no such list exists; the module in dispute is named.
    """
    stock = [name for name, module in model.named_modules(remove_duplicate=False) if _stock_type(module)]
    skipped = [name for name in stock if name not in quantized]
    outside = sorted(quantized - set(stock))
    if outside:
        kind = type(model.get_submodule(outside[0])).__name__
        raise ModelError(
            f"transformers' bitsandbytes loader does not make a quantized layer of {outside[0]} ({kind})",
            remedy="apply it in memory: rulequant.torch.apply(model, rules)",
        )
    entries = _shortest(skipped, [name for name in stock if name in quantized])
    prefix = getattr(model, "base_model_prefix", "") or ""
    stripped = [each.removeprefix(f"{prefix}.") for each in entries if prefix and each.startswith(f"{prefix}.")]
    dispute: str | None = None
    escaped = [f"^{re.escape(each)}" for each in entries]
    for candidate, bare in (([*entries, *stripped], True), (entries, False), (escaped, False)):
        dispute = _dispute(model, candidate, set(stock), quantized, bare=bare)
        if dispute is None:
            return list(dict.fromkeys(candidate))
    raise ModelError(
        f"transformers would decide differently from the plan about {dispute}, whatever the skip list says",
        remedy="make the rules treat it as its neighbours, or apply in memory: rulequant.torch.apply(model, rules)",
    )


def _stock_type(module: nn.Module) -> bool:
    """What `replace_with_bnb_linear` replaces."""
    return type(module) is nn.Linear or is_conv1d(module)


def _shortest(skipped: Iterable[str], quantized: list[str]) -> list[str]:
    """Skipped names, whole subtrees as their root where nothing inside is quantized."""
    ancestors = {prefix for name in quantized for prefix in _ancestors(name)}
    entries: dict[str, None] = {}
    for name in skipped:
        free = [prefix for prefix in (*_ancestors(name), name) if prefix not in ancestors]
        entries.setdefault(free[0])
    return list(entries)


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _dispute(model: nn.Module, entries: list[str], stock: set[str], quantized: set[str], *, bare: bool) -> str | None:
    """The first module about which transformers would decide otherwise; with `bare`, in the base model alone too."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    # Always added by the quantizer, whatever the list says.
    patterns = [*entries, *(getattr(model, "_keep_in_fp32_modules", None) or ())]
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for name in sorted(stock):
        views = {name, name.removeprefix(prefix)} if bare else {name}
        if any(should_convert_module(view, patterns) != (name in quantized) for view in views):
            return name
    return None
