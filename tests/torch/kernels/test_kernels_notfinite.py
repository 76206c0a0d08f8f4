"""Finding what no code stands for."""

from __future__ import annotations

import pytest
import torch

from rulequant.torch.kernels.notfinite import NotFiniteValueError, refuse_not_finite


def test_finite_maxima_are_enough() -> None:
    """The values are not looked at."""
    refuse_not_finite(torch.full((6,), torch.nan), torch.ones(2), 3, through=torch.float32)


def test_the_first_row_decides() -> None:
    """The place counts the rows before it, and the values before them."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, torch.inf, torch.nan, torch.nan])
    with pytest.raises(NotFiniteValueError, match="the value at flat index 104 is inf"):
        refuse_not_finite(values, torch.tensor([3.0, torch.inf, torch.nan]), 3, through=torch.float32, offset=100)


def test_a_value_may_be_finite_and_yet_not_fit() -> None:
    """What float16 makes infinite keeps its own value in the message."""
    with pytest.raises(NotFiniteValueError, match="flat index 1 is 65520") as caught:
        refuse_not_finite(torch.tensor([65519.0, 65520.0]), torch.tensor([torch.inf]), 2, through=torch.float16)
    assert caught.value.value == 65520.0
