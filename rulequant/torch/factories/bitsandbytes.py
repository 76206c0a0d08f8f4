"""The factories of bitsandbytes: `Linear4bit` (nf4, fp4) and `Linear8bitLt` (LLM.int8()).

bitsandbytes takes seconds to import. Encoding on the CPU does without it, so its layers are imported where they are
built, filled or decoded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from rulequant.inventory import Kind
from rulequant.schemes import Bnb4bit, BnbInt8, Scheme
from rulequant.torch.experts import expert_parameters, swap_parameters
from rulequant.torch.factories.encoding import encode_4bit, encode_experts_4bit, encode_experts_int8, encode_int8
from rulequant.torch.factories.spans import EncodedParts, span_4bit, span_int8
from rulequant.torch.factories.values import check_4bit, check_int8
from rulequant.torch.standins import STANDS_FOR, StandIn

__all__ = ["Linear4bitFactory", "Linear8bitFactory"]


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
        from rulequant.torch.factories.experts import Experts4bit
        from rulequant.torch.factories.layers import Linear4bit
        from rulequant.torch.factories.standins import stand_in_4bit

        settings = cast(Bnb4bit, scheme)
        if fused := _fused(module):
            weights = {name: Experts4bit(each.shape, each.dtype, settings) for name, each in fused.items()}
            return swap_parameters(module, weights)
        if isinstance(module, STANDS_FOR):
            return stand_in_4bit(module, settings)
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
        check_4bit(weight, cast(Bnb4bit, scheme))

    def encode(self, weight: Tensor, kind: Kind, scheme: Scheme) -> dict[str, Tensor]:
        """`weight` U8 [ceil(n/2), 1] (viewed as quant_storage), `weight.absmax` and the rest of the quant state.

        The same call that `Params4bit` makes, so the bytes are those of transformers' quantize-on-load.
        """
        return encode_4bit(_out_in(weight, kind).contiguous(), cast(Bnb4bit, scheme), kind)

    def encode_experts(
        self, slices: Iterable[Tensor], shape: torch.Size, dtype: torch.dtype, scheme: Scheme
    ) -> dict[str, Tensor]:
        """`encode` for fused experts, from the experts one by one, each [rows, columns]."""
        return encode_experts_4bit(slices, shape, dtype, cast(Bnb4bit, scheme))

    def attach(self, layer: nn.Module, encoded: dict[str, Tensor]) -> None:
        """Make the weight a `Params4bit` with its quant state."""
        import bitsandbytes as bnb

        target = cast(Any, layer)
        statistics = {key: value for key, value in encoded.items() if key != "weight"}
        packed = encoded["weight"]
        target.weight = bnb.nn.Params4bit.from_prequantized(
            data=packed,
            quantized_stats=statistics,
            requires_grad=False,
            device=packed.device,
            module=None if isinstance(layer, StandIn) else layer,
        )

    def share(self, layer: nn.Module, twin: nn.Module) -> None:
        """One `Params4bit` in both; its quant state is in it, and in a `Linear4bit` beside it."""
        twin._parameters["weight"] = layer._parameters["weight"]
        if "quant_state" in vars(layer):
            cast(Any, twin).quant_state = layer.quant_state

    def decode(self, encoded: dict[str, Tensor], kind: Kind) -> Tensor:
        """The dequantized weight in the dtype it had."""
        from bitsandbytes import functional

        from rulequant.torch.factories.decoding import dequantize

        statistics = {key: value for key, value in encoded.items() if key != "weight"}
        packed = encoded["weight"]
        return _out_in(dequantize(packed, functional.QuantState.from_dict(statistics, device=packed.device)), kind)

    def span(self, parts: EncodedParts, start: int, stop: int, columns: int) -> dict[str, Tensor]:
        """The values [start, stop) of the weight [out, in], from a block's first on, as one encoded row."""
        del columns
        return span_4bit(parts, start, stop)


class Linear8bitFactory:
    """LLM.int8(): int8 values with one float32 scale for each output row."""

    tensor_names = ("weight", "SCB", "weight_format")

    def build(self, module: nn.Module, scheme: Scheme) -> nn.Module:
        """A `Linear8bitLt` with its weight on meta; for fused experts a copy of the module with `Experts8bit`."""
        from rulequant.torch.factories.experts import Experts8bit
        from rulequant.torch.factories.layers import Linear8bitLt
        from rulequant.torch.factories.standins import stand_in_8bit

        settings = cast(BnbInt8, scheme)
        if fused := _fused(module):
            return swap_parameters(module, {name: Experts8bit(each.shape, each.dtype) for name, each in fused.items()})
        if isinstance(module, STANDS_FOR):
            return stand_in_8bit(module)
        in_features, out_features = _features(module)
        with torch.device("meta"):
            layer = Linear8bitLt(
                in_features, out_features, bias=False, has_fp16_weights=False, threshold=settings.threshold
            )
        return _finish(layer, module)

    def check(self, weight: Tensor, scheme: Scheme) -> None:  # noqa: ARG002
        """Refuse NaN, and values that float16 cannot hold."""
        check_int8(weight)

    def encode(self, weight: Tensor, kind: Kind, scheme: Scheme) -> dict[str, Tensor]:
        """`weight` I8 [out, in], `SCB` F32 [out] (the absolute maximum of each row) and `weight_format` U8 0.

        Embeddings and convolutions keep the shape of their weight, and need no format.
        """
        del scheme
        values, scales = encode_int8(_out_in(weight, kind).contiguous(), kind)
        encoded = {"weight": values, "SCB": scales}
        is_linear = kind in {"linear", "conv1d"}
        return encoded | {"weight_format": torch.tensor(0, dtype=torch.uint8)} if is_linear else encoded

    def encode_experts(
        self, slices: Iterable[Tensor], shape: torch.Size, dtype: torch.dtype, scheme: Scheme
    ) -> dict[str, Tensor]:
        """`encode` for fused experts, from the experts one by one, each [rows, columns]."""
        del dtype, scheme
        return encode_experts_int8(slices, shape)

    def attach(self, layer: nn.Module, encoded: dict[str, Tensor]) -> None:
        """Make the weight an `Int8Params` with its scales."""
        import bitsandbytes as bnb

        from rulequant.torch.factories.experts import Experts8bit

        target = cast(Any, layer)
        values = encoded["weight"]
        if isinstance(layer, Experts8bit | StandIn):
            layer.weight, layer.SCB = nn.Parameter(values, requires_grad=False), encoded["SCB"]
            return
        target.weight = bnb.nn.Int8Params(
            values, requires_grad=False, has_fp16_weights=False, CB=values, SCB=encoded["SCB"]
        )

    def share(self, layer: nn.Module, twin: nn.Module) -> None:
        """One parameter and one tensor of scales in both.

        The first `Linear8bitLt` that runs takes values and scales out of its weight, where the second would not find
        them, and encode the int8 values once more in silence: so both have them beforehand.
        """
        source, target = cast(Any, layer), cast(Any, twin)
        twin._parameters["weight"] = layer._parameters["weight"]
        if "SCB" in vars(layer):
            target.SCB = source.SCB
            return
        if getattr(source.weight, "CB", None) is not None:
            source.init_8bit_state()
        target.state.CB, target.state.SCB = source.state.CB, source.state.SCB

    def decode(self, encoded: dict[str, Tensor], kind: Kind) -> Tensor:
        """The dequantized weight in float32: value * scale / 127."""
        from bitsandbytes import functional

        if kind == "experts":
            return encoded["weight"].float() * (encoded["SCB"] / 127.0).unsqueeze(-1)
        values = encoded["weight"]
        plain = functional.int8_vectorwise_dequant(values.flatten(1), encoded["SCB"]).reshape(values.shape)
        return _out_in(plain, kind)

    def span(self, parts: EncodedParts, start: int, stop: int, columns: int) -> dict[str, Tensor]:
        """The rows of the values [start, stop) of the weight [out, in], as an encoded weight."""
        return span_int8(parts, start, stop, columns)


def _fused(module: nn.Module) -> dict[str, Tensor]:
    return {name: cast(Tensor, module._parameters[name]) for name in expert_parameters(module)}


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
