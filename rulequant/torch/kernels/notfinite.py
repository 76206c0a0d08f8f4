"""What a kernel says when a weight holds a value that no code stands for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["NotFiniteValueError", "refuse_not_finite"]


class NotFiniteValueError(ValueError):
    """The values hold NaN or infinity, or (int8) one beyond float16."""

    def __init__(self, index: int, value: float) -> None:
        super().__init__(f"the value at flat index {index} is {value:g}")
        self.index = index
        """The place of the first such value in the flattened tensor (for an encoder: in all that was fed)."""
        self.value = value


def refuse_not_finite(values: Tensor, maxima: Tensor, row: int, *, through: torch.dtype, offset: int = 0) -> None:
    """Raise if the largest magnitude of some row is not finite; only the maxima (float32) are read, unless one is.

    `values` is flat, `row` the length of a row, `through` the dtype that the values must fit, `offset` the number of
    values handled before these.

    Raises:
        NotFiniteValueError: with the first such value.
    """
    # By numpy, because torch would start threads of its own where there are many rows.
    wrong = ~np.isfinite(maxima.numpy())
    if not wrong.any():
        return
    start = int(wrong.argmax()) * row
    suspects = values[start : start + row]
    first = int(torch.isfinite(suspects.to(through)).logical_not().nonzero()[0])
    raise NotFiniteValueError(offset + start + first, float(suspects[first]))
