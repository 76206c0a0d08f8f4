"""Embeddings and convolutions in bitsandbytes' formats: 4-bit blocks over the flattened weight, or int8 rows.

The weight keeps its shape in the quant state, and as int8 in the tensor itself. What bitsandbytes' own embedding layers
lack is here: they can be saved, double quantization is decoded block by block, and no table is decoded as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import bitsandbytes as bnb
import torch
from bitsandbytes import functional
from torch import Tensor, nn

from rulequant.schemes import Bnb4bit
from rulequant.torch.factories.decoding import dequantize, dequantize_rows
from rulequant.torch.standins import EncodedConv1d, EncodedEmbedding, StandIn, stand_in

__all__ = ["Conv1d4bit", "Conv1d8bit", "Embedding4bit", "Embedding8bit", "stand_in_4bit", "stand_in_8bit"]


class _FourBit(StandIn):
    """nf4 or fp4: `weight` U8 [ceil(n/2), 1] with its quant state."""

    def decoded(self) -> Tensor:
        weight = cast(Any, self.encoded)
        return dequantize(weight.data, weight.quant_state)

    def decoded_rows(self, rows: Tensor) -> Tensor:
        weight = cast(Any, self.encoded)
        return dequantize_rows(weight.data, weight.quant_state, rows)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        state = getattr(self.encoded, "quant_state", None)
        if state is not None:
            for name, value in state.as_dict(packed=True).items():
                destination[f"{prefix}weight.{name}"] = value if keep_vars else value.detach()


class _EightBit(StandIn):
    """int8: `weight` I8 in the weight's shape, `SCB` F32 [rows], the absolute maximum of each row."""

    SCB: Tensor | None
    """No buffer: a loader would miss it in a skeleton if it were persistent, and overwrite it if it were not."""

    def decoded(self) -> Tensor:
        return _scaled(self.encoded.flatten(1), cast(Tensor, self.SCB)).reshape(self.encoded.shape)

    def decoded_rows(self, rows: Tensor) -> Tensor:
        return _scaled(self.encoded.index_select(0, rows), cast(Tensor, self.SCB).index_select(0, rows))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.SCB is not None:
            destination[f"{prefix}SCB"] = self.SCB

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _EightBit:
        super()._apply(fn, recurse)
        if self.SCB is not None:
            # To the same device; the scales stay float32 whatever the model is cast to.
            self.SCB = self.SCB.to(fn(self.SCB).device)
        return self


class Embedding4bit(_FourBit, EncodedEmbedding):
    """An embedding in nf4 or fp4."""


class Conv1d4bit(_FourBit, EncodedConv1d):
    """A convolution in nf4 or fp4."""


class Embedding8bit(_EightBit, EncodedEmbedding):
    """An embedding in int8, a scale a row."""


class Conv1d8bit(_EightBit, EncodedConv1d):
    """A convolution in int8, a scale for each output channel."""


def stand_in_4bit(module: nn.Module, settings: Bnb4bit) -> StandIn:
    """A layer for an embedding or a convolution, its weight on meta in the shape of the plain one."""
    weight = bnb.nn.Params4bit(
        torch.empty_like(cast(Tensor, module.weight), device="meta"),
        requires_grad=False,
        blocksize=settings.blocksize,
        compress_statistics=settings.double_quant,
        quant_type=settings.quant_type,
    )
    layer = stand_in(module, Embedding4bit if isinstance(module, nn.Embedding) else Conv1d4bit, weight)
    if settings.compute_dtype != "auto":
        layer.compute_dtype = getattr(torch, settings.compute_dtype)
    return layer


def stand_in_8bit(module: nn.Module) -> StandIn:
    """As `stand_in_4bit`."""
    base: type[StandIn] = Embedding8bit if isinstance(module, nn.Embedding) else Conv1d8bit
    weight = nn.Parameter(torch.empty_like(cast(Tensor, module.weight), device="meta"), requires_grad=False)
    layer = cast(Any, stand_in(module, base, weight))
    layer.SCB = None
    return cast(StandIn, layer)


def _scaled(values: Tensor, scales: Tensor) -> Tensor:
    return cast(Tensor, functional.int8_vectorwise_dequant(values, scales))
