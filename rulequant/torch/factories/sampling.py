"""How far encoded values are from those that were encoded, on a few blocks or rows spread over a weight.

It is measured while a weight is encoded, when both are at hand, and on so few values that it takes no time to speak of.
The rounding of the scales by double quantization, which comes later, is not in it; it adds next to nothing.
"""

from __future__ import annotations

from functools import cache
from math import ceil

import torch
from torch import Tensor

from rulequant.torch.kernels.tables import quant_map
from rulequant.verification import Sample

__all__ = ["SAMPLED_VALUES", "sample_4bit", "sample_int8"]

SAMPLED_VALUES = 1 << 16
"""The most values of a weight that are looked at, but for one block or row of each slice."""
_ONE_OF = 256
"""Of so many values one is looked at, which takes about as long as encoding two (`sample_4bit` beside the kernels)."""
_AT_LEAST = 1 << 12


def sample_4bit(
    values: Tensor, packed: Tensor, absmax: Tensor, *, quant_type: str, blocksize: int, numel: int
) -> Sample:
    """Of a slice [n] of a weight with `numel` values: its packed bytes U8 and absmax F32, block by block."""
    blocks = len(values) // blocksize
    chosen = _spread(blocks, _count(len(values), blocksize, numel))
    if not len(chosen):
        return Sample()
    pairs = packed.reshape(-1)[: blocks * blocksize // 2].view(blocks, -1).index_select(0, chosen)
    decoded = _pair_values(quant_type).index_select(0, pairs.reshape(-1).int()).view(len(chosen), blocksize)
    scales = absmax.reshape(-1).index_select(0, chosen)
    return _sample(values[: blocks * blocksize].view(blocks, -1).index_select(0, chosen), decoded, scales)


def sample_int8(rows: Tensor, quantized: Tensor, scales: Tensor, *, numel: int) -> Sample:
    """Of some rows [rows, columns] of a weight with `numel` values: I8 values, and F32 scales of the rows."""
    chosen = _spread(len(rows), _count(rows.numel(), rows.shape[1], numel))
    if not len(chosen):
        return Sample()
    return _sample(
        rows.index_select(0, chosen), quantized.index_select(0, chosen), scales.index_select(0, chosen) / 127
    )


def _count(values: int, unit: int, numel: int) -> int:
    """How many blocks or rows of a slice: its share of what is looked at of the whole weight."""
    wanted = min(SAMPLED_VALUES, max(_AT_LEAST, numel // _ONE_OF))
    return ceil(wanted * values / max(numel, 1) / unit)


def _spread(units: int, count: int) -> Tensor:
    """At most so many of the numbers below `units`, from the first on at equal distances."""
    return torch.arange(0, units, max(1, ceil(units / max(count, 1))))


def _sample(original: Tensor, codes: Tensor, scales: Tensor) -> Sample:
    """Of rows [rows, columns], with what each stands for but for the scale of its row."""
    wanted = original.float()
    difference = codes.float().mul_(scales.unsqueeze(1)).sub_(wanted)
    error, norm = (float(torch.linalg.vector_norm(each, dtype=torch.float64)) ** 2 for each in (difference, wanted))
    return Sample(error, norm, wanted.numel())


@cache
def _pair_values(quant_type: str) -> Tensor:
    """The two values of each packed byte, F32 [256, 2]."""
    code, byte = quant_map(quant_type), torch.arange(256)
    return torch.stack((code[byte >> 4], code[byte & 15]), dim=1)
