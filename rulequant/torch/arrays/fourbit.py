"""nf4 and fp4: two codes a byte, in blocks that share their largest magnitude; bit by bit what bitsandbytes writes.

bitsandbytes has no compiled CPU kernel for this: it runs `quantize_4bit` of
https://github.com/bitsandbytes-foundation/bitsandbytes/blob/0.50.2/bitsandbytes/backends/default/ops.py
over the whole tensor, two thirds of the time in `torch.bucketize`. Here the same arithmetic runs on chunks that stay in
the cache, and the search is a comparison with each of the 15 decision points: many more steps, but vectorized ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rulequant.torch.arrays.blocks import TINY, Task, block_encoder, pack
from rulequant.torch.arrays.floats import Bits, Float, to_float32
from rulequant.torch.arrays.maxima import magnitude_maxima
from rulequant.torch.arrays.notfinite import refuse_not_finite
from rulequant.torch.arrays.spans import cut_for, in_parallel, scratch
from rulequant.torch.arrays.tables import QUANT_TYPES, four_bit_table

__all__ = ["BLOCKSIZES", "check_settings", "encode_4bit"]

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""What bitsandbytes takes."""


def encode_4bit(
    bits: Bits,
    dtype: Float,
    *,
    quant_type: str,
    blocksize: int,
    packed: NDArray[np.uint8],
    absmax: NDArray[np.float32],
    threads: int = 1,
    offset: int = 0,
) -> None:
    """Set packed codes [ceil(n/2)] and absmax [ceil(n/blocksize)] of flat bit patterns [n]. All are contiguous.

    Slices of whole blocks give the same bytes; `offset` is the number of values before this one, for the error.

    Raises:
        NotFiniteValueError: the values hold NaN or infinity.
        ValueError: another quant_type or blocksize than the allowed ones.
    """
    check_settings(quant_type, blocksize)
    full = len(bits) // blocksize * blocksize
    cut = cut_for(threads)
    chunk = cut.chunk

    def encode_span(start: int, stop: int) -> None:
        for at in range(start, stop, chunk):
            end = min(at + chunk, stop)
            first, last = at // blocksize, end // blocksize
            encoder = block_encoder(Task(dtype, quant_type, blocksize, last - first, cut))
            encoder.encode(bits[at:end], absmax[first:last], packed[at // 2 : end // 2])

    in_parallel(encode_span, full, chunk=chunk, threads=threads)
    if full < len(bits):
        with np.errstate(all="ignore"):
            scaled = _scaled_short_block(bits[full:], dtype, absmax[-1:])
        table = four_bit_table(quant_type)
        ranks = np.add.reduce(scaled > table.midpoints, axis=0, dtype=np.uint8)
        pack(table.codes[ranks], packed[full // 2 :])
    refuse_not_finite(bits, dtype, absmax, blocksize, offset=offset)


def check_settings(quant_type: str, blocksize: int) -> None:
    """Refuse what bitsandbytes does not take.

    Raises:
        ValueError: naming what is allowed.
    """
    if quant_type not in QUANT_TYPES:
        raise ValueError(f"unknown quant_type {quant_type!r}; allowed: {', '.join(QUANT_TYPES)}")
    if blocksize not in BLOCKSIZES:
        raise ValueError(f"cannot use blocksize {blocksize}; allowed: {', '.join(map(str, BLOCKSIZES))}")


def _scaled_short_block(values: Bits, dtype: Float, absmax: NDArray[np.float32]) -> NDArray[np.float32]:
    """A last block that is not full, scaled: there bitsandbytes divides, and stores what it divides by.

    An odd number of values is followed by a zero, for the second half of the last byte.
    """
    absmax[:] = np.maximum(magnitude_maxima(values[None], dtype), TINY)
    scaled = np.zeros(len(values) + len(values) % 2, np.float32)
    floats = to_float32(values, dtype, scratch("scaled", values.shape, np.float32))
    np.divide(floats, absmax, out=scaled[: len(values)])
    return scaled
