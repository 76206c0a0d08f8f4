"""Weights, layers that hold them, and what 4-bit tensors stand for by the definition of the format."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rulequant.schemes import Scheme
from rulequant.torch.factories import factory_for

__all__ = [
    "BLOCKSIZES",
    "built",
    "by_hand",
    "conv1d",
    "differing",
    "linear",
    "relative_error",
    "same_bytes",
    "uneven",
    "weight_of",
]

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def weight_of(shape: tuple[int, int], dtype: torch.dtype = torch.float32, *, seed: int = 0) -> Tensor:
    """Random weights, with a row of another magnitude so that blocks differ."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight[0] *= 20
    return weight.to(dtype)


def uneven(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights whose blocks have very different scales, so that a block with its neighbour's scale is far off."""
    growth = torch.logspace(-2, 2, math.prod(shape)).reshape(shape)
    return (weight_of(shape) * growth).to(dtype)


def linear(weight: Tensor, *, bias: bool = False) -> nn.Linear:
    """A Linear layer in eval mode that holds a weight, [out, in]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias, dtype=weight.dtype).eval()
    layer.weight = nn.Parameter(weight)
    return layer.requires_grad_(False)


def conv1d(weight: Tensor) -> Conv1D:
    """A `Conv1D` in eval mode that holds a weight, [in, out]."""
    layer = Conv1D(weight.shape[1], weight.shape[0]).to(weight.dtype).eval()
    layer.weight = nn.Parameter(weight)
    return layer.requires_grad_(False)


def built(module: Any, scheme: Scheme, kind: Any = "linear") -> tuple[Any, dict[str, Tensor]]:
    """(layer with its encoded weight, the encoded tensors)."""
    factory = factory_for(scheme.method)
    layer = factory.build(module, scheme)
    encoded = factory.encode(module.weight.detach(), kind, scheme)
    factory.attach(layer, encoded)
    return layer, encoded


def by_hand(encoded: dict[str, Tensor]) -> Tensor:
    """The weight [out, in] that 4-bit tensors stand for, without bitsandbytes."""
    record = next(json.loads(bytes(each.tolist())) for name, each in encoded.items() if ".quant_state." in name)
    absmax = encoded["weight.absmax"]
    if "weight.nested_absmax" in encoded:
        outer = encoded["weight.nested_absmax"].repeat_interleave(record["nested_blocksize"])[: absmax.numel()]
        absmax = encoded["weight.nested_quant_map"][absmax.long()] * outer + record["nested_offset"]
    packed = encoded["weight"].contiguous().view(torch.uint8).reshape(-1).long()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[: math.prod(record["shape"])]
    values = encoded["weight.quant_map"][codes] * absmax.repeat_interleave(record["blocksize"])[: codes.numel()]
    return values.reshape(record["shape"]).to(getattr(torch, record["dtype"]))


def same_bytes(left: Tensor, right: Tensor) -> bool:
    """Equal in dtype, shape and every bit; values would not do, since packed bytes may be NaN as bfloat16."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    flat = [each.contiguous().reshape(-1).view(torch.uint8) for each in (left, right)]
    return torch.equal(*flat)


def differing(left: dict[str, Tensor], right: dict[str, Tensor]) -> set[str]:
    """The names that only one of them has, or for which the bytes differ."""
    common = left.keys() & right.keys()
    return (left.keys() ^ right.keys()) | {name for name in common if not same_bytes(left[name], right[name])}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected."""
    return float((actual.float() - expected.float()).norm() / expected.float().norm())
