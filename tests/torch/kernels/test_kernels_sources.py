"""Which tensors the kernels read in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rulequant.torch.kernels.sources import check_source


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param(torch.zeros(4, dtype=torch.float64), "torch.float64; allowed: torch.bfloat16, torch", id="f64"),
        pytest.param(torch.zeros(4, dtype=torch.int8), "cannot quantize torch.int8", id="int"),
        pytest.param(torch.zeros(4, device="meta"), "on meta, these kernels run on the CPU", id="meta"),
        pytest.param(torch.zeros(2, 2), r"expected 1 contiguous dimensions, got shape \[2, 2\]", id="dimensions"),
        pytest.param(torch.zeros(8)[::2], r"with strides \[2\]; call .contiguous\(\)", id="strides"),
    ],
)
def test_sources_that_cannot_be_read_are_refused(values: Tensor, message: str) -> None:
    """What is wrong, what is allowed, and what to do."""
    with pytest.raises(ValueError, match=message):
        check_source(values, dimensions=1)
