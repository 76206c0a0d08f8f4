"""Double quantization: the absmax of 4-bit blocks in 8 bits, around their mean; what bitsandbytes writes on x86-64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rulequant.torch import arrays
from rulequant.torch.kernels.tables import dynamic_map

__all__ = ["NestedAbsmax", "mean_absmax", "nested_codes", "quantize_absmax"]


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
    return NestedAbsmax(codes, scales, dynamic_map(), offset)


def mean_absmax(absmax: Tensor, *, threads: int | None = None) -> float:
    """The mean of absmax, F32 [blocks], as a float32.

    From 32,768 blocks on, its last bits depend on the number of threads that torch sums with, and now and then a code
    does too. By default that is torch's current number, as in bitsandbytes; `threads` is another. (Where the order of
    torch's sum is not known, by `torch.set_num_threads` while the mean is taken, which threads started meanwhile would
    notice.)

    Raises:
        NotFiniteValueError: the sum of absmax overflows float32; the index is that of the largest.
        ValueError: there is no block, or another dtype.
    """
    if absmax.dtype != torch.float32 or absmax.dim() != 1 or not len(absmax):
        raise ValueError(f"absmax must be float32 [blocks], got {absmax.dtype} {list(absmax.shape)}")
    return arrays.mean_absmax(absmax.numpy(), threads=threads or torch.get_num_threads())


def nested_codes(absmax: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Codes U8 [blocks] and their scales F32 [ceil(blocks/256)] of absmax F32 [blocks] around its mean.

    Slices that begin at a multiple of 256 blocks give the same.
    """
    codes, scales = arrays.nested_codes(absmax.numpy(), offset)
    return torch.from_numpy(codes), torch.from_numpy(scales)
