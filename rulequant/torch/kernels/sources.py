"""Tensors as the bit patterns that the kernels read in place."""

from __future__ import annotations

import torch
from torch import Tensor

from rulequant.torch.arrays.floats import Bits, Float

__all__ = ["SOURCE_DTYPES", "bits_of", "check_source", "float_name"]

_NAMES: dict[torch.dtype, Float] = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}

SOURCE_DTYPES = tuple(_NAMES)
"""What can be quantized. bitsandbytes refuses the others too."""


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


def float_name(dtype: torch.dtype) -> Float:
    """The name of a source dtype in safetensors, and in the kernels."""
    return _NAMES[dtype]
