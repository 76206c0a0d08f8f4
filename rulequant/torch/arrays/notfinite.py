"""What a kernel says when a weight holds a value that no code stands for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rulequant.torch.arrays.floats import Bits, Float, to_float32

__all__ = ["NotFiniteValueError", "refuse_not_finite"]


class NotFiniteValueError(ValueError):
    """The values hold NaN or infinity, or (int8) one beyond float16."""

    def __init__(self, index: int, value: float) -> None:
        super().__init__(f"the value at flat index {index} is {value:g}")
        self.index = index
        """The place of the first such value in the flattened tensor (for an encoder: in all that was fed)."""
        self.value = value


def refuse_not_finite(
    bits: Bits, dtype: Float, maxima: NDArray[np.float32], row: int, *, limit: float = np.inf, offset: int = 0
) -> None:
    """Raise if the largest magnitude of some row is not finite; only the maxima are read, unless one is.

    `bits` are flat, `row` is the length of a row, `limit` what magnitudes have to stay below, `offset` the number of
    values handled before these.

    Raises:
        NotFiniteValueError: with the first such value.
    """
    wrong = ~np.isfinite(maxima)
    if not wrong.any():
        return
    start = int(wrong.argmax()) * row
    suspects = _floats(bits[start : start + row], dtype)
    first = int(np.argmin(np.abs(suspects) < limit))
    raise NotFiniteValueError(offset + start + first, float(suspects[first]))


def _floats(bits: Bits, dtype: Float) -> NDArray[np.float32]:
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    return to_float32(bits, dtype, np.empty(len(bits), np.float32))
