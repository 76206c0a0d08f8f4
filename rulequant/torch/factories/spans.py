"""A span of an encoded weight as an encoded weight of its own, so that a large one is decoded piece by piece."""

from __future__ import annotations

import json
from collections.abc import Collection
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor

from rulequant.torch.kernels.record import quant_state_record

__all__ = ["EncodedParts", "nested_scales", "span_4bit", "span_int8"]


class EncodedParts(Protocol):
    """The encoded tensors of one weight, of which any part can be had without the rest."""

    @property
    def names(self) -> Collection[str]:
        """As the factory names them."""

    def part(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The elements [start, stop) of a tensor, flat."""


def span_4bit(parts: EncodedParts, start: int, stop: int) -> dict[str, Tensor]:
    """The values [start, stop) of a 4-bit weight, from a block's first on, as a weight of one row.

    Its scales are plain float32: the second level of double quantization is undone.
    """
    name = next(each for each in parts.names if ".quant_state." in each)
    settings: dict[str, Any] = json.loads(bytes(parts.part(name).tolist()))
    blocksize = settings["blocksize"]
    first, last = start // blocksize, ceil(stop / blocksize)
    scales = parts.part("weight.absmax", first, last)
    if "nested_blocksize" in settings:
        scales = nested_scales(
            scales,
            first,
            quant_map=parts.part("weight.nested_quant_map"),
            absmax=parts.part("weight.nested_absmax"),
            blocksize=settings["nested_blocksize"],
            offset=settings["nested_offset"],
        )
    record = quant_state_record(
        quant_type=settings["quant_type"],
        blocksize=blocksize,
        dtype=getattr(torch, settings["dtype"]),
        shape=(1, stop - start),
        offset=None,
    )
    return {
        "weight": _packed(parts, start, stop),
        "weight.absmax": scales,
        "weight.quant_map": parts.part("weight.quant_map"),
        name: record,
    }


def span_int8(parts: EncodedParts, start: int, stop: int, columns: int) -> dict[str, Tensor]:
    """The rows of the values [start, stop) of an int8 weight with so many columns."""
    rows = slice(start // columns, stop // columns)
    return {
        "weight": parts.part("weight", start, stop).reshape(-1, columns),
        "SCB": parts.part("SCB", rows.start, rows.stop),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def nested_scales(
    codes: Tensor, first: int, *, quant_map: Tensor, absmax: Tensor, blocksize: int, offset: float | Tensor
) -> Tensor:
    """The float32 scales of the blocks from `first` on, from their 8-bit codes and the second level's scales."""
    blocks = torch.arange(first, first + codes.numel(), device=codes.device) // blocksize
    return quant_map.index_select(0, codes.int()) * absmax.index_select(0, blocks) + offset


def _packed(parts: EncodedParts, start: int, stop: int) -> Tensor:
    """U8 [ceil(n/2), 1], whatever dtype the bytes are stored as."""
    size = parts.part("weight", 0, 1).element_size()
    stored = parts.part("weight", start // (2 * size), ceil(stop / (2 * size)))
    return stored.contiguous().view(torch.uint8).reshape(-1, 1)
