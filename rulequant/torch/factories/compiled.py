"""bitsandbytes' compiled CPU kernel for 4-bit blocks, called for memory that is there already.

The operation `bitsandbytes::dequantize_4bit` allocates what it returns, and fresh memory of the size of an expert costs
more in page faults than decoding it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import bitsandbytes
import torch
from bitsandbytes import cextension
from torch import Tensor

__all__ = ["CompiledKernel", "compiled_kernel"]

_KNOWN = ("0.49.", "0.50.")
"""Versions that are known to have the kernel with these arguments: a wrong call would write anywhere.

`cdequantize_blockwise_cpu_nf4_bf16` and its siblings in
https://github.com/bitsandbytes-foundation/bitsandbytes/blob/0.50.2/csrc/pythonInterface.cpp
"""
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_FUNCTION = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, *[ctypes.c_longlong] * 3)

CompiledKernel = Callable[[Tensor, Tensor, Tensor, int], None]
"""From packed bytes U8 and absmax F32 of whole blocks into values, all flat and contiguous, given the blocksize."""


@cache
def compiled_kernel(quant_type: str, dtype: torch.dtype) -> CompiledKernel | None:
    """The kernel that decodes to a dtype, if this bitsandbytes has it."""
    if not bitsandbytes.__version__.startswith(_KNOWN) or dtype not in _DTYPES:
        return None
    try:
        found = getattr(cextension.lib, f"cdequantize_blockwise_cpu_{quant_type}_{_DTYPES[dtype]}")
        address = ctypes.cast(found, ctypes.c_void_p).value
    except (AttributeError, ctypes.ArgumentError):  # bitsandbytes found no library, and put something else there
        return None
    return None if address is None else _checked(_FUNCTION(address), dtype)


def _checked(function: Callable[..., None], dtype: torch.dtype) -> CompiledKernel:
    def decode(packed: Tensor, absmax: Tensor, out: Tensor, blocksize: int) -> None:
        blocks = len(absmax)
        fits = 2 * len(packed) == len(out) == blocks * blocksize
        dtypes = (packed.dtype, absmax.dtype, out.dtype) == (torch.uint8, torch.float32, dtype)
        flat = all(each.is_cpu and each.ndim == 1 and each.is_contiguous() for each in (packed, absmax, out))
        if not (fits and dtypes and flat):
            raise ValueError(
                f"the kernel cannot decode {packed.shape} with {absmax.shape} into {out.shape}, {out.dtype}"
            )
        # A row for each block: the kernel is wrong in silence where a row is not whole blocks, and shares out rows
        # among its threads.
        function(packed.data_ptr(), absmax.data_ptr(), out.data_ptr(), blocksize, blocks, blocksize)

    return decode
