"""CPU kernels for nf4, fp4 and int8 on tensors: the bytes of bitsandbytes, at about ten times its speed.

Nothing here imports bitsandbytes. The work is done in `rulequant.torch.arrays`, which needs no torch.
"""

from __future__ import annotations

from rulequant.torch.arrays.notfinite import NotFiniteValueError
from rulequant.torch.arrays.tables import QUANT_TYPES
from rulequant.torch.kernels.fourbit import BLOCKSIZES, FourBitEncoder, quantize_4bit
from rulequant.torch.kernels.int8 import quantize_int8
from rulequant.torch.kernels.nested import NestedAbsmax, mean_absmax, nested_codes, quantize_absmax
from rulequant.torch.kernels.record import quant_state, quant_state_record
from rulequant.torch.kernels.sources import SOURCE_DTYPES
from rulequant.torch.kernels.tables import dynamic_map, quant_map

__all__ = [
    "BLOCKSIZES",
    "QUANT_TYPES",
    "SOURCE_DTYPES",
    "FourBitEncoder",
    "NestedAbsmax",
    "NotFiniteValueError",
    "dynamic_map",
    "mean_absmax",
    "nested_codes",
    "quant_map",
    "quant_state",
    "quant_state_record",
    "quantize_4bit",
    "quantize_absmax",
    "quantize_int8",
]
