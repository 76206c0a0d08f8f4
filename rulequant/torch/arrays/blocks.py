"""Full blocks of 4-bit values: the absmax and the packed codes of some hundred blocks at once.

Two things would cost numpy more than the arithmetic. A block of 64 values is too short for it: beginning a row takes
longer than its values do. So each step here is one long row over all blocks. And making a view of an array takes as
long as some thousand values do. So an encoder lays out all of its memory beforehand, and then only computes, on pieces
that stay in the cache.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rulequant.torch.arrays.floats import Bits, Float
from rulequant.torch.arrays.maxima import BlockMaxima
from rulequant.torch.arrays.spans import Cut, scratch
from rulequant.torch.arrays.tables import four_bit_table

__all__ = ["TINY", "BlockEncoder", "Task", "block_encoder", "pack"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

TINY = np.float32(1e-38)
"""bitsandbytes' lower limit for what it divides by. A subnormal number, whose reciprocal is still finite."""

LONGEST_SPREAD = 128
"""Values of a block whose factor is worth writing out beside each of them."""

MOST_ENCODERS = 16
"""Kept by a thread. A checkpoint needs two for each dtype and setting: one for the ends of its weights."""


class Task(NamedTuple):
    """What an encoder is made for."""

    dtype: Float
    quant_type: str
    blocksize: int
    blocks: int
    """Encoded by a call."""
    cut: Cut


class BlockEncoder:
    """Encodes so many blocks a call, in scratch memory of the thread that made it: what a call leaves there is lost."""

    def __init__(self, task: Task) -> None:
        numel = task.blocks * task.blocksize
        words = np.int32 if task.dtype == "F32" else np.int16
        table = four_bit_table(task.quant_type)
        self._dtype = task.dtype
        # The magnitudes are needed no longer when the values are scaled, nor what comes of them beside the factors.
        self._scaled = scratch("scaled", (numel,), np.float32)
        spread = scratch("factors", (numel,), words)
        self._maxima = BlockMaxima(self._scaled.view(words)[:numel], spread, task.dtype, task.blocksize)
        # 16-bit values are scaled in pairs that share a factor: [count, columns], or one long row.
        columns = task.blocksize * spread.itemsize // 4
        self._factors = np.empty(task.blocks, np.float32)
        self._spread = spread.view(np.float32).reshape(task.blocks, columns) if columns <= LONGEST_SPREAD else None
        self._beside = self._factors[:, None] if self._spread is None else self._spread.reshape(-1)
        self._shape = (task.blocks, columns) if self._spread is None else (task.blocks * columns,)
        self._planes = self._scaled.reshape(4 // spread.itemsize, *self._shape)
        self._ranks = scratch("ranks", (numel,), np.uint8)
        power = 0
        if task.dtype == "F16":
            # 2^112 is missing in the values, and would overflow in the factors. A power of two changes no bit of a
            # product's fraction, unless it is subnormal or overflows.
            power = -12
        self._midpoints = table.midpoints * np.float32(2.0**power)
        self._pieces = list(_pieces(self._scaled, self._ranks, task.cut))
        self._fours = table.fours

    def encode(self, bits: Bits, absmax: Floats, packed: Bytes) -> None:
        """Set `absmax` [count] and `packed` [count * blocksize / 2] of flat bit patterns [count * blocksize].

        Where a pattern is infinity or NaN, absmax is, too; the arithmetic on them raises where `np.errstate` says so.
        """
        self._maxima.find(bits, absmax)
        self._set_factors(absmax)
        self._scale(bits)
        for piece in self._pieces:
            # numpy compares ten times as fast as torch, into bytes, which it also adds fast.
            np.greater(piece.values, self._midpoints, out=piece.exceeded)
            np.add.reduce(piece.exceeded_bytes, axis=1, out=piece.ranks)
        self._pack(packed)

    def _set_factors(self, absmax: Floats) -> None:
        """What the values of each block are multiplied by.

        bitsandbytes multiplies by the reciprocal, and clamps the product to [-1, 1]. It can pass 1 by a rounding error,
        but no midpoint lies there.
        """
        if self._dtype == "F16":
            # No absmax but zero is below 2^-24.
            np.maximum(absmax, np.float32(2.0**-24), out=self._factors)
            np.reciprocal(self._factors, out=self._factors)
            np.multiply(self._factors, np.float32(2.0**100), out=self._factors)
        else:
            np.maximum(absmax, TINY, out=self._factors)
            np.reciprocal(self._factors, out=self._factors)
        if self._spread is not None:
            np.copyto(self._spread, self._factors[:, None])

    def _scale(self, bits: Bits) -> None:
        """Set the scaled values; those of 16 bits as two planes, the values at even places first."""
        if self._dtype == "F32":
            np.multiply(bits.view(np.float32).reshape(self._shape), self._beside, out=self._planes[0])
            return
        # Little-endian: the first of a pair is the lower half.
        pairs = bits.view("<i4").reshape(self._shape)
        first, second = self._planes.view(np.int32)
        np.left_shift(pairs, 16, out=first)
        if self._dtype == "BF16":
            # A bfloat16 is the upper half of a float32.
            np.bitwise_and(pairs, -0x10000, out=second)
        else:
            # Sign, exponent and fraction where float32 has them; but its exponent counts from -126, that of float16
            # from -14.
            np.right_shift(first, 3, out=first)
            np.bitwise_and(first, ~0x70000000, out=first)
            np.right_shift(pairs, 3, out=second)
            np.bitwise_and(second, ~0x70001FFF, out=second)
        np.multiply(self._planes, self._beside, out=self._planes)

    def _pack(self, packed: Bytes) -> None:
        if self._dtype == "F32":
            pack(self._ranks, packed)
        else:
            first, second = self._ranks.reshape(2, -1)
            # Of bytes, numpy multiplies five times as fast as it shifts.
            np.multiply(first, 16, out=first)
            np.bitwise_or(first, second, out=packed)
        if self._fours is not None:
            fours = packed.view(np.uint16)
            # The mode that needs no test of the indices.
            np.take(self._fours, fours, out=fours, mode="clip")


class _Piece(NamedTuple):
    """Values compared with all midpoints while they are in the fastest cache: some rows a call."""

    values: Floats
    """[rows, 1, n]."""
    exceeded: NDArray[np.bool_]
    """[rows, 15, n]: scratch memory."""
    exceeded_bytes: Bytes
    """The same memory."""
    ranks: Bytes
    """[rows, n]: the number of midpoints below."""


def _pieces(scaled: Floats, ranks: Bytes, cut: Cut) -> Iterator[_Piece]:
    at = 0
    while at < len(scaled):
        left = len(scaled) - at
        row = min(cut.row, left)
        rows = min(cut.rows, left // row)
        end = at + rows * row
        exceeded = scratch("exceeded", (rows, 15, row), np.bool_)
        values = scaled[at:end].reshape(rows, 1, row)
        yield _Piece(values, exceeded, exceeded.view(np.uint8), ranks[at:end].reshape(rows, row))
        at = end


class _Encoders(threading.local):
    def __init__(self) -> None:
        self.made: dict[Task, BlockEncoder] = {}


_ENCODERS = _Encoders()


def block_encoder(task: Task) -> BlockEncoder:
    """The calling thread's encoder for a task."""
    made = _ENCODERS.made
    if task not in made:
        if len(made) == MOST_ENCODERS:
            made.clear()
        made[task] = BlockEncoder(task)
    return made[task]


def pack(codes: Bytes, packed: Bytes) -> None:
    """Two codes (or ranks) a byte, the first in the high half; the codes, even in number, are overwritten."""
    # Little-endian: first + 256 * second. Times (4096 + 1), the high byte is 16 * first + second.
    pairs = codes.view("<u2")
    np.multiply(pairs, 4097, out=pairs)
    np.right_shift(pairs, 8, out=pairs)
    np.copyto(packed, pairs, casting="unsafe")
