"""Weights to bytes in bitsandbytes' formats: rulequant's kernels on the CPU, bitsandbytes' own elsewhere.

Both give the same bytes; on the CPU the kernels are an order of magnitude faster and need little memory beside the
result (`benchmarks/cpu_kernels.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from bitsandbytes import functional
from torch import Tensor

from rulequant.schemes import NESTED_BLOCKSIZE, Bnb4bit
from rulequant.torch import kernels
from rulequant.torch.factories import NotFiniteError

__all__ = ["encode_4bit", "encode_int8", "encode_slices_4bit"]


def encode_4bit(weight: Tensor, settings: Bnb4bit) -> dict[str, Tensor]:
    """`weight` U8 [ceil(n/2), 1] (viewed as quant_storage) and its quant state, of a contiguous weight of any shape.

    Raises:
        NotFiniteError: the weight holds NaN or infinity.
    """
    return encode_slices_4bit([weight], weight.shape, weight.dtype, settings)


def encode_slices_4bit(
    slices: Iterable[Tensor], shape: torch.Size, dtype: torch.dtype, settings: Bnb4bit
) -> dict[str, Tensor]:
    """As `encode_4bit`, from contiguous slices in order, of which all but the last are whole blocks.

    Raises:
        NotFiniteError: a slice holds NaN or infinity.
    """
    packed: list[Tensor] = []
    absmax: list[Tensor] = []
    for each in slices:
        codes, scales = _encode_slice(each, settings)
        packed.append(codes)
        absmax.append(scales)
    weight = torch.cat(packed) if len(packed) > 1 else packed[0]
    if settings.quant_storage != "uint8":
        weight = weight.squeeze(1).view(getattr(torch, settings.quant_storage)).unsqueeze(1)
    state = _state(torch.cat(absmax) if len(absmax) > 1 else absmax[0], shape, dtype, settings)
    return {"weight": weight} | {f"weight.{name}": each for name, each in state.items()}


def encode_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values I8 [out, in] and scales F32 [out] of a contiguous weight [out, in].

    Raises:
        NotFiniteError: the weight holds NaN, or a value that float16 cannot hold.
    """
    if weight.device.type == "cpu":
        with _explained():
            return kernels.quantize_int8(weight, threads=torch.get_num_threads())
    values, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
    return values, scales


def _encode_slice(weight: Tensor, settings: Bnb4bit) -> tuple[Tensor, Tensor]:
    if weight.device.type == "cpu":
        with _explained():
            return kernels.quantize_4bit(
                weight,
                quant_type=settings.quant_type,
                blocksize=settings.blocksize,
                threads=torch.get_num_threads(),
            )
    packed, state = functional.quantize_4bit(
        weight, blocksize=settings.blocksize, compress_statistics=False, quant_type=settings.quant_type
    )
    return packed, state.absmax


def _state(absmax: Tensor, shape: torch.Size, dtype: torch.dtype, settings: Bnb4bit) -> dict[str, Tensor]:
    if absmax.device.type == "cpu":
        with _explained():
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


@contextmanager
def _explained() -> Iterator[None]:
    """What the kernels find without an extra pass; callers that know the place say more."""
    try:
        yield
    except kernels.NotFiniteValueError as error:
        raise NotFiniteError(str(error), remedy="the source weights are damaged; fetch them again") from error
