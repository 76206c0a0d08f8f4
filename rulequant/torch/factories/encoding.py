"""Weights to bytes in bitsandbytes' formats: rulequant's kernels on the CPU, bitsandbytes' own elsewhere.

Both give the same bytes; on the CPU the kernels are an order of magnitude faster, need little memory beside the result
(`benchmarks/cpu_kernels.py`), and find on the way what cannot be encoded. bitsandbytes is imported for a GPU only.

Fused experts are encoded one by one; the fused tensor is never needed as a whole. Without double quantization the bytes
are those of the whole tensor encoded at once; with it the absmax values of the whole tensor are quantized together.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rulequant.inventory import Kind
from rulequant.schemes import NESTED_BLOCKSIZE, Bnb4bit
from rulequant.torch import kernels
from rulequant.torch.factories.values import Look, check_4bit, check_absmax, check_int8, explained

__all__ = ["encode_4bit", "encode_experts_4bit", "encode_experts_int8", "encode_int8"]


def encode_4bit(weight: Tensor, settings: Bnb4bit, kind: Kind = "linear") -> dict[str, Tensor]:
    """`weight` U8 [ceil(n/2), 1] (viewed as quant_storage) and its quant state, of a contiguous weight of any shape.

    Raises:
        NotFiniteError: the weight holds a value that cannot be encoded.
    """
    flat = weight.detach().reshape(-1)
    return _encode_slices(
        [weight], weight.shape, weight.dtype, settings, kind, look=lambda start, stop: _plain(flat[start:stop].float())
    )


def encode_experts_4bit(
    slices: Iterable[Tensor], shape: torch.Size, dtype: torch.dtype, settings: Bnb4bit
) -> dict[str, Tensor]:
    """The tensors of an `Experts4bit` from its experts, each [1, rows, columns] or [rows, columns], in order.

    Raises:
        NotFiniteError: an expert holds a value that cannot be encoded.
    """
    return _encode_slices((each.contiguous() for each in slices), shape, dtype, settings, "experts")


def encode_int8(weight: Tensor, kind: Kind = "linear") -> tuple[Tensor, Tensor]:
    """Values I8 in the shape of a contiguous weight [out, ...], and scales F32 [out].

    Raises:
        NotFiniteError: the weight holds NaN, or a value that float16 cannot hold.
    """
    if weight.device.type == "cpu":
        with explained(weight.shape, kind):
            values, scales = kernels.quantize_int8(weight.flatten(1), threads=torch.get_num_threads())
        return values.reshape(weight.shape), scales
    from bitsandbytes import functional

    check_int8(weight)
    values, scales, _ = functional.int8_vectorwise_quant(weight.flatten(1).to(torch.float16))
    return values.reshape(weight.shape), scales


def encode_experts_int8(slices: Iterable[Tensor], shape: torch.Size) -> dict[str, Tensor]:
    """The tensors of an `Experts8bit` from its experts, each [1, rows, columns] or [rows, columns], in order.

    Raises:
        NotFiniteError: an expert holds a value that cannot be encoded.
    """
    values: list[Tensor] = []
    scales: list[Tensor] = []
    for each in slices:
        part, scale = encode_int8(each.reshape(-1, shape[-1]).contiguous())
        values.append(part)
        scales.append(scale)
    return {"weight": torch.cat(values).reshape(shape), "SCB": torch.cat(scales).reshape(shape[:2])}


def _encode_slices(
    slices: Iterable[Tensor],
    shape: torch.Size,
    dtype: torch.dtype,
    settings: Bnb4bit,
    kind: Kind,
    look: Look | None = None,
) -> dict[str, Tensor]:
    """The tensors of a weight from contiguous slices in order, of which all but the last are whole blocks."""
    packed: list[Tensor] = []
    absmax: list[Tensor] = []
    start = 0
    for each in slices:
        with explained(shape, kind, start=start):
            codes, scales = _encode_slice(each, settings)
        packed.append(codes)
        absmax.append(scales)
        start += each.numel()
    weight = torch.cat(packed) if len(packed) > 1 else packed[0]
    if settings.quant_storage != "uint8":
        weight = weight.squeeze(1).view(getattr(torch, settings.quant_storage)).unsqueeze(1)
    scales = torch.cat(absmax) if len(absmax) > 1 else absmax[0]
    check_absmax(_plain(scales), shape, kind, settings, look)
    return {"weight": weight} | {
        f"weight.{name}": each for name, each in _state(scales, shape, dtype, settings).items()
    }


def _encode_slice(weight: Tensor, settings: Bnb4bit) -> tuple[Tensor, Tensor]:
    if weight.device.type == "cpu":
        return kernels.quantize_4bit(
            weight, quant_type=settings.quant_type, blocksize=settings.blocksize, threads=torch.get_num_threads()
        )
    from bitsandbytes import functional

    check_4bit(weight, settings)
    packed, state = functional.quantize_4bit(
        weight, blocksize=settings.blocksize, compress_statistics=False, quant_type=settings.quant_type
    )
    return packed, state.absmax


def _state(absmax: Tensor, shape: torch.Size, dtype: torch.dtype, settings: Bnb4bit) -> dict[str, Tensor]:
    if absmax.device.type == "cpu":
        state = kernels.quant_state(
            absmax,
            quant_type=settings.quant_type,
            blocksize=settings.blocksize,
            dtype=dtype,
            shape=shape,
            double_quant=settings.double_quant,
        )
        # Tensors of a state dict must not share memory, or savers take them for tied.
        return state | {"quant_map": state["quant_map"].clone()}
    from bitsandbytes import functional

    quant_state = functional.QuantState(
        absmax=absmax,
        shape=shape,
        dtype=dtype,
        blocksize=settings.blocksize,
        code=functional.get_4bit_type(settings.quant_type, device=absmax.device),
        quant_type=settings.quant_type,
    )
    if settings.double_quant:
        quant_state.offset = absmax.mean()
        quant_state.absmax, quant_state.state2 = functional.quantize_blockwise(
            absmax - quant_state.offset, blocksize=NESTED_BLOCKSIZE
        )
        quant_state.nested = True
    packed: dict[str, Tensor] = quant_state.as_dict(packed=True)
    return packed


def _plain(values: Tensor) -> NDArray[np.float32]:
    return values.numpy(force=True)
