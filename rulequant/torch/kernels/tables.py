"""The code tables as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from rulequant.torch.arrays.tables import dynamic_values, quant_values

__all__ = ["dynamic_map", "quant_map"]


def quant_map(quant_type: str) -> Tensor:
    """The value of each code, F32 [16], scaled to a largest magnitude of 1."""
    return torch.from_numpy(quant_values(quant_type))


def dynamic_map() -> Tensor:
    """The 256 values of the signed dynamic 8-bit type, F32, ascending."""
    return torch.from_numpy(dynamic_values().copy())
