"""bfloat16, float16 and float32 as bit patterns: what can be quantized, its conversion, the largest magnitude of a row.

torch converts, but splits every operation on more than 32,768 elements over threads of its own, which would
oversubscribe the machine once several threads run these kernels. numpy never does; but it has no bfloat16, and converts
float16 slowly. So conversions are written out here, in long vectorized steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rulequant.torch.kernels.spans import scratch

__all__ = ["SOURCE_DTYPES", "Bits", "bits_of", "check_source", "magnitude_maxima", "through_float16", "to_float32"]

Bits = NDArray[Any]
"""The bit patterns of floats: int16 or int32."""

SOURCE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What can be quantized. bitsandbytes refuses the others too."""

SHORT_ROW = 256
"""Elements below which numpy's reduction of a row is mostly overhead."""


def check_source(values: Tensor, *, dimensions: int) -> None:
    """Refuse what the kernels cannot read in place.

    Raises:
        ValueError: another dtype, device, number of dimensions, or not contiguous.
    """
    if values.dtype not in SOURCE_DTYPES:
        raise ValueError(f"cannot quantize {values.dtype}; allowed: {', '.join(map(str, SOURCE_DTYPES))}")
    if values.device.type != "cpu":
        raise ValueError(
            f"the values are on {values.device}, these kernels run on the CPU; move them, or use bitsandbytes"
        )
    if values.dim() != dimensions or not values.is_contiguous():
        raise ValueError(
            f"expected {dimensions} contiguous dimensions, got shape {list(values.shape)} with strides "
            f"{list(values.stride())}; call .contiguous() and .reshape() first"
        )


def bits_of(values: Tensor) -> Bits:
    """The memory of a tensor as integers of its size."""
    bits: Bits = values.detach().view(torch.int32 if values.dtype == torch.float32 else torch.int16).numpy()
    return bits


def to_float32(bits: Bits, dtype: torch.dtype, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """The finite values of bit patterns of a dtype, flat: in `out`, or for float32 the patterns' own memory."""
    if dtype == torch.float32:
        return bits.view(np.float32)
    if dtype == torch.bfloat16:
        # A bfloat16 is the upper half of a float32.
        words = out.view(np.uint32)
        np.copyto(words, bits.view(np.uint16))
        np.left_shift(words, 16, out=words)
        return out
    # Sign, exponent and fraction where float32 has them; but its exponent counts from -126, that of float16 from -14.
    signed = out.view(np.int32)
    np.copyto(signed, bits)
    np.left_shift(signed, 13, out=signed)
    np.bitwise_and(signed, ~0x70001FFF, out=signed)
    np.multiply(out, np.float32(2.0**112), out=out)
    return out


def through_float16(bits: Bits, dtype: torch.dtype, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values of bit patterns of a dtype, flat, rounded to float16: in `out`.

    What is too large for float16 is rounded to as many bits, and stays finite.
    """
    values = to_float32(bits, dtype, out)
    # A number is rounded to the steps of float32 around another, when that is added and subtracted again.
    if dtype == torch.bfloat16:
        # Its 8 significant bits fit float16's 11. Rounded is only what lies between the subnormal numbers of float16:
        # multiples of 2^-24, the steps around 0.75. To larger values 0.75 is added exactly.
        np.add(values, np.float32(0.75), out=out)
        np.subtract(out, np.float32(0.75), out=out)
    elif dtype == torch.float32:
        # From 2^e on, float16 has steps of 2^(e-10), like float32 around 1.5 * 2^(e+13); e is at least -14.
        large = scratch("large", values.shape, np.float32)
        np.bitwise_and(values.view(np.int32), 0x7F800000, out=large.view(np.int32))
        np.maximum(large, np.float32(2.0**-14), out=large)
        np.multiply(large, np.float32(1.5 * 2**13), out=large)
        np.add(values, large, out=out)
        np.subtract(out, large, out=out)
    return out


def magnitude_maxima(rows: Bits, dtype: torch.dtype) -> NDArray[np.float32]:
    """The largest magnitude in each row [k, n], as float32; not finite if anything in the row is not.

    Without the sign bit, the bit patterns of floats are ordered as integers, infinity and NaN on top. So this finds on
    the way what is not finite, and is several times as fast as the maximum of absolute values.
    """
    maxima = _pattern_maxima(rows)
    if dtype == torch.float16:
        # Few enough for numpy's conversion, which knows infinity and NaN.
        return maxima.view(np.float16).astype(np.float32)
    return to_float32(maxima, dtype, np.empty(len(maxima), np.float32))


def _pattern_maxima(rows: Bits) -> Bits:
    count, columns = rows.shape
    lanes = 8 // rows.itemsize
    magnitude = np.iinfo(rows.dtype).max
    if columns >= SHORT_ROW or columns % lanes:
        magnitudes = scratch("magnitudes", rows.shape, rows.dtype.type)
        np.bitwise_and(rows, magnitude, out=magnitudes)
        maxima: Bits = np.maximum.reduce(magnitudes, axis=1)
        return maxima
    # Turned by words of 8 bytes, so that one long reduction serves all rows; then the lanes of a word are left.
    words = scratch("magnitudes", (columns // lanes, count), np.int64)
    np.copyto(words, rows.view(np.int64).T)
    magnitudes = words.view(rows.dtype)
    np.bitwise_and(magnitudes, magnitude, out=magnitudes)
    maxima = np.maximum.reduce(magnitudes, axis=0)
    while len(maxima) > count:
        maxima = np.maximum(maxima[::2], maxima[1::2])
    return maxima
