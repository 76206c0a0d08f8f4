"""bfloat16, float16 and float32 as bit patterns: what can be quantized, its conversion, the largest magnitude of a row.

torch splits every larger operation over threads of its own, which would oversubscribe the machine once several threads
run these kernels; numpy never does, but has no bfloat16 and converts float16 slowly. Hence the integer arithmetic.
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

TORCH_SERIAL = 1 << 15
"""The most elements for which torch starts no threads (`at::internal::GRAIN_SIZE`)."""

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
    """The values of bit patterns of a dtype, flat: in `out`, or for float32 the patterns' own memory."""
    if dtype == torch.float32:
        return bits.view(np.float32)
    if dtype == torch.bfloat16:
        # A bfloat16 is the upper half of a float32.
        words = out.view(np.uint32)
        np.copyto(words, bits.view(np.uint16))
        np.left_shift(words, 16, out=words)
        return out
    _convert(torch.from_numpy(bits.view(np.float16)), torch.from_numpy(out))
    return out


def through_float16(bits: Bits, dtype: torch.dtype, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values of bit patterns of a dtype, flat, rounded to float16: in `out`.

    What is too large for float16 becomes infinite from float32, and stays what it is from bfloat16.
    """
    values = to_float32(bits, dtype, out)
    if dtype == torch.bfloat16:
        # Its 8 significant bits fit float16's 11; only what lies between float16's subnormal numbers, the multiples of
        # 2^-24, is rounded. Those are the steps of float32 around 0.75, to which larger values can be added exactly.
        np.add(values, np.float32(0.75), out=out)
        np.subtract(out, np.float32(0.75), out=out)
    elif dtype == torch.float32:
        halves = torch.from_numpy(scratch("halves", bits.shape, np.float16))
        _convert(torch.from_numpy(values), halves)
        _convert(halves, torch.from_numpy(out))
    return out


def _convert(source: Tensor, target: Tensor) -> None:
    """Copy flat tensors of different dtypes, in parts for which torch starts no threads."""
    for each, to in zip(torch.split(source, TORCH_SERIAL), torch.split(target, TORCH_SERIAL), strict=True):
        to.copy_(each)


def magnitude_maxima(rows: Bits) -> Bits:
    """The pattern of the largest magnitude in each row [k, n]; that of infinity or NaN if one is in the row.

    Without the sign bit, the bit patterns of floats are ordered as integers, infinity and NaN on top. So this finds on
    the way what is not finite, and is several times as fast as the maximum of absolute values.
    """
    count, columns = rows.shape
    lanes = 8 // rows.itemsize
    sign = np.iinfo(rows.dtype).max
    if columns >= SHORT_ROW or columns % lanes:
        magnitudes = scratch("magnitudes", rows.shape, rows.dtype.type)
        np.bitwise_and(rows, sign, out=magnitudes)
        maxima: Bits = np.maximum.reduce(magnitudes, axis=1)
        return maxima
    # Turned by words of 8 bytes, so that one long reduction serves all rows; then the lanes of a word are left.
    words = scratch("magnitudes", (columns // lanes, count), np.int64)
    np.copyto(words, rows.view(np.int64).T)
    magnitudes = words.view(rows.dtype)
    np.bitwise_and(magnitudes, sign, out=magnitudes)
    maxima = np.maximum.reduce(magnitudes, axis=0)
    while len(maxima) > count:
        maxima = np.maximum(maxima[::2], maxima[1::2])
    return maxima
