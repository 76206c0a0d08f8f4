"""int8 is bit by bit what bitsandbytes writes."""

from __future__ import annotations

import pytest
import torch
from stock_kernels import DTYPES, finite_patterns, same_bits, stock_int8
from torch import Tensor

from rulequant.torch.arrays.int8 import CHUNK
from rulequant.torch.kernels import NotFiniteValueError, quantize_int8

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def assert_stock(weight: Tensor, *, threads: int = 1) -> None:
    """The values and scales of a weight are bitsandbytes' own."""
    values, scales = quantize_int8(weight, threads=threads)
    stock_values, stock_scales = stock_int8(weight)
    assert same_bits(scales, stock_scales)
    assert same_bits(values, stock_values)


@each_dtype
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1000, 1000), id="rows in chunks"),
        pytest.param((1, 1), id="one value"),
        pytest.param((70_000, 3), id="narrow rows"),
        pytest.param((3, CHUNK), id="a row a chunk"),
        pytest.param((3, CHUNK + 1), id="wider than a chunk"),
    ],
)
def test_random_weights(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Normal values, in rows of every width."""
    assert_stock(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("absmax", [1.0, 127.0, 0.0123, 254.0, 65504.0, 6.2e-5, 3e-7, 6e-8])
def test_all_patterns_under_one_absmax(dtype: torch.dtype, absmax: float) -> None:
    """Every 16-bit value up to a given absmax, in rows that all begin with it."""
    largest = torch.tensor(absmax, dtype=torch.float32).to(dtype)
    if not torch.isfinite(largest.to(torch.float16)):
        largest = torch.tensor(65280.0, dtype=dtype)
    values = finite_patterns(dtype)
    values = values[values.abs() <= largest]
    values = values[: len(values) // 63 * 63] if len(values) > 63 else values.repeat(63)
    weight = torch.cat([largest.expand(len(values) // 63, 1), values.view(-1, 63)], dim=1).contiguous()
    assert_stock(weight)


@each_dtype
def test_halves_round_to_even(dtype: torch.dtype) -> None:
    """Every k + 1/2 under an absmax that is a multiple of 127, and its neighbours."""
    halves = torch.arange(-127, 127) + 0.5
    offsets = torch.tensor([-1e-5, 0.0, 1e-5])
    rows = torch.cat([torch.full((3, 1), 127.0), halves.expand(3, -1) * (1 + offsets.unsqueeze(1))], dim=1)
    assert_stock(torch.cat([rows, rows * 2, rows / 4]).to(dtype))


@each_dtype
@pytest.mark.parametrize("absmax", [2.0**-6, 2.0**-6 * (1 - 2.0**-8)], ids=["coarse", "fine"])
def test_both_sides_of_where_subnormal_halves_count(dtype: torch.dtype, absmax: float) -> None:
    """Every float16 below 2^-13, its ties and neighbours, in rows that end with the absmax; then the largest rows."""
    numbers = torch.arange(0, 0x801, dtype=torch.int16).view(torch.float16).float()
    ties = (numbers[:-1] + numbers[1:]) / 2
    values = torch.cat([numbers, ties, ties * (1 + 2.0**-23), ties * (1 - 2.0**-23)])
    values = torch.cat([values, -values, torch.tensor([absmax])])
    assert_stock(torch.stack([values, -values]).to(dtype))
    assert_stock(torch.stack([values, values * 0, values * 2.0**20]).to(dtype))


@each_dtype
def test_zeros_and_small_values(dtype: torch.dtype) -> None:
    """Rows of zeros, of what float16 rounds to zero, and of its subnormal values."""
    row = torch.linspace(-1, 1, 300)
    assert_stock(torch.stack([row * 0, row * 1e-9, row * 6e-8, row * 1e-6, row * 6e-5, row]).to(dtype))


def test_float32_that_rounds_down_to_the_largest_half() -> None:
    """65,519 is within float16's reach, though its largest value is 65,504."""
    weight = torch.tensor([[65519.0, 1.0], [-65505.0, 3.0]])
    assert_stock(weight)
    assert quantize_int8(weight)[1].tolist() == [65504.0, 65504.0]


@each_dtype
@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("shape", [(3000, 600), (40, 40_000)], ids=["narrow", "wide"])
def test_threads_change_nothing(dtype: torch.dtype, threads: int, shape: tuple[int, int]) -> None:
    """Several spans."""
    assert_stock(torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype), threads=threads)


def test_rows_into_a_buffer() -> None:
    """Slices of rows give the same bytes, where the caller wants them."""
    weight = torch.nn.Parameter(torch.randn(50, 64))
    values, scales = quantize_int8(weight)
    out = torch.empty(50, 64, dtype=torch.int8)
    parts = [quantize_int8(weight[at : at + 20], out=out[at : at + 20])[1] for at in (0, 20, 40)]
    assert same_bits(out, values)
    assert same_bits(torch.cat(parts), scales)


def test_no_values() -> None:
    """An empty weight, or empty rows, whose scale is zero."""
    assert [list(each.shape) for each in quantize_int8(torch.zeros(0, 8))] == [[0, 8], [0]]
    assert quantize_int8(torch.zeros(2, 0))[1].tolist() == [0.0, 0.0]


@each_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 66000.0])
@pytest.mark.parametrize(("shape", "index"), [((30, 40), 0), ((30, 40), 777), ((3, 40_000), 119_998)])
def test_what_does_not_fit_is_found(dtype: torch.dtype, value: float, shape: tuple[int, int], index: int) -> None:
    """NaN, infinity, and what float16 would make infinite, by its own value: the first of two."""
    weight = torch.ones(shape, dtype=dtype)
    weight.view(-1)[[index, -1]] = torch.tensor(value).to(dtype)
    stored = float(weight.view(-1)[index])
    with pytest.raises(NotFiniteValueError, match=f"flat index {index} is") as caught:
        quantize_int8(weight, threads=2)
    assert (caught.value.index, str(caught.value.value)) == (index, str(stored))


@pytest.mark.parametrize(
    ("weight", "out", "message"),
    [
        pytest.param(torch.zeros(8), None, r"expected 2 contiguous dimensions, got shape \[8\]", id="dimensions"),
        pytest.param(torch.zeros(8, 4).T, None, r"with strides \[1, 4\]", id="transposed"),
        pytest.param(torch.zeros(2, 4), torch.zeros(2, 4), r"out must be contiguous int8 \[2, 4\]", id="out"),
    ],
)
def test_arguments_that_do_not_fit(weight: Tensor, out: Tensor | None, message: str) -> None:
    """Each is named, with what is allowed."""
    with pytest.raises(ValueError, match=message):
        quantize_int8(weight, out=out)
