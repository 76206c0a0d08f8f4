"""The code tables of bitsandbytes and what follows from them: decision points, the order of codes, packed codes.

They are generated here, because importing bitsandbytes takes seconds; tests compare them with its own, bit by bit.
Source: `get_4bit_type` and `create_dynamic_map` in
https://github.com/bitsandbytes-foundation/bitsandbytes/blob/0.50.2/bitsandbytes/functional.py
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CODES",
    "QUANT_TYPES",
    "FourBitTable",
    "dynamic_values",
    "four_bit_table",
    "nearest_dynamic_codes",
    "quant_values",
]

CODES = 16
"""Codes of a 4-bit type."""

# Quantiles of the standard normal distribution (https://arxiv.org/abs/2305.14314, appendix E), rounded to float32.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
# Two bits of exponent and one of mantissa, times 12. The fourth bit is the sign, so zero has two codes.
_FP4_MAGNITUDES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
# Subtracted and not negated: the second zero is 0.0 in bitsandbytes' table, not -0.0.
_VALUES = {"fp4": (*_FP4_MAGNITUDES, *(0.0 - each for each in _FP4_MAGNITUDES)), "nf4": _NF4}

QUANT_TYPES = tuple(sorted(_VALUES))
"""The 4-bit types there are."""


@dataclass(frozen=True)
class FourBitTable:
    """What encoding to a 4-bit type needs. The rank of a value is the number of midpoints below it, 0 to 15."""

    midpoints: NDArray[np.float32]
    """[15, 1]: between neighbouring values, ascending. A value that equals one gets the lower rank."""

    codes: NDArray[np.uint8]
    """[16]: the code of each rank."""

    fours: NDArray[np.uint16] | None
    """[65536]: the two bytes of four codes, at the two bytes of their ranks; None where ranks are codes."""


def quant_values(quant_type: str) -> NDArray[np.float32]:
    """The value of each code [16], scaled to a largest magnitude of 1."""
    values = np.array(_VALUES[quant_type], np.float32)
    values /= np.abs(values).max()
    return values


@cache
def four_bit_table(quant_type: str) -> FourBitTable:
    """The midpoints and the codes in their order.

    fp4 has two zeros, code 0 and code 8. The midpoint between them is 0, so that (-0.0026, 0] gets code 0 and
    (0, 0.0026] gets code 8: odd, but what bitsandbytes writes, and both dequantize to zero.
    """
    values = quant_values(quant_type)
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    midpoints = (ascending[:-1] + ascending[1:]) / np.float32(2)
    codes = order.astype(np.uint8)
    in_order = bool((codes == np.arange(CODES)).all())
    return FourBitTable(midpoints[:, None], codes, None if in_order else _packed_fours(codes))


def _packed_fours(codes: NDArray[np.uint8]) -> NDArray[np.uint16]:
    pairs = (codes[:, None] * CODES + codes).reshape(-1).astype(np.uint16)
    return (pairs[:, None] * 256 + pairs).reshape(-1)


@cache
def dynamic_values() -> NDArray[np.float32]:
    """The 256 values of the signed dynamic 8-bit type, ascending (https://arxiv.org/abs/1511.04561).

    For each decade from 1e-6 to 1 twice as many fractions as for the one before, both signs, then 0 and 1.
    """
    values = [np.float32(0), np.float32(1)]
    for power in range(7):
        bounds = _evenly(np.float32(0.1), 2**power + 1)
        fractions = (bounds[:-1] + bounds[1:]) / np.float32(2)
        scale = np.float32(10.0 ** (power - 6))
        values += [*(scale * fractions), *(-scale * fractions)]
    return np.sort(np.array(values, np.float32))


def _evenly(start: np.float32, count: int) -> NDArray[np.float32]:
    """So many values from a start to 1 as torch.linspace rounds them: once, from the nearer end."""
    step = float((np.float32(1) - start) / np.float32(count - 1))
    places = np.arange(count)
    upward, downward = float(start) + step * places, 1 - step * places[::-1]
    return np.where(places < count // 2, upward, downward).astype(np.float32)


@cache
def nearest_dynamic_codes() -> NDArray[np.uint8]:
    """The dynamic code nearest to each of 65,536 evenly spaced values from -1 to 1.

    bitsandbytes' compiled CPU kernel looks codes up in such a table instead of comparing with the midpoints
    (`build_quantize_lut` in https://github.com/bitsandbytes-foundation/bitsandbytes/blob/0.50.2/csrc/cpu_ops.cpp).
    """
    values = dynamic_values()
    steps = np.arange(65536, dtype=np.float32)
    evenly = np.float32(-1) + (np.float32(2) * steps) / np.float32(65535)
    midpoints = np.float32(0.5) * (values[:-1] + values[1:])
    return np.searchsorted(midpoints, evenly, side="left").astype(np.uint8)
