"""nf4 and fp4 are bit by bit what bitsandbytes writes."""

from __future__ import annotations

import doctest
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stock_kernels import BLOCKSIZES, DTYPES, QUANT_TYPES, finite_patterns, same_bits, stock_4bit
from torch import Tensor

from rulequant.torch.arrays.tables import four_bit_table
from rulequant.torch.kernels import FourBitEncoder, NotFiniteValueError, fourbit, quantize_4bit

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_type = pytest.mark.parametrize("quant_type", QUANT_TYPES)


def assert_stock(weight: Tensor, quant_type: str, blocksize: int, *, threads: int = 1) -> None:
    """The packed codes and absmax of a weight are bitsandbytes' own."""
    packed, absmax = quantize_4bit(weight, quant_type=quant_type, blocksize=blocksize, threads=threads)
    stock = stock_4bit(weight, quant_type, blocksize)
    assert same_bits(absmax, stock["absmax"])
    assert same_bits(packed, stock[""])


@each_dtype
@each_type
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((64, 4096), id="full blocks"),
        pytest.param((4096, 37), id="full chunks and a rest"),
        pytest.param((13, 5, 77), id="short last block, odd"),
        pytest.param((31,), id="one short block"),
        pytest.param((1,), id="one value"),
        pytest.param((3, 2), id="six values"),
        pytest.param((4096 * 16 + 4095,), id="one value less than full"),
        pytest.param((4096 * 16 + 2,), id="two values more than full"),
    ],
)
def test_random_weights(dtype: torch.dtype, quant_type: str, blocksize: int, shape: tuple[int, ...]) -> None:
    """Normal values, in every shape of the last block."""
    assert_stock(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype), quant_type, blocksize)


@each_type
@pytest.mark.parametrize("divided", [False, True], ids=["full blocks", "short block"])
@pytest.mark.parametrize("absmax", [1.0, 0.7, 1.0000001, 3.3e-5, 448.0, 1.7e-38, 3e-30, 2.5e38])
def test_values_at_and_beside_every_decision_point(quant_type: str, absmax: float, divided: bool) -> None:
    """The 16 floats around each midpoint times absmax: codes change between neighbours, as in bitsandbytes."""
    values = [np.float32(absmax)]
    for midpoint in four_bit_table(quant_type).midpoints[:, 0]:
        value = np.float32(np.float64(midpoint) * np.float64(np.float32(absmax)))
        for _ in range(8):
            value = np.nextafter(value, np.float32(-np.inf))
        for _ in range(17):
            values.append(value)
            value = np.nextafter(value, np.float32(np.inf))
    assert len(values) == 256
    weight = torch.from_numpy(np.array(values, np.float32))
    packed, _ = quantize_4bit(weight, quant_type=quant_type, blocksize=256)
    # The midpoint between fp4's two zeros has only subnormal neighbours, which a scale of 1 can tell apart.
    assert len(packed.unique()) >= 16
    assert_stock(weight, quant_type, 4096 if divided else 256)


@each_type
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_all_patterns_in_order(dtype: torch.dtype, quant_type: str, blocksize: int) -> None:
    """Every finite 16-bit value, among its neighbours."""
    assert_stock(finite_patterns(dtype), quant_type, blocksize)


@each_type
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("absmax", [1.0, 0.0123, 1.9921875, 300.0, 65504.0, 6.2e-5, 1e-7, 3.0e38, 1.2e-38, 9.2e-41])
def test_all_patterns_under_one_absmax(dtype: torch.dtype, quant_type: str, absmax: float) -> None:
    """Every 16-bit value up to a given absmax, in blocks that all begin with it."""
    largest = torch.tensor(absmax).to(dtype)
    if not torch.isfinite(largest):
        largest = torch.tensor(torch.finfo(dtype).max, dtype=dtype)
    values = finite_patterns(dtype)
    values = values[values.abs() <= largest]
    values = values[: len(values) // 63 * 63] if len(values) > 63 else values.repeat(63)
    weight = torch.cat([largest.expand(len(values) // 63, 1), values.view(-1, 63)], dim=1).contiguous()
    assert_stock(weight, quant_type, 64)
    assert_stock(weight.flip(0).contiguous(), quant_type, 64)


@each_dtype
@each_type
@pytest.mark.parametrize("scale", [0.0, 1e-45, 9e-39, 1e-38, 1.1e-38, 1.2e-38, 1e-37, 6e-8, 1e38])
def test_small_and_large_blocks(dtype: torch.dtype, quant_type: str, scale: float) -> None:
    """Zeros (of both signs), subnormal values, absmax under 1e-38 where bitsandbytes clamps, and very large ones."""
    weight = (torch.linspace(-1, 1, 32 * 40 + 7) * scale).to(dtype)
    weight = torch.where(torch.isfinite(weight), weight, torch.zeros((), dtype=dtype))
    weight[5] = -0.0
    weight[64:128] = 0.0
    assert_stock(weight, quant_type, 32)
    assert_stock(weight, quant_type, 4096)


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(min_size=4, max_size=900),
    dtype=st.sampled_from(DTYPES),
    quant_type=st.sampled_from(QUANT_TYPES),
    blocksize=st.sampled_from((32, 64, 128)),
)
def test_any_finite_bytes(data: bytes, dtype: torch.dtype, quant_type: str, blocksize: int) -> None:
    """Whatever the bits, if they are finite."""
    values = torch.frombuffer(bytearray(data[: len(data) // 4 * 4]), dtype=dtype)
    assert_stock(torch.where(torch.isfinite(values), values, torch.ones((), dtype=dtype)), quant_type, blocksize)


@each_dtype
@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(dtype: torch.dtype, threads: int) -> None:
    """Several spans, the last with a short chunk and a short block."""
    weight = torch.randn(2_700_003, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert_stock(weight, "nf4", 64, threads=threads)
    assert_stock(weight, "fp4", 4096, threads=threads)


def test_no_values() -> None:
    """An empty weight has no codes and no blocks."""
    packed, absmax = quantize_4bit(torch.zeros(0, 8), quant_type="nf4", blocksize=64)
    assert (list(packed.shape), list(absmax.shape)) == ([0, 1], [0])


@each_type
@pytest.mark.parametrize("blocksize", [32, 4096])
def test_slices_give_the_bytes_of_the_whole(quant_type: str, blocksize: int) -> None:
    """Fed in slices of several lengths, into buffers of the caller."""
    weight = torch.randn(4096 * 25 + 1001, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    whole, absmax = quantize_4bit(weight, quant_type=quant_type, blocksize=blocksize)
    encoder = FourBitEncoder(quant_type=quant_type, blocksize=blocksize, numel=len(weight))
    result = torch.empty(len(whole), dtype=torch.uint8)
    bounds = [0, 4096, 4096 * 9, 4096 * 10, 4096 * 10, len(weight)]
    for start, stop in itertools.pairwise(bounds):
        out = result[start // 2 : (stop + 1) // 2]
        assert encoder.feed(weight[start:stop], out=out) is out
    assert same_bits(result.unsqueeze(1), whole)
    assert same_bits(encoder.absmax, absmax)


@each_dtype
@each_type
@pytest.mark.parametrize("blocksize", [64, 1024])
def test_memory_may_begin_anywhere(dtype: torch.dtype, quant_type: str, blocksize: int) -> None:
    """The values at the second element of a tensor, the codes at an odd address: words are read across their bounds."""
    weight = torch.randn(4096 * 5 + 71, generator=torch.Generator().manual_seed(7)).to(dtype)[1:]
    out = torch.empty(len(weight) // 2 + 1, dtype=torch.uint8)[1:]
    assert weight.data_ptr() % 8
    assert out.data_ptr() % 2
    packed, absmax = quantize_4bit(weight, quant_type=quant_type, blocksize=blocksize, out=out)
    stock = stock_4bit(weight, quant_type, blocksize)
    assert same_bits(packed, stock[""])
    assert same_bits(absmax, stock["absmax"])


def test_the_source_is_left_alone() -> None:
    """A float32 weight, read in place, that wants a gradient."""
    weight = torch.nn.Parameter(torch.randn(64, 64))
    before = weight.detach().clone()
    packed, absmax = quantize_4bit(weight, quant_type="nf4", blocksize=64)
    assert same_bits(weight.detach(), before)
    assert not packed.requires_grad
    assert not absmax.requires_grad


def test_modes_of_the_caller_do_not_matter() -> None:
    """A thread that begins in inference mode and goes on without; a default device that holds no data."""
    weight = torch.randn(1000)

    def inside_then_outside() -> list[tuple[Tensor, Tensor]]:
        with torch.inference_mode(), torch.device("meta"):
            inside = quantize_4bit(weight, quant_type="fp4", blocksize=64)
        return [inside, quantize_4bit(weight, quant_type="fp4", blocksize=64)]

    expected = quantize_4bit(weight, quant_type="fp4", blocksize=64)
    with ThreadPoolExecutor(1) as fresh:
        for found in fresh.submit(inside_then_outside).result():
            assert all(same_bits(one, two) for one, two in zip(found, expected, strict=True))


@each_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("index", [0, 31, 32, 70_000, 1_100_001, 1_100_006])
def test_what_is_not_finite_is_found(dtype: torch.dtype, value: float, index: int) -> None:
    """The first of two, in a full block, a later chunk or span, and the short last block."""
    weight = torch.ones(1_100_007, dtype=dtype)
    weight[[index, -1]] = value
    with pytest.raises(NotFiniteValueError, match=f"flat index {index} is {value:g}") as caught:
        quantize_4bit(weight.view(3, -1), quant_type="nf4", blocksize=32, threads=2)
    assert caught.value.index == index
    assert str(caught.value.value) == str(value)


def test_what_is_not_finite_is_found_in_a_later_slice() -> None:
    """The index counts what was fed before."""
    encoder = FourBitEncoder(quant_type="fp4", blocksize=64, numel=200)
    encoder.feed(torch.ones(128))
    slice_ = torch.ones(72)
    slice_[70] = float("-inf")
    with pytest.raises(NotFiniteValueError, match="flat index 198 is -inf"):
        encoder.feed(slice_)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"quant_type": "nf5"}, "unknown quant_type 'nf5'; allowed: fp4, nf4", id="quant_type"),
        pytest.param({"blocksize": 48}, "cannot use blocksize 48; allowed: 32, 64", id="blocksize"),
        pytest.param({"threads": 0}, "threads must be at least 1, got 0", id="threads"),
        pytest.param({"out": torch.zeros(3, dtype=torch.uint8)}, r"out must be contiguous uint8 \[32\]", id="out"),
        pytest.param({"out": torch.zeros(32)}, r"got torch.float32 \[32\]", id="out dtype"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, object], message: str) -> None:
    """Each is named, with what is allowed."""
    with pytest.raises(ValueError, match=message):
        quantize_4bit(torch.zeros(64), **{"quant_type": "nf4", "blocksize": 64, **arguments})  # type: ignore[arg-type]


def test_slices_that_do_not_fit() -> None:
    """Too much, a broken block in the middle, and absmax before the end."""
    encoder = FourBitEncoder(quant_type="nf4", blocksize=64, numel=200)
    with pytest.raises(ValueError, match="100 values are no multiple of the blocksize 64, and 200 are left"):
        encoder.feed(torch.zeros(100))
    encoder.feed(torch.zeros(128))
    with pytest.raises(ValueError, match="only 128 of 200 values were fed"):
        _ = encoder.absmax
    with pytest.raises(ValueError, match="128 values were fed, but only 72 of 200 are left"):
        encoder.feed(torch.zeros(128))


def test_the_example_runs() -> None:
    """What the docstring shows is true."""
    assert doctest.testmod(fourbit).attempted == 3
    assert doctest.testmod(fourbit).failed == 0
