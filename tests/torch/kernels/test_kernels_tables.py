"""The code tables as tensors."""

from __future__ import annotations

import subprocess
import sys

import torch
from bitsandbytes import functional
from stock_kernels import same_bits

from rulequant.torch.kernels.tables import dynamic_map, quant_map


def test_tables_do_not_follow_the_default_device() -> None:
    """A caller that builds layers on meta still gets real tables."""
    with torch.device("meta"):
        assert quant_map("nf4").device.type == "cpu"
        assert dynamic_map().device.type == "cpu"


def test_a_table_may_be_changed() -> None:
    """The next is not."""
    for table in (lambda: quant_map("fp4"), dynamic_map):
        table().zero_()
        assert table().any()
    assert same_bits(dynamic_map(), functional.create_dynamic_map())


def test_kernels_do_not_import_bitsandbytes() -> None:
    """Importing it takes longer than quantizing a small model."""
    code = "import sys, rulequant.torch.kernels; sys.exit('bitsandbytes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
