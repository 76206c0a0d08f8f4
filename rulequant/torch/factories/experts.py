"""Fused experts in bitsandbytes' formats: 4-bit blocks, or int8 rows, over a three-dimensional parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import bitsandbytes as bnb
import torch
from bitsandbytes import functional
from torch import Tensor, nn

from rulequant.schemes import Bnb4bit
from rulequant.torch.experts import ExpertWeights
from rulequant.torch.factories.decoding import absmax_of, dequantize_blocks, dequantize_int8

__all__ = ["Experts4bit", "Experts8bit"]


class Experts4bit(ExpertWeights):
    """nf4 or fp4 experts: `weight` U8 [ceil(n/2), 1] with the quant state of the whole [E, rows, columns]."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, settings: Bnb4bit) -> None:
        """Empty weights on meta, to be attached."""
        super().__init__(shape, dtype)
        self.quant_state: functional.QuantState | None = None
        empty = torch.empty((shape.numel() // 2, 1), dtype=torch.uint8, device="meta")
        self.weight = bnb.nn.Params4bit(
            empty,
            requires_grad=False,
            blocksize=settings.blocksize,
            compress_statistics=settings.double_quant,
            quant_type=settings.quant_type,
            bnb_quantized=True,
        )

    def expert(self, index: int) -> Tensor:
        """Dequantize one expert, [rows, columns]."""
        state = cast(functional.QuantState, self.weight.quant_state)
        experts, rows, columns = self.shape
        if not -experts <= index < experts:
            raise IndexError(f"expert {index} of {experts}")
        count = rows * columns
        start = (index % experts) * count
        packed = self.weight.data.reshape(-1)[start // 2 : (start + count) // 2]
        absmax = absmax_of(state, slice(start // state.blocksize, (start + count) // state.blocksize))
        return dequantize_blocks(packed, absmax, state, self.dtype, lend=True).view(rows, columns)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        state = self.weight.quant_state
        if state is not None:
            for name, value in state.as_dict(packed=True).items():
                destination[f"{prefix}weight.{name}"] = value if keep_vars else value.detach()


class Experts8bit(ExpertWeights):
    """int8 experts: `weight` I8 [E, rows, columns], `SCB` F32 [E, rows], the absolute maximum of each row."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype) -> None:
        """Empty weights on meta, to be attached."""
        super().__init__(shape, dtype)
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.int8, device="meta"), requires_grad=False)
        # No buffer: a loader would miss it in a skeleton if it were persistent, and overwrite it if it were not.
        self.SCB: Tensor | None = None

    def expert(self, index: int) -> Tensor:
        """Dequantize one expert, [rows, columns]: value * scale / 127."""
        return dequantize_int8(self.weight.data[index], cast(Tensor, self.SCB)[index], self.dtype)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.SCB is not None:
            destination[f"{prefix}SCB"] = self.SCB

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Experts8bit:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.SCB is not None:
            # To the same device; the scales stay float32 whatever the model is cast to.
            self.SCB = self.SCB.to(fn(self.SCB).device)
        return self
