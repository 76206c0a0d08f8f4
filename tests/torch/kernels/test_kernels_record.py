"""The tensors beside a weight are those that bitsandbytes saves."""

from __future__ import annotations

import json

import pytest
import torch
from stock_kernels import DTYPES, QUANT_TYPES, same_bits, stock_4bit

from rulequant.torch.kernels import quant_state, quantize_4bit


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("shape", [(96, 128), (7, 5, 11), (40,)], ids=str)
@pytest.mark.parametrize("blocksize", [32, 256])
def test_tensors_are_the_stock_ones(
    dtype: torch.dtype, quant_type: str, double_quant: bool, shape: tuple[int, ...], blocksize: int
) -> None:
    """Names, their order, dtypes, shapes and bits."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    packed, absmax = quantize_4bit(weight, quant_type=quant_type, blocksize=blocksize)
    state = quant_state(
        absmax, quant_type=quant_type, blocksize=blocksize, dtype=dtype, shape=shape, double_quant=double_quant
    )
    stock = stock_4bit(weight, quant_type, blocksize, double_quant=double_quant)
    ours = {"": packed} | state
    assert list(ours) == list(stock)
    assert [name for name in ours if not same_bits(ours[name], stock[name])] == []


def test_record_is_json() -> None:
    """Readable without bitsandbytes."""
    state = quant_state(
        torch.ones(3),
        quant_type="nf4",
        blocksize=64,
        dtype=torch.bfloat16,
        shape=torch.Size([3, 64]),
        double_quant=True,
    )
    record = json.loads(bytes(state["quant_state.bitsandbytes__nf4"].numpy()))
    assert record == {
        "quant_type": "nf4",
        "blocksize": 64,
        "dtype": "bfloat16",
        "shape": [3, 64],
        "nested_blocksize": 256,
        "nested_dtype": "float32",
        "nested_offset": 1.0,
    }
