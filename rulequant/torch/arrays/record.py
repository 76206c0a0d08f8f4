"""The record beside a 4-bit weight in a checkpoint, as bitsandbytes' `QuantState.as_dict(packed=True)` writes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rulequant.torch.arrays.nested import NESTED_BLOCKSIZE

__all__ = ["state_record"]


def state_record(*, quant_type: str, blocksize: int, dtype: str, shape: Sequence[int], offset: float | None) -> bytes:
    """The settings as JSON, with json's default separators; `dtype` under torch's name, as "bfloat16".

    `offset` is the mean that double quantization takes off; None without it.
    """
    settings: dict[str, Any] = {
        "quant_type": quant_type,
        "blocksize": blocksize,
        "dtype": dtype,
        "shape": list(shape),
    }
    if offset is not None:
        settings |= {
            "nested_blocksize": NESTED_BLOCKSIZE,
            "nested_dtype": "float32",
            "nested_offset": offset,
        }
    return json.dumps(settings).encode()
