"""Double quantization: the absmax of 4-bit blocks in 8 bits, around their mean; what bitsandbytes writes on x86-64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rulequant.torch.kernels.notfinite import NotFiniteValueError
from rulequant.torch.kernels.tables import dynamic_map, nearest_dynamic_codes

__all__ = ["NESTED_BLOCKSIZE", "NestedAbsmax", "mean_absmax", "nested_codes", "quantize_absmax"]

NESTED_BLOCKSIZE = 256
"""Values that share a scale; bitsandbytes has no other."""

BLOCKS_AT_A_TIME = 256
"""As many as fit the cache with what is computed from them."""


@dataclass(frozen=True)
class NestedAbsmax:
    """absmax is about `quant_map[codes] * absmax[block] + offset`."""

    codes: Tensor
    """U8 [blocks]."""
    absmax: Tensor
    """F32 [ceil(blocks/256)]."""
    quant_map: Tensor
    """F32 [256], a copy of the dynamic map."""
    offset: float
    """The mean, a float32."""


def quantize_absmax(absmax: Tensor, *, mean_threads: int | None = None) -> NestedAbsmax:
    """`quantize_blockwise(absmax - absmax.mean(), blocksize=256)` of bitsandbytes' CPU kernel; absmax is F32 [blocks].

    `mean_threads` and the errors are those of `mean_absmax`.
    """
    offset = mean_absmax(absmax, threads=mean_threads)
    codes, scales = nested_codes(absmax, offset)
    return NestedAbsmax(codes, scales, dynamic_map().clone(), offset)


def mean_absmax(absmax: Tensor, *, threads: int | None = None) -> float:
    """The mean of absmax, F32 [blocks], as a float32.

    From 32,768 blocks on, its last bits depend on the number of threads that torch sums with, and now and then a code
    does too. By default that is torch's current number, as in bitsandbytes; `threads` fixes it (by
    `torch.set_num_threads` while the mean is taken, which threads started meanwhile would notice).

    Raises:
        NotFiniteValueError: the sum of absmax overflows float32; the index is that of the largest.
        ValueError: there is no block, or another dtype.
    """
    if absmax.dtype != torch.float32 or absmax.dim() != 1 or not len(absmax):
        raise ValueError(f"absmax must be float32 [blocks], got {absmax.dtype} {list(absmax.shape)}")
    with _torch_threads(threads):
        mean = absmax.mean()
    if not torch.isfinite(mean):
        largest = int(absmax.argmax())
        raise NotFiniteValueError(largest, float(absmax[largest]))
    return mean.item()


def nested_codes(absmax: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Codes U8 [blocks] and their scales F32 [ceil(blocks/256)] of absmax F32 [blocks] around its mean.

    Slices that begin at a multiple of 256 blocks give the same.
    """
    codes, scales = _dynamic_codes(absmax.numpy(), np.float32(offset))
    return torch.from_numpy(codes), torch.from_numpy(scales)


@contextmanager
def _torch_threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if number is None or number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _dynamic_codes(absmax: NDArray[np.float32], offset: np.float32) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes and scales of `absmax - offset`, some blocks at a time, so that little more than the result is held."""
    codes = np.empty(len(absmax), np.uint8)
    scales = np.empty(-(-len(absmax) // NESTED_BLOCKSIZE), np.float32)
    for block in range(0, len(scales), BLOCKS_AT_A_TIME):
        values = slice(block * NESTED_BLOCKSIZE, (block + BLOCKS_AT_A_TIME) * NESTED_BLOCKSIZE)
        _encode_blocks(absmax[values] - offset, codes[values], scales[block : block + BLOCKS_AT_A_TIME])
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
