"""LLM.int8(): int8 values with one scale for each output row; bit by bit what bitsandbytes writes.

bitsandbytes has no compiled CPU kernel for this: it runs `int8_vectorwise_quant` of
https://github.com/bitsandbytes-foundation/bitsandbytes/blob/0.50.2/bitsandbytes/backends/default/ops.py
over the whole tensor, each step a pass over the memory. Here the steps are done on chunks that stay in the cache.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rulequant.torch.kernels.floats import (
    Bits,
    bits_of,
    check_source,
    magnitude_maxima,
    missing_factor,
    through_float16,
    to_eleven_bits,
)
from rulequant.torch.kernels.notfinite import refuse_not_finite
from rulequant.torch.kernels.spans import in_parallel, scratch

__all__ = ["quantize_int8"]

CHUNK = 1 << 17
"""Values that go through all steps together, if the rows are not longer: what is computed from them is half a MB."""

LARGEST_COARSE = np.float32(127 * 2.0**6)
"""The largest factor that takes 2^-14, float16's smallest number that is not subnormal, below 1/2 and so to 0."""


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
    scales = torch.zeros(len(weight), dtype=torch.float32, device="cpu")
    if not weight.numel():
        return values, scales
    bits, targets, maxima = bits_of(weight), values.numpy(), scales.numpy()
    rows = max(CHUNK // weight.shape[1], 1)

    def encode_span(start: int, stop: int) -> None:
        for at in range(start, stop, rows):
            part = slice(at, min(at + rows, stop))
            _encode_rows(bits[part], weight.dtype, targets[part], maxima[part])

    in_parallel(encode_span, len(weight), chunk=rows, threads=threads)
    refuse_not_finite(weight.view(-1), scales, weight.shape[1], through=torch.float16)
    return values, scales


def _check_out(weight: Tensor, out: Tensor | None) -> None:
    if out is not None and (out.dtype != torch.int8 or out.shape != weight.shape or not out.is_contiguous()):
        raise ValueError(f"out must be contiguous int8 {list(weight.shape)}, got {out.dtype} {list(out.shape)}")


def _encode_rows(rows: Bits, dtype: torch.dtype, out: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
    """Scale each row to [-127, 127] by its largest magnitude and round half to even."""
    # Rounding to float16 keeps the order, so it may follow the maximum. What is too large becomes infinite.
    scales[:] = magnitude_maxima(rows, dtype).astype(np.float16)
    # Two roundings, because torch divides a number by a tensor in this way.
    factors = np.reciprocal(scales) * np.float32(127)
    # For a row of zeros 0, not infinity: its codes are zeros, and not what a machine makes of NaN as an integer.
    factors[scales == 0] = 0
    floats = scratch("scaled", (rows.size,), np.float32)
    if (factors <= LARGEST_COARSE).all():
        floats = to_eleven_bits(rows.reshape(-1), dtype, floats)
        factors *= missing_factor(dtype)
    else:
        floats = through_float16(rows.reshape(-1), dtype, floats)
    scaled = scratch("scaled", rows.shape, np.float32)
    np.multiply(floats.reshape(rows.shape), factors[:, None], out=scaled)
    # The steps of float32 are 1 here: the sum is rounded half to even, and its lowest byte is the number.
    np.add(scaled, np.float32(1.5 * 2**23), out=scaled)
    np.copyto(out, scaled.view(np.int32), casting="unsafe")
