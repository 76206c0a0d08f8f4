"""Full blocks of 4-bit values: the absmax and the packed codes of some thousand blocks at once.

A block of 64 values is too short for numpy, which spends more on beginning a row than on its values. So short blocks
are turned: the first four values of all blocks of a group, then the next four. Then each step is one long row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rulequant.torch.arrays.floats import Bits, Float, magnitude_maxima, turned, turned_maxima
from rulequant.torch.arrays.spans import Cut, scratch
from rulequant.torch.arrays.tables import FourBitTable

__all__ = ["TINY", "encode_blocks", "pack", "ranks_of"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

TINY = np.float32(1e-38)
"""bitsandbytes' lower limit for what it divides by. A subnormal number, whose reciprocal is still finite."""

LONGEST_TURNED = 128
"""Values of a block that is worth turning."""

GROUP = 256
"""Blocks turned together: as many as stay in the fastest cache while they are read in steps."""


def encode_blocks(blocks: Bits, dtype: Float, table: FourBitTable, absmax: Floats, packed: Bytes, cut: Cut) -> None:
    """Set `absmax` [count] and `packed` [count * blocksize / 2] of blocks [count, blocksize]."""
    count, blocksize = blocks.shape
    if blocksize > LONGEST_TURNED:
        _encode_long(blocks, dtype, table, absmax, packed, cut)
        return
    whole = count // GROUP * GROUP
    for part, group in ((slice(0, whole), GROUP), (slice(whole, count), count - whole)):
        if part.start < part.stop:
            bytes_ = packed[part.start * blocksize // 2 : part.stop * blocksize // 2]
            _encode_short(blocks[part], dtype, table, absmax[part], bytes_, cut, group)


def ranks_of(scaled: Floats, midpoints: Floats, cut: Cut) -> Bytes:
    """The number of midpoints [15, 1] below each value [n]. Scratch memory.

    numpy compares ten times as fast as torch, into bytes, which it also adds fast.
    """
    ranks = scratch("ranks", scaled.shape, np.uint8)
    row, rows = cut.row, cut.rows
    whole = len(scaled) // (row * rows) * row * rows
    for at in range(0, whole, row * rows):
        part = slice(at, at + row * rows)
        _count_below(scaled[part].reshape(rows, 1, row), midpoints, ranks[part].reshape(rows, row))
    for at in range(whole, len(scaled), row):
        part = slice(at, at + row)
        _count_below(scaled[None, None, part], midpoints, ranks[None, part])
    return ranks


def _count_below(rows: Floats, midpoints: Floats, ranks: Bytes) -> None:
    exceeded = scratch("exceeded", (len(rows), len(midpoints), rows.shape[2]), np.bool_)
    np.greater(rows, midpoints, out=exceeded)
    np.add.reduce(exceeded.view(np.uint8), axis=1, out=ranks)


def pack(codes: Bytes, packed: Bytes) -> None:
    """Two codes (or ranks) a byte, the first in the high half; the codes, even in number, are overwritten."""
    # Little-endian: first + 256 * second. Times (4096 + 1), the high byte is 16 * first + second.
    pairs = codes.view("<u2")
    np.multiply(pairs, 4097, out=pairs)
    np.right_shift(pairs, 8, out=pairs)
    np.copyto(packed, pairs, casting="unsafe")


def _encode_long(blocks: Bits, dtype: Float, table: FourBitTable, absmax: Floats, packed: Bytes, cut: Cut) -> None:
    absmax[:] = magnitude_maxima(blocks, dtype)
    factors, power = _factors(absmax, dtype)
    _encode(blocks, dtype, table, factors[:, None], power, packed, cut)


def _encode_short(
    blocks: Bits, dtype: Float, table: FourBitTable, absmax: Floats, packed: Bytes, cut: Cut, group: int
) -> None:
    columns = turned(blocks, group)
    absmax[:] = turned_maxima(columns, dtype)
    factors, power = _factors(absmax, dtype)
    # A factor for each value of a block that lies in a row, or for each pair where two make up four bytes.
    repeated = scratch("factors", (len(factors), blocks.itemsize), np.float32)
    for lane in range(blocks.itemsize):
        repeated[:, lane] = factors
    codes = scratch("turned bytes", (*columns.shape[:2], group * 2), np.uint8)
    _encode(columns, dtype, table, repeated.reshape(len(columns), 1, -1), power, codes.reshape(-1), cut)
    # The four codes of a block that lie in a row.
    fours = packed.view(np.uint16).reshape(len(columns), group, -1)
    np.copyto(fours, codes.view(np.uint16).transpose(0, 2, 1))


def _factors(absmax: Floats, dtype: Float) -> tuple[Floats, int]:
    """What the values of a block, as `_planes` gives them, are multiplied by, and the power of two that comes with it.

    bitsandbytes multiplies by the reciprocal, and clamps the product to [-1, 1]. It can pass 1 by a rounding error, but
    no midpoint lies there. A power of two changes no bit of a product's fraction, unless it is subnormal or overflows.
    """
    if dtype == "F16":
        # 2^112 is missing in the values, and would overflow here. No absmax but zero is below 2^-24.
        return np.reciprocal(np.maximum(absmax, np.float32(2.0**-24))) * np.float32(2.0**100), -12
    return np.reciprocal(np.maximum(absmax, TINY)), 0


def _encode(
    patterns: Bits, dtype: Float, table: FourBitTable, factors: Floats, power: int, packed: Bytes, cut: Cut
) -> None:
    midpoints = table.midpoints * np.float32(2.0**power)
    size = patterns[0].size
    step = max(cut.part // size, 1)
    for at in range(0, len(patterns), step):
        part = slice(at, at + step)
        bytes_ = packed[at * size // 2 : (at + step) * size // 2]
        _encode_part(patterns[part], dtype, midpoints, factors[part], bytes_, cut)
    if table.fours is not None:
        fours = packed.view(np.uint16)
        # The mode that needs no test of the indices.
        np.take(table.fours, fours, out=fours, mode="clip")


def _encode_part(patterns: Bits, dtype: Float, midpoints: Floats, factors: Floats, packed: Bytes, cut: Cut) -> None:
    planes = _planes(patterns, dtype)
    scaled = scratch("scaled", planes.shape, np.float32)
    np.multiply(planes, factors, out=scaled)
    ranks = ranks_of(scaled.reshape(-1), midpoints, cut)
    if len(planes) == 1:
        pack(ranks, packed)
        return
    first, second = ranks.reshape(2, -1)
    np.left_shift(first, 4, out=first)
    np.bitwise_or(first, second, out=packed)


def _planes(patterns: Bits, dtype: Float) -> Floats:
    """The values of patterns [..., n], float32 as [1, ..., n], 16 bits as [2, ..., n/2], those at even places first.

    Those of float16 lack a factor of 2^112.
    """
    if dtype == "F32":
        return patterns.view(np.float32)[None]
    # Little-endian: the first of a pair is the lower half.
    pairs: NDArray[Any] = patterns.view("<i4")
    planes = scratch("scaled", (2, *pairs.shape), np.float32)
    first, second = planes.view(np.int32)
    np.left_shift(pairs, 16, out=first)
    if dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        np.bitwise_and(pairs, -0x10000, out=second)
        return planes
    # Sign, exponent and fraction where float32 has them; but its exponent counts from -126, that of float16 from -14.
    np.right_shift(first, 3, out=first)
    np.bitwise_and(first, ~0x70000000, out=first)
    np.right_shift(pairs, 3, out=second)
    np.bitwise_and(second, ~0x70001FFF, out=second)
    return planes
