"""Floats as bit patterns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stock_kernels import DTYPES, finite_patterns, same_bits
from torch import Tensor

from rulequant.torch.arrays.floats import (
    missing_factor,
    through_float16,
    to_eleven_bits,
    to_float32,
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
