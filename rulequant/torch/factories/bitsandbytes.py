"""The factories of bitsandbytes: `Linear4bit` (nf4, fp4) and `Linear8bitLt` (LLM.int8())."""

from __future__ import annotations

from typing import Any, cast

import bitsandbytes as bnb
import torch
from bitsandbytes import functional
from torch import Tensor, nn

from rulequant.inventory import Kind
from rulequant.schemes import Bnb4bit, BnbInt8, Scheme
from rulequant.torch.factories import NotFiniteError

__all__ = ["Linear4bitFactory", "Linear8bitFactory"]

FP16_MAX = 65504.0
"""LLM.int8() goes through float16: a larger value would make the scale infinite and its row zero."""


class Linear4bitFactory:
    """nf4 and fp4: two values a byte in blocks that share an absolute maximum."""

    def build(self, module: nn.Module, scheme: Scheme) -> nn.Module:
        """A `Linear4bit` with its weight on meta; its settings travel in the weight, where bitsandbytes looks."""
        settings = cast(Bnb4bit, scheme)
        in_features, out_features = _features(module)
        storage = getattr(torch, settings.quant_storage)
        with torch.device("meta"):
            layer = bnb.nn.Linear4bit(
                in_features,
                out_features,
                bias=False,
                compute_dtype=_compute_dtype(module, settings),
                compress_statistics=settings.double_quant,
                quant_type=settings.quant_type,
                quant_storage=storage,
            )
        # The constructor has no argument for it; Params4bit has.
        layer.weight.blocksize = settings.blocksize
        return _finish(layer, module)

    def encode(self, weight: Tensor, kind: Kind, scheme: Scheme) -> dict[str, Tensor]:
        """`weight` U8 [ceil(n/2), 1] (viewed as quant_storage), `weight.absmax` and the rest of the quant state.

        The same call that `Params4bit` makes, so the bytes are those of transformers' quantize-on-load.
        """
        settings = cast(Bnb4bit, scheme)
        _check_finite(weight)
        packed, state = functional.quantize_4bit(
            _out_in(weight, kind).contiguous(),
            blocksize=settings.blocksize,
            compress_statistics=settings.double_quant,
            quant_type=settings.quant_type,
            quant_storage=getattr(torch, settings.quant_storage),
        )
        return {"weight": packed} | {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}

    def attach(self, layer: nn.Module, encoded: dict[str, Tensor]) -> None:
        """Make the weight a `Params4bit` with its quant state."""
        target = cast(Any, layer)
        statistics = {key: value for key, value in encoded.items() if key != "weight"}
        packed = encoded["weight"]
        target.weight = bnb.nn.Params4bit.from_prequantized(
            data=packed, quantized_stats=statistics, requires_grad=False, device=packed.device, module=layer
        )

    def decode(self, encoded: dict[str, Tensor], kind: Kind) -> Tensor:
        """The dequantized weight in the dtype it had."""
        statistics = {key: value for key, value in encoded.items() if key != "weight"}
        packed = encoded["weight"]
        state = functional.QuantState.from_dict(statistics, device=packed.device)
        return _out_in(functional.dequantize_4bit(packed, state), kind)


class Linear8bitFactory:
    """LLM.int8(): int8 values with one float32 scale for each output row."""

    def build(self, module: nn.Module, scheme: Scheme) -> nn.Module:
        """A `Linear8bitLt` with its weight on meta."""
        settings = cast(BnbInt8, scheme)
        in_features, out_features = _features(module)
        with torch.device("meta"):
            layer = bnb.nn.Linear8bitLt(
                in_features, out_features, bias=False, has_fp16_weights=False, threshold=settings.threshold
            )
        return _finish(layer, module)

    def encode(self, weight: Tensor, kind: Kind, scheme: Scheme) -> dict[str, Tensor]:  # noqa: ARG002
        """`weight` I8 [out, in], `SCB` F32 [out] (the absolute maximum of each row) and `weight_format` U8 0."""
        _check_finite(weight, limit=FP16_MAX)
        values, scales, _ = functional.int8_vectorwise_quant(_out_in(weight, kind).contiguous().to(torch.float16))
        return {"weight": values, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}

    def attach(self, layer: nn.Module, encoded: dict[str, Tensor]) -> None:
        """Make the weight an `Int8Params` with its scales."""
        target = cast(Any, layer)
        values = encoded["weight"]
        target.weight = bnb.nn.Int8Params(
            values, requires_grad=False, has_fp16_weights=False, CB=values, SCB=encoded["SCB"]
        )

    def decode(self, encoded: dict[str, Tensor], kind: Kind) -> Tensor:
        """The dequantized weight in float32: value * scale / 127."""
        return _out_in(functional.int8_vectorwise_dequant(encoded["weight"], encoded["SCB"]), kind)


def _out_in(weight: Tensor, kind: Kind) -> Tensor:
    """Between the module's orientation and [out, in]; transformers' `Conv1D` holds [in, out]."""
    return weight.T if kind == "conv1d" else weight


def _features(module: nn.Module) -> tuple[int, int]:
    """(in, out) features of a Linear, or of a `Conv1D`, which has no such attributes."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    shape = cast(Tensor, module.weight).shape
    return shape[0], shape[1]


def _compute_dtype(module: nn.Module, settings: Bnb4bit) -> torch.dtype | None:
    """The dtype that the layer dequantizes to; by default the weight's own."""
    if settings.compute_dtype != "auto":
        return cast(torch.dtype, getattr(torch, settings.compute_dtype))
    dtype = cast(Tensor, module.weight).dtype
    return dtype if dtype.is_floating_point else None


def _finish(layer: Any, module: nn.Module) -> nn.Module:
    """Carry over what stays: the bias object itself, train/eval mode, and the class for transformers' converters."""
    layer.source_cls = type(module)
    layer.weight.requires_grad_(False)
    layer.bias = module._parameters.get("bias")
    layer.train(module.training)
    return cast(nn.Module, layer)


def _check_finite(weight: Tensor, *, limit: float | None = None) -> None:
    if weight.numel() == 0:
        return
    low, high = (each.item() for each in torch.aminmax(weight.detach()))
    largest = max(abs(low), abs(high))
    # NaN compares false with everything, so the test is for what is fine.
    if largest <= (limit or torch.finfo(weight.dtype).max):
        return
    values = weight.detach().reshape(-1)
    wrong = ~(values.abs() <= limit) if limit else ~torch.isfinite(values)
    index = int(wrong.nonzero()[0])
    place = [int(each) for each in torch.unravel_index(torch.tensor(index), weight.shape)]
    value = float(values[index])
    if limit and abs(value) < float("inf"):
        raise NotFiniteError(
            f"the value {value:g} at {place} is beyond float16, through which int8 goes (largest: {limit:g})",
            remedy="skip the module with a reason, or give it a 4-bit scheme",
        )
    raise NotFiniteError(f"the value at {place} is {value}", remedy="the source weights are damaged; fetch them again")
