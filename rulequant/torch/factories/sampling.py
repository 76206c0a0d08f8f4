"""How far encoded values are from those that were encoded, on a few blocks or rows spread over a weight.

It is measured while a weight is encoded, when both are at hand, and on so few values that it takes no time to speak of.
The rounding of the scales by double quantization, which comes later, is not in it; it adds next to nothing.
"""

from __future__ import annotations

from functools import cache
from math import ceil

import numpy as np
from numpy.typing import NDArray

from rulequant.torch.arrays import Bits, Float, quant_values
from rulequant.torch.arrays.floats import to_float32
from rulequant.verification import Sample

__all__ = ["SAMPLED_VALUES", "sample_4bit", "sample_int8"]

SAMPLED_VALUES = 1 << 16
"""The most values of a weight that are looked at, but for one block or row of each slice."""
_ONE_OF = 256
"""Of so many values one is looked at, which takes about as long as encoding two (`sample_4bit` beside the kernels)."""
_AT_LEAST = 1 << 12


def sample_4bit(
    values: Bits,
    dtype: Float,
    packed: NDArray[np.uint8],
    absmax: NDArray[np.float32],
    *,
    quant_type: str,
    blocksize: int,
    numel: int,
) -> Sample:
    """Of a slice [n] of a weight with `numel` values of `dtype`: its packed bytes and absmax, block by block."""
    blocks = len(values) // blocksize
    if not blocks:
        return Sample()
    chosen = _spread(blocks, _count(len(values), blocksize, numel))
    pairs = packed[: blocks * blocksize // 2].reshape(blocks, -1)[chosen]
    decoded = _pair_values(quant_type)[pairs].reshape(len(pairs), blocksize)
    return _sample(values[: blocks * blocksize].reshape(blocks, -1)[chosen], dtype, decoded, absmax[:blocks][chosen])


def sample_int8(
    rows: Bits, dtype: Float, quantized: NDArray[np.int8], scales: NDArray[np.float32], *, numel: int
) -> Sample:
    """Of some rows [rows, columns] of a weight with `numel` values of `dtype`: I8 values, and the scales of rows."""
    chosen = _spread(len(rows), _count(rows.size, rows.shape[1], numel))
    codes = quantized[chosen].astype(np.float32)
    return _sample(rows[chosen], dtype, codes, scales[chosen] / np.float32(127)) if codes.size else Sample()


def _count(values: int, unit: int, numel: int) -> int:
    """How many blocks or rows of a slice: its share of what is looked at of the whole weight."""
    wanted = min(SAMPLED_VALUES, max(_AT_LEAST, numel // _ONE_OF))
    return ceil(wanted * values / max(numel, 1) / unit)


def _spread(units: int, count: int) -> slice:
    """At most so many of the numbers below `units`, from the first on at equal distances."""
    return slice(0, units, max(1, ceil(units / max(count, 1))))


def _sample(original: Bits, dtype: Float, codes: NDArray[np.float32], scales: NDArray[np.float32]) -> Sample:
    """Of rows [rows, columns], with what each stands for but for the scale of its row."""
    flat = np.ascontiguousarray(original).reshape(-1)
    wanted = to_float32(flat, dtype, np.empty(flat.shape, np.float32))
    difference = (codes * scales[:, None]).reshape(-1) - wanted
    error, norm = (float(np.square(each, dtype=np.float64).sum()) for each in (difference, wanted))
    return Sample(error, norm, wanted.size)


@cache
def _pair_values(quant_type: str) -> NDArray[np.float32]:
    """The two values of each packed byte, [256, 2]."""
    code, byte = quant_values(quant_type), np.arange(256)
    return np.stack((code[byte >> 4], code[byte & 15]), axis=1)
