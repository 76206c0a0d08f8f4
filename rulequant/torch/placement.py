"""Where, and in which dtype, transformers is to put what it loads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch

from rulequant.errors import UsageError

__all__ = ["check_devices", "kept_in_float32"]

_HOST = frozenset({"cpu", "disk"})


def kept_in_float32(model: Any, dtype: torch.dtype) -> re.Pattern[str] | None:
    """What matches the tensors that transformers keeps in float32 when it loads a model in a dtype; None for none."""
    get_plan = getattr(model, "_get_dtype_plan", None)
    patterns = list(get_plan(dtype)) if get_plan else []
    if not patterns:
        return None
    from transformers.core_model_loading import build_glob_alternation

    return cast("re.Pattern[str]", build_glob_alternation(patterns)[0])


def check_devices(device_map: Any, quantized: Iterable[str]) -> None:
    """Refuse to offload quantized layers: what belongs to a packed weight would not come along.

    Raises:
        UsageError: a quantized module is on the disk, or on the CPU while others are on accelerators.
    """
    if not isinstance(device_map, Mapping):
        return
    places = {str(each) for each in device_map.values()}
    barred = {"disk"} if places <= _HOST else _HOST
    away = [(name, device) for name in quantized if (device := _device_of(name, device_map)) in barred]
    if away:
        name, device = away[0]
        more = f" and {len(away) - 1:,} more" if len(away) > 1 else ""
        where = "on the disk" if device == "disk" else "on the CPU, and others on an accelerator"
        raise UsageError(
            f"the device map puts quantized modules {where}: {name}{more}",
            remedy="keep them on one kind of device; what is not quantized may be offloaded",
        )


def _device_of(name: str, device_map: Mapping[str, Any]) -> str | None:
    parts = name.split(".")
    starts = [".".join(parts[:end]) for end in range(len(parts), -1, -1)]
    return next((str(device_map[each]) for each in starts if each in device_map), None)
