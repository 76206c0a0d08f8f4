"""Finding what no code stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rulequant.torch.arrays.notfinite import NotFiniteValueError, refuse_not_finite
from rulequant.torch.kernels.sources import SOURCE_DTYPES, bits_of, float_name


def refuse(values: Tensor, maxima: list[float], row: int, *, limit: float = np.inf, offset: int = 0) -> None:
    """Of a tensor."""
    name = float_name(values.dtype)
    refuse_not_finite(bits_of(values), name, np.array(maxima, np.float32), row, limit=limit, offset=offset)


def test_finite_maxima_are_enough() -> None:
    """The values are not looked at."""
    refuse(torch.full((6,), torch.nan), [1, 1], 3)


@pytest.mark.parametrize("dtype", SOURCE_DTYPES, ids=str)
def test_the_first_row_decides(dtype: torch.dtype) -> None:
    """The place counts the rows before it, and the values before them."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, torch.inf, torch.nan, torch.nan], dtype=dtype)
    with pytest.raises(NotFiniteValueError, match="the value at flat index 104 is inf"):
        refuse(values, [3.0, torch.inf, torch.nan], 3, offset=100)


def test_a_value_may_be_finite_and_yet_not_fit() -> None:
    """What is beyond the limit keeps its own value in the message."""
    with pytest.raises(NotFiniteValueError, match="flat index 1 is -65520") as caught:
        refuse(torch.tensor([65519.0, -65520.0]), [torch.inf], 2, limit=65520)
    assert caught.value.value == -65520.0
