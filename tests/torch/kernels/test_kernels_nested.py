"""Double quantization is bit by bit what bitsandbytes writes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from bitsandbytes import functional
from stock_kernels import same_bits
from torch import Tensor

from rulequant.torch.arrays.nested import BLOCKS_AT_A_TIME, NESTED_BLOCKSIZE
from rulequant.torch.kernels import NotFiniteValueError, quantize_absmax


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Leaves torch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_stock(absmax: Tensor) -> None:
    """Codes, scales and offset of some absmax are bitsandbytes' own."""
    nested = quantize_absmax(absmax)
    offset = absmax.mean()
    codes, state = functional.quantize_blockwise(absmax - offset, blocksize=256)
    assert nested.offset == offset.item()
    assert same_bits(nested.absmax, state.absmax)
    assert same_bits(nested.quant_map, state.code)
    assert same_bits(nested.codes, codes)


@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 5000, 65536, BLOCKS_AT_A_TIME * NESTED_BLOCKSIZE * 2 + 3])
def test_random_absmax(length: int) -> None:
    """Several lengths of the last block, and several batches."""
    assert_stock(torch.rand(length, generator=torch.Generator().manual_seed(length)) + 0.1)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([0.0] * 300, id="zeros"),
        pytest.param([0.1] * 300, id="equal, their mean off by rounding"),
        pytest.param([1e-38] * 300, id="the clamp"),
        pytest.param([0.0, 1e-45, 3e-45] * 100, id="subnormal"),
        pytest.param([0.0, 0.0, 8e-39, 4e-39] * 64, id="a scale without reciprocal, and differences of zero"),
        pytest.param([1e30, 1e-30, 1.0, 0.0] * 80, id="many magnitudes"),
    ],
)
def test_odd_absmax(values: list[float]) -> None:
    """Where a reciprocal overflows, or zeros meet infinity."""
    assert_stock(torch.tensor(values))


def test_values_at_and_beside_every_step_of_the_look_up() -> None:
    """The seven floats around each of the 65,535 places where the index changes, in blocks whose scale is 1."""
    steps = ((np.arange(1, 65536) - 0.5) / 32767.5 - 1).astype(np.float32)
    around = [steps]
    for _ in range(3):
        around = [np.nextafter(around[0], np.float32(-9)), *around, np.nextafter(around[-1], np.float32(9))]
    values = np.concatenate(around).clip(-1, 1)
    values = values[: len(values) // 254 * 254].reshape(-1, 254)
    ends = np.broadcast_to(np.float32([1, -1]), (len(values), 2))
    differences = torch.from_numpy(np.concatenate([ends, values], axis=1).ravel())
    # Shifted so that the mean is zero: then the differences are the values themselves.
    balanced = torch.cat([differences, -differences])
    offset = balanced.mean()
    codes, state = functional.quantize_blockwise(balanced - offset, blocksize=256)
    nested = quantize_absmax(balanced)
    assert abs(nested.offset) < 1e-7
    assert same_bits(nested.codes, codes)
    assert same_bits(nested.absmax, state.absmax)


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_the_mean_follows_the_number_of_threads(threads: int) -> None:
    """By default torch's, and if asked a fixed one, which is put back."""
    absmax = torch.rand(400_000, generator=torch.Generator().manual_seed(3)) + 0.5
    torch.set_num_threads(threads)
    assert_stock(absmax)
    expected = absmax.mean().item()
    torch.set_num_threads(3)
    assert quantize_absmax(absmax, mean_threads=threads).offset == expected
    assert torch.get_num_threads() == 3


def test_results_do_not_share_the_map() -> None:
    """Each result may be changed without changing the next."""
    quantize_absmax(torch.ones(3)).quant_map.zero_()
    assert quantize_absmax(torch.ones(3)).quant_map[-1] == 1


def test_a_mean_that_overflows_is_refused() -> None:
    """bitsandbytes would write infinity as the offset and lose the tensor."""
    with pytest.raises(NotFiniteValueError, match=r"flat index 2 is 3\.2e"):
        quantize_absmax(torch.tensor([3e38, 3e38, 3.2e38]))


@pytest.mark.parametrize(
    ("absmax", "message"),
    [
        pytest.param(torch.zeros(0), r"absmax must be float32 \[blocks\], got torch.float32 \[0\]", id="empty"),
        pytest.param(torch.zeros(2, dtype=torch.float16), r"got torch.float16 \[2\]", id="dtype"),
        pytest.param(torch.zeros(2, 2), r"got torch.float32 \[2, 2\]", id="dimensions"),
    ],
)
def test_absmax_that_does_not_fit(absmax: Tensor, message: str) -> None:
    """The message says what is expected."""
    with pytest.raises(ValueError, match=message):
        quantize_absmax(absmax)
