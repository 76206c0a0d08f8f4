"""Weights that are encoded as a whole, by a method that knows no slices."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from numpy.typing import NDArray
from torch import Tensor

from rulequant.torch.checkpoint.gathering import gather, tensor_of
from rulequant.torch.checkpoint.header import DTYPE_NAMES
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.factories import ExpertsFactory, factory_for

__all__ = ["EncodedTensor", "encode_whole"]


class EncodedTensor(NamedTuple):
    """One of the tensors that take the place of a weight."""

    dtype: str
    """As torch spells it."""
    shape: tuple[int, ...]
    data: NDArray[Any]
    """Its bytes, U8."""


def encode_whole(reader: CheckpointReader, step: Step, *, mean_threads: int) -> dict[str, EncodedTensor]:
    """The tensors that a step makes of its weight, by their names after the step's prefix.

    torch has so many threads meanwhile: the last bits of a mean depend on it.

    Raises:
        NotFiniteError: the weight holds a value that its method cannot encode.
        CheckpointError: the source cannot be read.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(mean_threads or before)
    try:
        return {name: _encoded(tensor) for name, tensor in _tensors(reader, step).items()}
    finally:
        torch.set_num_threads(before)


def _tensors(reader: CheckpointReader, step: Step) -> dict[str, Tensor]:
    scheme, dtype = cast(Any, step.scheme), getattr(torch, DTYPE_NAMES[step.dtype])
    factory = factory_for(scheme.method)
    flat = tensor_of(gather(reader, step.blocks, step.columns, 0, step.numel, step.dtype), step.dtype)
    weight = flat.view(step.shape[::-1]).T if step.kind == "conv1d" else flat.view(step.shape)
    if step.kind != "experts":
        return factory.encode(weight, step.kind, scheme)
    return cast(ExpertsFactory, factory).encode_experts(weight.unbind(), weight.shape, dtype, scheme)


def _encoded(tensor: Tensor) -> EncodedTensor:
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return EncodedTensor(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), flat.numpy())
