"""The largest magnitudes of rows and blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stock_kernels import DTYPES, same_bits
from torch import Tensor

from rulequant.torch.arrays.maxima import GROUP, BlockMaxima, magnitude_maxima
from rulequant.torch.kernels.sources import bits_of, float_name


def block_maxima(blocks: Tensor) -> Tensor:
    """Of blocks [count, blocksize]: F32 [count]."""
    bits = bits_of(blocks).reshape(-1)
    finder = BlockMaxima(np.empty_like(bits), np.empty_like(bits), float_name(blocks.dtype), blocks.shape[1])
    maxima = np.empty(len(blocks), np.float32)
    for _ in range(2):
        finder.find(bits, maxima)
    return torch.from_numpy(maxima)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_maxima_of_one_sign(dtype: torch.dtype, sign: int) -> None:
    """No row needs a value of the other sign."""
    rows = (torch.rand(20, 300, generator=torch.Generator().manual_seed(6)) * sign).to(dtype)
    assert same_bits(
        torch.from_numpy(magnitude_maxima(bits_of(rows), float_name(dtype))), rows.abs().amax(dim=1).float()
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 3, 32, 64, 100, 128, 256, 300, 4096])
def test_maxima_of_rows(dtype: torch.dtype, columns: int) -> None:
    """Short rows, long rows, and rows that are no whole number of words."""
    rows = torch.randn(37, columns, generator=torch.Generator().manual_seed(columns)).to(dtype)
    rows[3] = 0
    rows[4] = -0.0
    maxima = torch.from_numpy(magnitude_maxima(bits_of(rows), float_name(dtype)))
    assert same_bits(maxima, rows.abs().amax(dim=1).float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [64, 1024])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_the_largest(dtype: torch.dtype, columns: int, value: float) -> None:
    """Wherever it is, and with whichever sign."""
    rows = torch.ones(columns, columns, dtype=dtype)
    rows.fill_diagonal_(value)
    assert not np.isfinite(magnitude_maxima(bits_of(rows), float_name(dtype))).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("blocksize", [32, 64, 128, 4096])
@pytest.mark.parametrize("count", [1, 3, GROUP, GROUP * 3, GROUP + 1])
def test_maxima_of_blocks(dtype: torch.dtype, blocksize: int, count: int) -> None:
    """One block, whole groups, and a number that is none; nothing of one call is left for the next."""
    blocks = torch.randn(count, blocksize, generator=torch.Generator().manual_seed(count)).to(dtype)
    blocks[count // 2] = -0.0
    assert same_bits(block_maxima(blocks), blocks.abs().amax(dim=1).float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("blocksize", [32, 64, 256])
@pytest.mark.parametrize("value", [-2.0, float("nan"), float("inf"), float("-inf")])
def test_the_largest_at_each_place_of_a_block(dtype: torch.dtype, blocksize: int, value: float) -> None:
    """It counts for its own block only."""
    blocks = torch.ones(2 * blocksize, blocksize, dtype=dtype)
    blocks[::2].fill_diagonal_(value)
    maxima = block_maxima(blocks)
    assert (maxima[1::2] == 1).all()
    assert (maxima[::2] == 2).all() if value == -2 else not maxima[::2].isfinite().any()
