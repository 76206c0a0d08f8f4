"""LLM.int8(): int8 values with one scale for each output row; bit by bit what bitsandbytes writes.

bitsandbytes has no compiled CPU kernel for this: it runs `int8_vectorwise_quant` of
https://github.com/bitsandbytes-foundation/bitsandbytes/blob/0.50.2/bitsandbytes/backends/default/ops.py
over the whole tensor, each step a pass over the memory. Here the steps are done on chunks that stay in the cache.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rulequant.torch.arrays.floats import (
    Bits,
    Float,
    missing_factor,
    through_float16,
    to_eleven_bits,
)
from rulequant.torch.arrays.maxima import magnitude_maxima
from rulequant.torch.arrays.notfinite import refuse_not_finite
from rulequant.torch.arrays.spans import in_parallel, scratch

__all__ = ["encode_int8"]

FLOAT16_LIMIT = 65520.0
"""From here on a magnitude rounds to infinity in float16."""

CHUNK = 1 << 18
"""Bytes of weights that go through all steps together, if the rows are not longer."""

LONG_CHUNK = 1 << 20
"""The same for several threads (`cut_for` says why)."""

LARGEST_COARSE = np.float32(127 * 2.0**6)
"""The largest factor that takes 2^-14, float16's smallest number that is not subnormal, below 1/2 and so to 0."""


def encode_int8(
    rows: Bits, dtype: Float, *, values: NDArray[np.int8], scales: NDArray[np.float32], threads: int = 1
) -> None:
    """Set values [out, in], and scales [out], the largest magnitude of each row, of bit patterns [out, in].

    All are contiguous. Rows are independent: slices of rows give the same bytes.

    Raises:
        NotFiniteValueError: a value is NaN, infinite, or rounds to infinity in float16.
    """
    count, columns = rows.shape
    if not rows.size:
        scales[:] = 0
        return
    step = max((CHUNK if threads == 1 else LONG_CHUNK) // (columns * rows.itemsize), 1)

    def encode_span(start: int, stop: int) -> None:
        for at in range(start, stop, step):
            part = slice(at, min(at + step, stop))
            _encode_rows(rows[part], dtype, values[part], scales[part])

    in_parallel(encode_span, count, chunk=step, threads=threads)
    refuse_not_finite(rows.reshape(-1), dtype, scales, columns, limit=FLOAT16_LIMIT)


def _encode_rows(rows: Bits, dtype: Float, out: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
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
