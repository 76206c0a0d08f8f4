"""The largest magnitude of rows and of short blocks, in bit patterns.

The bit patterns of floats of one sign are ordered as integers, infinity and NaN on top. So the largest integer finds on
the way what is not finite, and takes a fraction of the time of the maximum of absolute values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rulequant.torch.arrays.floats import Bits, Float, to_float32
from rulequant.torch.arrays.spans import scratch

__all__ = ["BlockMaxima", "magnitude_maxima"]

PART = 64
"""Values whose largest is found first, where blocks are as long."""

GROUP = 128
"""Parts turned together: as many as stay in the fastest cache while they are read in steps."""


def magnitude_maxima(rows: Bits, dtype: Float) -> NDArray[np.float32]:
    """The largest magnitude in each row [k, n], as float32; not finite if anything in the row is not."""
    # With the sign bit, negative numbers are the largest unsigned integers, and less than zero as signed ones.
    unsigned: Bits = np.maximum.reduce(rows.view(f"u{rows.itemsize}"), axis=1).view(rows.dtype)
    np.bitwise_and(unsigned, np.iinfo(rows.dtype).max, out=unsigned)
    largest = np.maximum(np.maximum.reduce(rows, axis=1), unsigned)
    return _as_float32(largest, dtype)


class BlockMaxima:
    """The same for blocks, all in one go, in memory laid out beforehand.

    numpy spends more on beginning a short row than on its values. So each value is compared with the one half a part
    further on, over the ends of parts; what lies in the second halves then is nothing. The first halves are turned: the
    first four values of all parts of a group, then the next four. From there on rows are long.
    """

    def __init__(self, magnitudes: Bits, larger: Bits, dtype: Float, blocksize: int) -> None:
        """Both arrays are overwritten: [n] of the patterns' type, where n is a multiple of the blocksize."""
        part = min(blocksize, PART)
        half = part // 2
        parts = len(magnitudes) // part
        group = GROUP if parts % GROUP == 0 else parts
        # A type of the size of four values; a copy looks at no bit.
        four = np.int64 if larger.itemsize == 2 else np.complex128
        self._dtype = dtype
        self._mask = np.iinfo(larger.dtype).max
        self._magnitudes = magnitudes
        self._near, self._far, self._larger = magnitudes[:-half], magnitudes[half:], larger[:-half]
        fours: NDArray[Any] = larger.view(four).reshape(-1, group, part // 4)
        self._fours = fours[:, :, : half // 4].transpose(0, 2, 1)
        self._turned = scratch("turned", self._fours.shape, four)
        self._columns = self._turned.view(larger.dtype)
        self._largest = [np.empty(parts * each, larger.dtype) for each in (4, 2, 1)]
        self._largest_of_groups = self._largest[0].reshape(len(fours), group * 4)
        self._largest_of_parts = self._largest[2].reshape(-1, blocksize // part)

    def find(self, bits: Bits, maxima: NDArray[np.float32]) -> None:
        """Set the largest magnitude [n/blocksize] of each block of patterns [n]."""
        np.bitwise_and(bits, self._mask, out=self._magnitudes)
        np.maximum(self._near, self._far, out=self._larger)
        np.copyto(self._turned, self._fours)
        np.maximum.reduce(self._columns, axis=1, out=self._largest_of_groups)
        four, two, one = self._largest
        np.maximum(four[::2], four[1::2], out=two)
        np.maximum(two[::2], two[1::2], out=one)
        if self._largest_of_parts.shape[1] > 1:
            one = np.maximum.reduce(self._largest_of_parts, axis=1)
        maxima[:] = _as_float32(one, self._dtype)


def _as_float32(patterns: Bits, dtype: Float) -> NDArray[np.float32]:
    if dtype == "F16":
        # Few enough for numpy's conversion, which knows infinity and NaN.
        return patterns.view(np.float16).astype(np.float32)
    return to_float32(patterns, dtype, np.empty(len(patterns), np.float32))
