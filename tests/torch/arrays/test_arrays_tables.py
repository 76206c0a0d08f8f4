"""The generated code tables are those of bitsandbytes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds
from stock_kernels import same_bits

from rulequant.torch.arrays.tables import (
    QUANT_TYPES,
    dynamic_values,
    four_bit_table,
    nearest_dynamic_codes,
    quant_values,
)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_quant_values_are_the_stock_ones(quant_type: str) -> None:
    """Bit by bit, both zeros of fp4 included."""
    assert same_bits(torch.from_numpy(quant_values(quant_type)), functional.get_4bit_type(quant_type, device="cpu"))


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_midpoints_and_order_are_the_stock_ones(quant_type: str) -> None:
    """The decision points, and which code lies between them."""
    bounds, order = _get_4bit_quantize_bounds(quant_type, torch.device("cpu"))
    table = four_bit_table(quant_type)
    assert same_bits(torch.from_numpy(table.midpoints[:, 0]), bounds)
    assert table.codes.tolist() == order.tolist()


def test_dynamic_values_are_the_stock_ones() -> None:
    """The 256 values for nested absmax."""
    assert same_bits(torch.from_numpy(dynamic_values()), functional.create_dynamic_map())


def test_fp4_fours_hold_four_codes() -> None:
    """All ranks give the bytes of their codes, the first of two in the high half of its byte."""
    table = four_bit_table("fp4")
    assert table.fours is not None
    ranks = np.arange(65536, dtype="<u2").view(np.uint8)
    expected = table.codes[ranks >> 4] * 16 + table.codes[ranks & 15]
    assert (table.fours.view(np.uint8) == expected).all()


def test_nf4_needs_no_fours() -> None:
    """Its ranks are its codes."""
    assert four_bit_table("nf4").fours is None


def test_nearest_dynamic_codes_cover_the_map() -> None:
    """The look-up table ascends through the codes and ends at both ends of the map."""
    codes = nearest_dynamic_codes()
    assert (codes[0], codes[-1], len(codes)) == (0, 255, 65536)
    assert (np.diff(codes.astype(int)) >= 0).all()


def test_kernels_import_neither_torch_nor_bitsandbytes() -> None:
    """Importing torch takes longer than quantizing a small model, and bitsandbytes longer still."""
    code = """
import sys
import numpy as np
from rulequant.torch import arrays
packed, absmax = np.empty(32, np.uint8), np.empty(1, np.float32)
arrays.encode_4bit(np.ones(64, np.int16), "BF16", quant_type="nf4", blocksize=64, packed=packed, absmax=absmax)
arrays.encode_int8(np.ones((2, 4), np.int32), "F32", values=np.empty((2, 4), np.int8), scales=absmax.repeat(2))
arrays.nested_codes(absmax, 0.5), arrays.quant_values("fp4"), arrays.dynamic_values()
arrays.state_record(quant_type="nf4", blocksize=64, dtype="bfloat16", shape=[8, 8], offset=None)
print(sorted({"torch", "bitsandbytes"} & set(sys.modules)))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
