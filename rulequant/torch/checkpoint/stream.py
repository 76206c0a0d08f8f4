"""A checkpoint quantized tensor by tensor: what each source tensor becomes, one at a time, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch

from rulequant.errors import CheckpointError
from rulequant.inventory import Inventory, Kind
from rulequant.plan import Plan
from rulequant.schemes import Scheme
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.header import ITEM_SIZES, TensorEntry
from rulequant.torch.checkpoint.keys import KeyMap
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.factories import NotFiniteError, factory_for
from rulequant.torch.skeleton import Skeleton

__all__ = ["OutputTensor", "Step", "encode_step", "plan_steps"]

_TO_TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_FROM_TORCH = {dtype: name for name, dtype in _TO_TORCH.items()}
_STATE_RECORD_BYTES = 512
"""More than the JSON record of a 4-bit tensor takes; for estimates only."""


class OutputTensor(NamedTuple):
    """A tensor as it goes into a shard."""

    name: str
    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class Step:
    """One source tensor and what becomes of it."""

    key: str
    entry: TensorEntry
    dtype: torch.dtype
    """The dtype that it is cast to; before encoding, where it is encoded."""
    scheme: Scheme | None
    kind: Kind
    nbytes: int
    """Bytes that it takes in the output; for an encoded tensor an upper bound that counts the JSON record."""


def plan_steps(
    reader: CheckpointReader, keys: KeyMap, plan: Plan, inventory: Inventory, skeleton: Skeleton
) -> list[Step]:
    """One step for each source tensor that is written, in the order of the source.

    Raises:
        CheckpointError: a tensor's shape is not the model's, or its dtype is none that can be read.
    """
    return [
        _step(reader.tensors[key], keys, plan, inventory, skeleton) for key in reader.tensors if key in keys.targets
    ]


def _step(entry: TensorEntry, keys: KeyMap, plan: Plan, inventory: Inventory, skeleton: Skeleton) -> Step:
    key, name = entry.name, keys.targets[entry.name]
    module_name, _, local = name.rpartition(".")
    info = inventory.by_name[module_name]
    decision = plan.by_name.get(info.name)
    scheme = plan.schemes[decision.scheme] if decision and decision.scheme else None
    encoded = scheme if scheme and local in scheme.quantized_tensors(info) else None
    if entry.dtype not in _TO_TORCH:
        raise CheckpointError(f"`{printable(key)}` has the dtype {entry.dtype}, which cannot be read here")
    if key in keys.converted:
        if encoded:
            raise CheckpointError(
                f"`{printable(key)}` is merged or split by transformers as it loads, so it cannot be quantized alone",
                remedy=f"skip `{info.name}` with a reason, or apply in memory: rulequant.torch.apply(model, rules)",
            )
    elif entry.shape != tuple(skeleton.tensors[name].shape):
        raise CheckpointError(
            f"`{printable(key)}` has the shape {list(entry.shape)}, "
            f"config.json asks for {list(skeleton.tensors[name].shape)}",
            remedy="the weights are of another model than config.json",
        )
    tensor = info.tensor(local)
    dtype = skeleton.dtype if encoded else _stored(entry, name, skeleton)
    nbytes = entry.numel * dtype.itemsize
    if encoded and tensor:
        nbytes = encoded.encoded_bytes(info, tensor) + _STATE_RECORD_BYTES
    return Step(key, entry, dtype, encoded, info.kind, nbytes)


def _stored(entry: TensorEntry, name: str, skeleton: Skeleton) -> torch.dtype:
    """Floats take the dtype that the model will have them in; integers and booleans stay."""
    stored = skeleton.stored_dtype(name)
    source = _TO_TORCH[entry.dtype]
    return stored if stored.is_floating_point and source.is_floating_point else source


def encode_step(reader: CheckpointReader, step: Step) -> Iterator[OutputTensor]:
    """Read a source tensor, and give the tensors that are written for it.

    Raises:
        NotFiniteError: it holds a value that its method cannot encode; the tensor is named.
    """
    data = reader.read(step.key)
    source = _TO_TORCH[step.entry.dtype]
    if step.scheme is None and source == step.dtype:
        yield OutputTensor(step.key, step.entry.dtype, step.entry.shape, memoryview(data))
        return
    tensor = _as_tensor(data, source, step.entry.shape).to(step.dtype)
    if step.scheme is None:
        yield _output(step.key, tensor)
        return
    factory = factory_for(step.scheme.method)
    try:
        encoded = factory.encode(tensor, step.kind, step.scheme)
    except NotFiniteError as error:
        raise NotFiniteError(f"`{printable(step.key)}`: {error.message}", remedy=error.remedy) from error
    prefix = step.key.removesuffix("weight")
    for name, each in encoded.items():
        yield _output(f"{prefix}{name}", each)


def _as_tensor(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


def _output(name: str, tensor: torch.Tensor) -> OutputTensor:
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    data = memoryview(cast("Any", flat.numpy())) if flat.numel() else memoryview(b"")
    dtype = _FROM_TORCH[tensor.dtype]
    if tensor.numel() * ITEM_SIZES[dtype] != len(data):
        raise CheckpointError(f"`{printable(name)}` has {len(data)} bytes, not those of its shape")
    return OutputTensor(name, dtype, tuple(tensor.shape), data)
