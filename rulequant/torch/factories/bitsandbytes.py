"""The factories of bitsandbytes: `Linear4bit` (nf4, fp4) and `Linear8bitLt` (LLM.int8())."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from math import isfinite
from typing import Any, cast

import bitsandbytes as bnb
import torch
from bitsandbytes import functional
from torch import Tensor, nn

from rulequant.inventory import Kind
from rulequant.schemes import Bnb4bit, BnbInt8, Scheme
from rulequant.torch.experts import expert_parameters, swap_parameters
from rulequant.torch.factories import NotFiniteError
from rulequant.torch.factories.encoding import encode_4bit, encode_int8
from rulequant.torch.factories.experts import Experts4bit, Experts8bit, encode_experts_4bit, encode_experts_int8

__all__ = ["Linear4bit", "Linear4bitFactory", "Linear8bitFactory", "Linear8bitLt"]

FP16_MAX = 65504.0
"""LLM.int8() goes through float16: a larger value would make the scale infinite and its row zero."""
FP32_MAX = torch.finfo(torch.float32).max


class Linear4bit(bnb.nn.Linear4bit):  # type: ignore[misc]
    """`Linear4bit` for rows that are not whole blocks too, with which bitsandbytes' CPU kernel is wrong in silence.

    The class keeps its name, which accelerate and others go by.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        state = getattr(self.weight, "quant_state", None) or self.quant_state
        if x.device.type != "cpu" or state is None or self.in_features % state.blocksize == 0:
            return cast(Tensor, super().forward(x))
        dtype = self.compute_dtype or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        weight = _dequantize(self.weight.data, state).to(dtype)
        return nn.functional.linear(x.to(dtype), weight, bias).to(x.dtype)


class Linear4bitFactory:
    """nf4 and fp4: two values a byte in blocks that share an absolute maximum."""

    tensor_names = (
        "weight",
        "weight.nested_absmax",
        "weight.nested_quant_map",
        "weight.quant_map",
        "weight.absmax",
        "weight.quant_state.bitsandbytes__nf4",
        "weight.quant_state.bitsandbytes__fp4",
    )

    def build(self, module: nn.Module, scheme: Scheme) -> nn.Module:
        """A `Linear4bit` with its weight on meta; its settings travel in the weight, where bitsandbytes looks.

        Fused experts become a copy of the module with `Experts4bit` in place of its parameters.
        """
        settings = cast(Bnb4bit, scheme)
        if fused := _fused(module):
            weights = {name: Experts4bit(each.shape, each.dtype, settings) for name, each in fused.items()}
            return swap_parameters(module, weights)
        in_features, out_features = _features(module)
        storage = getattr(torch, settings.quant_storage)
        with torch.device("meta"):
            layer = Linear4bit(
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
        # On CPUs with AVX512-BF16 its forward in eval mode would repack the weight in place. That fails for many shapes
        # (out_features not a multiple of 32, in_features not of the block size), and taking a state dict undoes it
        # wrongly: absmax comes back transposed and in bfloat16, so what is saved or computed next is wrong in silence.
        layer.support_avx512bf16_for_cpu = False
        return _finish(layer, module)

    def check(self, weight: Tensor, scheme: Scheme) -> None:
        """Refuse NaN and infinite values, and with double quantization those whose mean over all blocks overflows."""
        settings = cast(Bnb4bit, scheme)
        blocks = -(-weight.numel() // settings.blocksize) if settings.double_quant else 1
        _check_values(weight, limit=FP32_MAX / max(blocks, 1), beyond="what double quantization can average")

    def encode(self, weight: Tensor, kind: Kind, scheme: Scheme) -> dict[str, Tensor]:
        """`weight` U8 [ceil(n/2), 1] (viewed as quant_storage), `weight.absmax` and the rest of the quant state.

        The same call that `Params4bit` makes, so the bytes are those of transformers' quantize-on-load.
        """
        settings = cast(Bnb4bit, scheme)
        self.check(weight, scheme)
        return encode_4bit(_out_in(weight, kind).contiguous(), settings)

    def encode_experts(
        self, slices: Iterable[Tensor], shape: torch.Size, dtype: torch.dtype, scheme: Scheme
    ) -> dict[str, Tensor]:
        """`encode` for fused experts, from the experts one by one, each [rows, columns]."""
        return encode_experts_4bit(_checked_experts(slices, self, scheme), shape, dtype, cast(Bnb4bit, scheme))

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
        return _out_in(_dequantize(packed, functional.QuantState.from_dict(statistics, device=packed.device)), kind)


class Linear8bitLt(bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """`Linear8bitLt` for inputs of any number of dimensions: the CPU kernel knows two and three.

    The class keeps its name, which accelerate and others go by.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], as rows."""
        rows = super().forward(x.reshape(-1, x.shape[-1]))
        return cast(Tensor, rows.reshape(*x.shape[:-1], self.out_features))


class Linear8bitFactory:
    """LLM.int8(): int8 values with one float32 scale for each output row."""

    tensor_names = ("weight", "SCB", "weight_format")

    def build(self, module: nn.Module, scheme: Scheme) -> nn.Module:
        """A `Linear8bitLt` with its weight on meta; for fused experts a copy of the module with `Experts8bit`."""
        settings = cast(BnbInt8, scheme)
        if fused := _fused(module):
            return swap_parameters(module, {name: Experts8bit(each.shape, each.dtype) for name, each in fused.items()})
        in_features, out_features = _features(module)
        with torch.device("meta"):
            layer = Linear8bitLt(
                in_features, out_features, bias=False, has_fp16_weights=False, threshold=settings.threshold
            )
        return _finish(layer, module)

    def check(self, weight: Tensor, scheme: Scheme) -> None:  # noqa: ARG002
        """Refuse NaN, and values that float16 cannot hold."""
        _check_values(weight, limit=FP16_MAX, beyond="float16, through which int8 goes")

    def encode(self, weight: Tensor, kind: Kind, scheme: Scheme) -> dict[str, Tensor]:
        """`weight` I8 [out, in], `SCB` F32 [out] (the absolute maximum of each row) and `weight_format` U8 0."""
        self.check(weight, scheme)
        values, scales = encode_int8(_out_in(weight, kind).contiguous())
        return {"weight": values, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}

    def encode_experts(
        self, slices: Iterable[Tensor], shape: torch.Size, dtype: torch.dtype, scheme: Scheme
    ) -> dict[str, Tensor]:
        """`encode` for fused experts, from the experts one by one, each [rows, columns]."""
        del dtype
        return encode_experts_int8(_checked_experts(slices, self, scheme), shape)

    def attach(self, layer: nn.Module, encoded: dict[str, Tensor]) -> None:
        """Make the weight an `Int8Params` with its scales."""
        target = cast(Any, layer)
        values = encoded["weight"]
        if isinstance(layer, Experts8bit):
            layer.weight, layer.SCB = nn.Parameter(values, requires_grad=False), encoded["SCB"]
            return
        target.weight = bnb.nn.Int8Params(
            values, requires_grad=False, has_fp16_weights=False, CB=values, SCB=encoded["SCB"]
        )

    def decode(self, encoded: dict[str, Tensor], kind: Kind) -> Tensor:
        """The dequantized weight in float32: value * scale / 127."""
        if kind == "experts":
            return encoded["weight"].float() * (encoded["SCB"] / 127.0).unsqueeze(-1)
        return _out_in(functional.int8_vectorwise_dequant(encoded["weight"], encoded["SCB"]), kind)


def _fused(module: nn.Module) -> dict[str, Tensor]:
    return {name: cast(Tensor, module._parameters[name]) for name in expert_parameters(module)}


def _checked_experts(
    slices: Iterable[Tensor], factory: Linear4bitFactory | Linear8bitFactory, scheme: Scheme
) -> Iterator[Tensor]:
    for index, each in enumerate(slices):
        try:
            factory.check(each, scheme)
        except NotFiniteError as error:
            raise NotFiniteError(f"expert {index}: {error.message}", remedy=error.remedy) from error
        yield each


def _dequantize(packed: Tensor, state: functional.QuantState) -> Tensor:
    """The weight [out, in] of a quant state, from all its blocks as one row, with which the CPU kernel is right."""
    row = copy.copy(state)
    row.shape = torch.Size((1, state.shape.numel()))
    return cast(Tensor, functional.dequantize_4bit(packed, row)).reshape(state.shape)


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
    layer.weight.data = layer.weight.data.to(cast(Tensor, module.weight).dtype)
    layer.weight.requires_grad_(False)
    layer.bias = module._parameters.get("bias")
    layer.train(module.training)
    return cast(nn.Module, layer)


def _check_values(weight: Tensor, *, limit: float, beyond: str) -> None:
    """Raise NotFiniteError for a value that is NaN, infinite, or larger than `limit`, which is `beyond`."""
    if weight.numel() == 0:
        return
    values = weight.detach()
    low, high = (each.item() for each in torch.aminmax(values))
    if -limit <= low and high <= limit:  # NaN compares false with everything, so the test is for what is fine
        return
    worst = values.abs().argmax()  # NaN counts as the largest
    place = [int(each) for each in torch.unravel_index(worst, values.shape)]
    value = float(values[tuple(place)])
    if isfinite(value):
        raise NotFiniteError(
            f"the value {value:g} at {place} is beyond {beyond} (largest: {limit:g})",
            remedy="skip the module with a reason, or give it another scheme",
        )
    raise NotFiniteError(f"the value at {place} is {value}", remedy="the source weights are damaged; fetch them again")
