"""Double quantization: the absmax of 4-bit blocks in 8 bits, around their mean; what bitsandbytes writes on x86-64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rulequant.torch.arrays.tables import nearest_dynamic_codes

__all__ = ["NESTED_BLOCKSIZE", "nested_codes"]

NESTED_BLOCKSIZE = 256
"""Values that share a scale; bitsandbytes has no other."""

BLOCKS_AT_A_TIME = 256
"""As many as fit the cache with what is computed from them."""


def nested_codes(absmax: NDArray[np.float32], offset: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes [blocks] and their scales [ceil(blocks/256)] of absmax [blocks] around its mean.

    Slices that begin at a multiple of 256 blocks give the same. Little more than the result is held.
    """
    codes = np.empty(len(absmax), np.uint8)
    scales = np.empty(-(-len(absmax) // NESTED_BLOCKSIZE), np.float32)
    for block in range(0, len(scales), BLOCKS_AT_A_TIME):
        values = slice(block * NESTED_BLOCKSIZE, (block + BLOCKS_AT_A_TIME) * NESTED_BLOCKSIZE)
        _encode_blocks(absmax[values] - np.float32(offset), codes[values], scales[block : block + BLOCKS_AT_A_TIME])
    return codes, scales


def _encode_blocks(values: NDArray[np.float32], codes: NDArray[np.uint8], scales: NDArray[np.float32]) -> None:
    """`quantize_cpu_impl` of bitsandbytes' csrc/cpu_ops.cpp, step by step in float32; the last block may be short.

    The values are overwritten.
    """
    short = len(values) % NESTED_BLOCKSIZE
    if short:
        values = np.concatenate([values, np.zeros(NESTED_BLOCKSIZE - short, np.float32)])
    blocks = values.reshape(-1, NESTED_BLOCKSIZE)
    np.maximum(blocks.max(axis=1), -blocks.min(axis=1), out=scales)
    # Zero without a sign.
    np.abs(scales, out=scales)
    # The reciprocal of zero is infinite, and so is that of a scale below 2^-128: times zero, it is NaN.
    with np.errstate(all="ignore"):
        np.multiply(blocks, (np.float32(1) / scales)[:, None], out=blocks)
    np.clip(values, -1, 1, out=values)
    # bitsandbytes halves the sum and then multiplies by 65,535, which is the same: halving is exact.
    np.add(values, np.float32(1), out=values)
    np.multiply(values, np.float32(32767.5), out=values)
    np.add(values, np.float32(0.5), out=values)
    # The compiled kernel makes NaN the place 0, and gives a block of zeros code 0 too. (Its scale is zero.)
    # Of NaN and a number fmax takes the number; no place is negative.
    np.fmax(values, np.float32(0), out=values)
    np.take(nearest_dynamic_codes(), values[: len(codes)].astype(np.intp), out=codes, mode="clip")
