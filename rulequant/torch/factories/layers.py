"""The layers of bitsandbytes, each with what its CPU kernels lack. Importing this module imports bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from rulequant.torch.factories.decoding import dequantize

__all__ = ["Linear4bit", "Linear8bitLt"]


class Linear4bit(bnb.nn.Linear4bit):  # type: ignore[misc]
    """`Linear4bit` for rows that are not whole blocks too, with which bitsandbytes' CPU kernel is wrong in silence.

    The class keeps its name, which accelerate and others go by.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear4bit:
        """As `nn.Module._apply`, for which bytes packed into floats (`quant_storage`) are no values to cast."""
        storage = self.weight.dtype
        if not storage.is_floating_point or getattr(self.weight, "quant_state", None) is None:
            return cast(Linear4bit, super()._apply(fn, recurse))
        self.weight.data = self.weight.data.view(torch.uint8)
        super()._apply(fn, recurse)
        self.weight.data = self.weight.data.view(storage)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        state = getattr(self.weight, "quant_state", None) or self.quant_state
        if x.device.type != "cpu" or state is None or self.in_features % state.blocksize == 0:
            return cast(Tensor, super().forward(x))
        dtype = self.compute_dtype or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        weight = dequantize(self.weight.data, state).to(dtype)
        return nn.functional.linear(x.to(dtype), weight, bias).to(x.dtype)


class Linear8bitLt(bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """`Linear8bitLt` for inputs of any number of dimensions: the CPU kernel knows two and three.

    The class keeps its name, which accelerate and others go by.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear8bitLt:
        """As `nn.Module._apply`; values and scales that are no longer in the weight go to its device too."""
        super()._apply(fn, recurse)
        if self.state.CB is not None and self.state.CB.device != self.weight.device:
            self.state.CB, self.state.SCB = self.weight.data, self.state.SCB.to(self.weight.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], as rows."""
        rows = super().forward(x.reshape(-1, x.shape[-1]))
        return cast(Tensor, rows.reshape(*x.shape[:-1], self.out_features))
