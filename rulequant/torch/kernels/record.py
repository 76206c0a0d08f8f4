"""The tensors beside a 4-bit weight in a checkpoint, as bitsandbytes' `QuantState.as_dict(packed=True)` names them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rulequant.torch.arrays.record import state_record
from rulequant.torch.kernels.nested import quantize_absmax
from rulequant.torch.kernels.tables import quant_map

__all__ = ["quant_state", "quant_state_record"]


def quant_state(
    absmax: Tensor,
    *,
    quant_type: str,
    blocksize: int,
    dtype: torch.dtype,
    shape: Sequence[int],
    double_quant: bool,
    mean_threads: int | None = None,
) -> dict[str, Tensor]:
    """`absmax`, `quant_map`, with double quantization `nested_absmax` and `nested_quant_map`, and the record.

    The names are relative to the weight's, in bitsandbytes' order. `absmax` is F32 [blocks], `dtype` and `shape` are
    those of the weight before. `mean_threads` is that of `quantize_absmax`, and so are the errors.
    """
    tensors = {"absmax": absmax, "quant_map": quant_map(quant_type)}
    offset = None
    if double_quant:
        nested = quantize_absmax(absmax, mean_threads=mean_threads)
        offset = nested.offset
        tensors |= {"absmax": nested.codes, "nested_absmax": nested.absmax, "nested_quant_map": nested.quant_map}
    record = quant_state_record(quant_type=quant_type, blocksize=blocksize, dtype=dtype, shape=shape, offset=offset)
    return tensors | {f"quant_state.bitsandbytes__{quant_type}": record}


def quant_state_record(
    *, quant_type: str, blocksize: int, dtype: torch.dtype, shape: Sequence[int], offset: float | None
) -> Tensor:
    """The settings as the bytes of their JSON text, U8, with json's default separators.

    `offset` is the mean that double quantization takes off; None without it.
    """
    name = str(dtype).removeprefix("torch.")
    record = state_record(quant_type=quant_type, blocksize=blocksize, dtype=name, shape=shape, offset=offset)
    return torch.frombuffer(bytearray(record), dtype=torch.uint8)
