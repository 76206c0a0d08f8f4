"""Floats as bit patterns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stock_kernels import DTYPES, finite_patterns, same_bits
from torch import Tensor

from rulequant.torch.arrays.floats import (
    magnitude_maxima,
    missing_factor,
    through_float16,
    to_eleven_bits,
    to_float32,
    turned,
    turned_maxima,
)
from rulequant.torch.kernels.sources import bits_of, float_name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_pattern_as_float32(dtype: torch.dtype) -> None:
    """All finite values, subnormal numbers and both zeros too."""
    values = finite_patterns(dtype)
    floats = torch.from_numpy(to_float32(bits_of(values), float_name(dtype), np.empty(len(values), np.float32)))
    assert same_bits(floats, values.float())


def test_float32_is_not_copied() -> None:
    """Its patterns are read in place."""
    values = torch.randn(100)
    floats = to_float32(bits_of(values), float_name(torch.float32), np.empty(100, np.float32))
    assert floats.ctypes.data == values.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_pattern_rounded_to_float16(dtype: torch.dtype) -> None:
    """All that float16 can hold."""
    values = finite_patterns(dtype)
    assert_rounds(values[values.float().abs() <= 65504])


def test_float32_rounded_to_float16() -> None:
    """Every number of float16, every tie between two, their neighbours, and numbers of all exponents and fractions."""
    numbers = finite_patterns(torch.float16).float()
    ties = (numbers[:-1] + numbers[1:]) / 2
    around = [each.nextafter(torch.tensor(end)) for each in (numbers, ties) for end in (-1e5, 1e5)]
    patterns = torch.arange(0, 0x47000000, 1009, dtype=torch.int32).view(torch.float32)
    assert_rounds(torch.cat([numbers, ties, *around, patterns, -patterns]))


def assert_rounds(values: Tensor) -> None:
    """The values are rounded as torch rounds them (but for the sign of zero, which int8 has not)."""
    rounded = through_float16(bits_of(values), float_name(values.dtype), np.empty(len(values), np.float32))
    assert torch.equal(torch.from_numpy(rounded), values.to(torch.float16).float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eleven_bits_are_those_of_float16(dtype: torch.dtype) -> None:
    """From 2^-14 on: every value of 16 bits, every fraction of float32. Below, no value rises above 2^-14."""
    if dtype == torch.float32:
        fractions = torch.arange(1 << 23, dtype=torch.int32)
        values = torch.cat([(fractions + (exponent << 23)).view(dtype) for exponent in (112, 113, 128, 141)])
        values = torch.cat([values, -values[::5]])
    else:
        values = finite_patterns(dtype)
    values = values[values.float().abs() < 65520]
    rounded = to_eleven_bits(bits_of(values), float_name(dtype), np.empty(len(values), np.float32)) * missing_factor(
        float_name(dtype)
    )
    found, expected = torch.from_numpy(rounded), values.to(torch.float16).float()
    large = values.float().abs() >= 2.0**-14
    assert torch.equal(found[large], expected[large])
    assert found[~large].abs().max() <= 2.0**-14


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_turned_rows(dtype: torch.dtype) -> None:
    """Fours of each row of a group, bit by bit, and the largest of each row."""
    rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(5)).to(dtype)
    bits = bits_of(rows)
    columns = turned(bits, 3)
    assert columns.shape == (2, 2, 12)
    for row, group, place in [(0, 0, 0), (2, 0, 2), (4, 1, 1)]:
        assert (columns[group, 1, place * 4 : place * 4 + 4] == bits[row, 4:]).all()
    assert same_bits(torch.from_numpy(turned_maxima(columns, float_name(dtype))), rows.abs().amax(dim=1).float())


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
