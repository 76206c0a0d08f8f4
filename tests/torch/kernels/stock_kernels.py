"""What bitsandbytes itself makes of a weight on the CPU: the reference of the kernel tests."""

from __future__ import annotations

import torch
from bitsandbytes import functional
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
QUANT_TYPES = ("nf4", "fp4")
BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def stock_4bit(weight: Tensor, quant_type: str, blocksize: int, *, double_quant: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint, the packed codes under the empty name."""
    packed, state = functional.quantize_4bit(
        weight, blocksize=blocksize, compress_statistics=double_quant, quant_type=quant_type
    )
    return {"": packed} | state.as_dict(packed=True)


def stock_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values and row scales."""
    values, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
    return values, scales


def finite_patterns(dtype: torch.dtype) -> Tensor:
    """Every finite value of a 16-bit float dtype, the patterns in ascending order."""
    values = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)
    return values[torch.isfinite(values)]


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Equal in dtype, shape and every bit (so that -0.0 is not 0.0)."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    return torch.equal(ours.reshape(-1).view(torch.uint8), theirs.reshape(-1).view(torch.uint8))
