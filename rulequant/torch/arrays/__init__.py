"""Kernels for nf4, fp4 and int8 in numpy alone, bit patterns in, bytes out: bitsandbytes' own, about ten times as fast.

Neither torch nor bitsandbytes is imported here; torch only for a mean, where its order of addition is not known.
`rulequant.torch.kernels` has the same for tensors. The bytes are those of bitsandbytes 0.50 on x86-64 CPUs.
"""

from __future__ import annotations

from rulequant.torch.arrays.floats import FLOATS, Bits, Float
from rulequant.torch.arrays.fourbit import BLOCKSIZES, encode_4bit
from rulequant.torch.arrays.int8 import encode_int8
from rulequant.torch.arrays.mean import mean_absmax
from rulequant.torch.arrays.nested import nested_codes
from rulequant.torch.arrays.notfinite import NotFiniteValueError
from rulequant.torch.arrays.record import state_record
from rulequant.torch.arrays.tables import QUANT_TYPES, dynamic_values, quant_values

__all__ = [
    "BLOCKSIZES",
    "FLOATS",
    "QUANT_TYPES",
    "Bits",
    "Float",
    "NotFiniteValueError",
    "dynamic_values",
    "encode_4bit",
    "encode_int8",
    "mean_absmax",
    "nested_codes",
    "quant_values",
    "state_record",
]
