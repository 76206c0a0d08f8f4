"""Modules that transformers' bitsandbytes loader takes apart before it replaces layers, as the experts of Llama 4."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

from torch import nn

from rulequant.errors import ModelError
from rulequant.unfused import LAYOUT

__all__ = ["as_loaded", "is_taken_apart", "stock_linears"]


def stock_linears(module: nn.Module) -> bool:
    """Whether the loader has Linear layers for a module, which lie in it as `rulequant.unfused` says."""
    return is_taken_apart(module) and _is_known(module)


def is_taken_apart(module: nn.Module) -> bool:
    """Whether the loader puts another module in the place of this one, quantized or not."""
    if not type(module).__module__.startswith("transformers."):
        return False
    from transformers.quantizers import base
    from transformers.utils.quantization_config import QuantizationMethod

    found = getattr(base, "MODULES_TO_PATCH_FOR_QUANTIZATION", {}).get(type(module).__name__, {})
    return QuantizationMethod.BITS_AND_BYTES in found.get("quantization_methods", ())


def _is_known(module: nn.Module) -> bool:
    """Whether it has the parameters of Llama 4: [experts, hidden, 2 * inner] and [experts, inner, hidden]."""
    shapes = {name: tuple(each.shape) for name, each in module._parameters.items() if each is not None}
    if set(shapes) != {each.source for each in LAYOUT} or any(len(each) != 3 for each in shapes.values()):
        return False
    experts, hidden, both = shapes["gate_up_proj"]
    return both % 2 == 0 and shapes["down_proj"] == (experts, both // 2, hidden)


def as_loaded(model: nn.Module) -> nn.Module:
    """The model as the loader has it before it replaces layers, by transformers' own code: itself, or a copy.

    Raises:
        ModelError: it takes a module apart in a way that rulequant does not know.
    """
    apart = {name: each for name, each in model.named_modules() if is_taken_apart(each)}
    for name, each in apart.items():
        if not _is_known(each):
            kind = type(each).__name__
            raise ModelError(
                f"transformers' bitsandbytes loader puts something unknown in the place of {name} ({kind})"
            )
    if not apart:
        return model
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationMethod

    loaded: Any = copy.deepcopy(model)
    config = SimpleNamespace(quant_method=QuantizationMethod.BITS_AND_BYTES)
    HfQuantizer._convert_model_for_quantization(SimpleNamespace(quantization_config=config), loaded)
    return loaded  # type: ignore[no-any-return]
