"""bfloat16, float16 and float32 as bit patterns: what can be quantized, and its conversion.

torch converts, but importing it takes a second, and it splits every operation on more than 32,768 elements over
threads of its own, which would oversubscribe the machine once several threads run these kernels. numpy never does; but
it has no bfloat16, and converts float16 slowly. So conversions are written out here, in long vectorized steps.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rulequant.torch.arrays.spans import scratch

__all__ = [
    "FLOATS",
    "Bits",
    "Float",
    "missing_factor",
    "through_float16",
    "to_eleven_bits",
    "to_float32",
]

Bits = NDArray[Any]
"""The bit patterns of floats: int16 or int32."""

Float = Literal["BF16", "F16", "F32"]
"""What can be quantized, under the names that safetensors uses. bitsandbytes refuses other dtypes too."""

FLOATS = get_args(Float)


def to_float32(bits: Bits, dtype: Float, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """The finite values of bit patterns of a dtype, flat: in `out`, or for float32 the patterns' own memory."""
    values = _nearly_float32(bits, dtype, out)
    return np.multiply(values, missing_factor(dtype), out=out) if dtype == "F16" else values


def missing_factor(dtype: Float) -> np.float32:
    """What the values of `to_eleven_bits` are too small by."""
    # The exponent of float32 counts from -126, that of float16 from -14.
    return np.float32(2.0**112 if dtype == "F16" else 1)


def _nearly_float32(bits: Bits, dtype: Float, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same, but for the missing factor."""
    if dtype == "F32":
        return bits.view(np.float32)
    if dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        words = out.view(np.uint32)
        np.copyto(words, bits.view(np.uint16))
        np.left_shift(words, 16, out=words)
        return out
    # Sign, exponent and fraction where float32 has them.
    signed = out.view(np.int32)
    np.copyto(signed, bits)
    np.left_shift(signed, 13, out=signed)
    np.bitwise_and(signed, ~0x70001FFF, out=signed)
    return out


def through_float16(bits: Bits, dtype: Float, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values of bit patterns of a dtype, flat, rounded to float16: in `out`.

    What is too large for float16 is rounded to as many bits, and stays finite.
    """
    values = to_float32(bits, dtype, out)
    # A number is rounded to the steps of float32 around another, when that is added and subtracted again.
    if dtype == "BF16":
        # Its 8 significant bits fit float16's 11. Rounded is only what lies between the subnormal numbers of float16:
        # multiples of 2^-24, the steps around 0.75. To larger values 0.75 is added exactly.
        np.add(values, np.float32(0.75), out=out)
        np.subtract(out, np.float32(0.75), out=out)
    elif dtype == "F32":
        # From 2^e on, float16 has steps of 2^(e-10), like float32 around 1.5 * 2^(e+13); e is at least -14.
        large = scratch("large", values.shape, np.float32)
        np.bitwise_and(values.view(np.int32), 0x7F800000, out=large.view(np.int32))
        np.maximum(large, np.float32(2.0**-14), out=large)
        np.multiply(large, np.float32(1.5 * 2**13), out=large)
        np.add(values, large, out=out)
        np.subtract(out, large, out=out)
    return out


def to_eleven_bits(bits: Bits, dtype: Float, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """The finite values of bit patterns, flat, as float16 rounds them, but for what is below 2^-14: that stays below.

    They lack the `missing_factor`, and are in `out`. It takes half the steps of `through_float16`.
    """
    values = _nearly_float32(bits, dtype, out)
    if dtype != "F32":
        return values
    # Veltkamp's splitting of a number of 24 bits: what is left are the upper 11. A test compares all fractions.
    large = scratch("large", values.shape, np.float32)
    np.multiply(values, np.float32(2**13 + 1), out=large)
    np.subtract(large, values, out=out)
    np.subtract(large, out, out=out)
    return out
