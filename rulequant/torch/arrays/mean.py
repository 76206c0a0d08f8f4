"""The mean of absmax, bit by bit torch's: its last bits depend on the order of the additions.

torch adds float32 in the order of `cascade_sum` in
https://github.com/pytorch/pytorch/blob/v2.9.0/aten/src/ATen/native/cpu/SumKernel.cpp
with vectors of 8 on every x86-64, AVX-512 or not; from 32,768 values on, each thread adds a part of its own.
"""

from __future__ import annotations

import platform
import sys

import numpy as np
from numpy.typing import NDArray

from rulequant.torch.arrays.notfinite import NotFiniteValueError

__all__ = ["LIKE_TORCH", "mean_absmax"]

LIKE_TORCH = sys.platform == "linux" and platform.machine() in {"x86_64", "AMD64"}
"""Whether torch adds in this order. Elsewhere its vectors or the parts of its threads are others, and it is asked."""

Floats = NDArray[np.float32]

LANES = 8
"""Values that torch adds in one instruction."""

FOUR = 4
"""Vectors that it adds independently."""

LEVELS = 4
"""Sums, and sums of sums: so many deep."""

FOR_A_THREAD = 1 << 15
"""Values below which torch starts no further thread."""


def mean_absmax(absmax: Floats, *, threads: int) -> float:
    """The mean of absmax [blocks], as a float32, as torch takes it with so many threads.

    Raises:
        NotFiniteValueError: the sum of absmax overflows float32; the index is that of the largest.
        ValueError: there is no block.
    """
    if not len(absmax):
        raise ValueError("absmax must be float32 [blocks], got no block")
    with np.errstate(all="ignore"):
        mean = _sum(absmax, threads) / np.float32(len(absmax)) if LIKE_TORCH else _by_torch(absmax, threads)
    if not np.isfinite(mean):
        largest = int(absmax.argmax())
        raise NotFiniteValueError(largest, float(absmax[largest]))
    return float(mean)


def _by_torch(absmax: Floats, threads: int) -> float:
    # The one thing here that may need it.
    import torch

    before = torch.get_num_threads()
    # Threads started meanwhile would notice.
    torch.set_num_threads(threads)
    try:
        return torch.from_numpy(absmax).mean().item()
    finally:
        torch.set_num_threads(before)


def _sum(values: Floats, threads: int) -> np.float32:
    if threads == 1 or len(values) < FOR_A_THREAD:
        return _serial_sum(values)
    part = -(-len(values) // min(threads, -(-len(values) // FOR_A_THREAD)))
    sums = np.zeros(threads, np.float32)
    for thread, at in enumerate(range(0, len(values), part)):
        sums[thread] = _serial_sum(values[at : at + part])
    return _serial_sum(sums)


def _serial_sum(values: Floats) -> np.float32:
    lanes = LANES if len(values) >= LANES else 1
    rows = values[: len(values) // lanes * lanes].reshape(-1, lanes)
    fours = rows[: len(rows) // FOUR * FOUR].reshape(-1, FOUR * lanes)
    first, *others = _cascade(fours).reshape(FOUR, lanes)
    for row in (*rows[len(fours) * FOUR :], *others):
        first = first + row
    total = np.float32(0)
    for value in (*values[rows.size :], *first):
        total = total + value
    return total


def _cascade(rows: Floats) -> Floats:
    """The sum of the rows: first of `step` of them, then of `step` such sums, and so on."""
    bits = (len(rows) - 1).bit_length() if len(rows) > 2 else 1
    step = 1 << max(4, bits // LEVELS)
    levels = []
    for _ in range(LEVELS - 1):
        whole = len(rows) // step * step
        levels.append(_in_order(rows[None, whole:]))
        rows = _in_order(rows[:whole].reshape(-1, step, rows.shape[1]))
    total = levels[0]
    for each in (*levels[1:], _in_order(rows[None])):
        np.add(total, each, out=total)
    return total.reshape(-1)


def _in_order(groups: Floats) -> Floats:
    """The sums [count, n] of the rows of groups [count, rows, n], one after the other."""
    total = np.zeros((groups.shape[0], groups.shape[2]), np.float32)
    for row in range(groups.shape[1]):
        np.add(total, groups[:, row], out=total)
    return total
