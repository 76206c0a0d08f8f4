"""LLM.int8(): int8 values with one scale for each output row."""

from __future__ import annotations

import torch
from torch import Tensor

from rulequant.torch.arrays.int8 import encode_int8
from rulequant.torch.kernels.sources import bits_of, check_source, float_name

__all__ = ["quantize_int8"]


def quantize_int8(weight: Tensor, *, out: Tensor | None = None, threads: int = 1) -> tuple[Tensor, Tensor]:
    """Values I8 [out, in] and `SCB` F32 [out], the largest magnitude of each row, of a weight [out, in].

    The weight is contiguous, on the CPU, in bfloat16, float16 or float32. Rows are independent: slices of rows give the
    same bytes. `out`, I8 of the weight's shape, takes the values.

    Raises:
        NotFiniteValueError: the weight holds a value that is NaN, infinite, or rounds to infinity in float16.
        ValueError: an argument is none of the allowed ones.
    """
    check_source(weight, dimensions=2)
    _check_out(weight, out)
    values = torch.empty(weight.shape, dtype=torch.int8, device="cpu") if out is None else out
    scales = torch.empty(len(weight), dtype=torch.float32, device="cpu")
    encode_int8(
        bits_of(weight), float_name(weight.dtype), values=values.numpy(), scales=scales.numpy(), threads=threads
    )
    return values, scales


def _check_out(weight: Tensor, out: Tensor | None) -> None:
    if out is not None and (out.dtype != torch.int8 or out.shape != weight.shape or not out.is_contiguous()):
        raise ValueError(f"out must be contiguous int8 {list(weight.shape)}, got {out.dtype} {list(out.shape)}")
