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

from rulequant.torch.kernels.tables import (
    QUANT_TYPES,
    dynamic_map,
    four_bit_table,
    nearest_dynamic_codes,
    quant_map,
)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_quant_map_is_the_stock_one(quant_type: str) -> None:
    """Bit by bit, both zeros of fp4 included."""
    assert same_bits(quant_map(quant_type), functional.get_4bit_type(quant_type, device="cpu"))


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_midpoints_and_order_are_the_stock_ones(quant_type: str) -> None:
    """The decision points, and which code lies between them."""
    bounds, order = _get_4bit_quantize_bounds(quant_type, torch.device("cpu"))
    table = four_bit_table(quant_type)
    assert same_bits(torch.from_numpy(table.midpoints[:, 0]), bounds)
    assert table.codes.tolist() == order.tolist()


def test_dynamic_map_is_the_stock_one() -> None:
    """The 256 values for nested absmax."""
    assert same_bits(dynamic_map(), functional.create_dynamic_map())


def test_fp4_pairs_hold_two_codes() -> None:
    """Every pair of ranks gives the byte of their codes, the first in the high half."""
    table = four_bit_table("fp4")
    assert table.pairs is not None
    for first in range(16):
        for second in range(16):
            assert table.pairs[16 * first + second] == table.codes[first] * 16 + table.codes[second]


def test_nf4_needs_no_pairs() -> None:
    """Its ranks are its codes."""
    assert four_bit_table("nf4").pairs is None


def test_nearest_dynamic_codes_cover_the_map() -> None:
    """The look-up table ascends through the codes and ends at both ends of the map."""
    codes = nearest_dynamic_codes()
    assert (codes[0], codes[-1], len(codes)) == (0, 255, 65536)
    assert (np.diff(codes.astype(int)) >= 0).all()


def test_tables_do_not_follow_the_default_device() -> None:
    """A caller that builds layers on meta still gets real tables."""
    with torch.device("meta"):
        assert quant_map("nf4").device.type == "cpu"
        assert dynamic_map.__wrapped__().device.type == "cpu"


def test_kernels_do_not_import_bitsandbytes() -> None:
    """Importing it takes longer than quantizing a small model."""
    code = "import sys, rulequant.torch.kernels; sys.exit('bitsandbytes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
