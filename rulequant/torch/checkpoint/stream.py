"""A checkpoint quantized tensor by tensor: what each source tensor becomes, one at a time, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch

from rulequant.errors import CheckpointError
from rulequant.inventory import Inventory, Kind, ModuleInfo
from rulequant.plan import Plan
from rulequant.schemes import Scheme
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.header import ITEM_SIZES, TensorEntry
from rulequant.torch.checkpoint.keys import Conversion, KeyMap
from rulequant.torch.checkpoint.merging import merge_whole, mergeable_by_expert, merged_experts
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.factories import ExpertsFactory, NotFiniteError, factory_for
from rulequant.torch.skeleton import Skeleton
from rulequant.unfused import LAYOUT, ExpertMatrix, expert_count, expert_linear

__all__ = ["OutputTensor", "Step", "encode_step", "plan_steps", "read_tensor"]

_TO_TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
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


class ExpertPart(NamedTuple):
    """One matrix of one expert of a fused source tensor."""

    expert: int
    matrix: ExpertMatrix

    @property
    def name(self) -> str:
        """The name of its weight, below that of the experts."""
        return f"{self.expert}.{self.matrix.name}.weight"

    def read(self, reader: CheckpointReader, entry: TensorEntry, dtype: torch.dtype) -> torch.Tensor:
        """The weight as a Linear has it, [out, in]: columns of the expert, transposed."""
        size = entry.nbytes // entry.shape[0]
        data = reader.read_slice(entry.name, self.expert * size, size)
        fused = _as_tensor(data, _TO_TORCH[entry.dtype], entry.shape[1:])
        columns = fused.chunk(self.matrix.parts, dim=1)[self.matrix.part]
        return columns.to(dtype).T.contiguous()


@dataclass(frozen=True, slots=True)
class Step:
    """A tensor of the model, the source tensors that it is made of, and what becomes of it."""

    entries: tuple[TensorEntry, ...]
    """One, but for fused experts that the source holds expert by expert."""
    target: str
    """The model's name for it."""
    shape: torch.Size
    dtype: torch.dtype
    """The dtype that it is cast to; before encoding, where it is encoded."""
    scheme: Scheme | None
    kind: Kind
    nbytes: int
    """Bytes that it takes in the output; for an encoded tensor an upper bound that counts the JSON record."""
    conversions: tuple[Conversion, ...] = ()
    """For each entry how transformers merges it, where it does."""
    part: ExpertPart | None = None
    """Where the source is fused and the output is not: what of it this step takes."""

    @property
    def key(self) -> str:
        """The first source key; for a part of it, the key that it gets."""
        name = self.entries[0].name
        return name if self.part is None else name.removesuffix(self.part.matrix.source) + self.part.name

    @property
    def source_bytes(self) -> int:
        """Bytes that are read for it; of a part its share, though it is cut from all of its expert."""
        total = sum(entry.nbytes for entry in self.entries)
        return total if self.part is None else total // (self.entries[0].shape[0] * self.part.matrix.parts)

    @property
    def prefix(self) -> str:
        """What the names of its encoded tensors begin with: the source's own key, or the model's for fused experts."""
        if self.kind == "experts":
            return f"{self.target}."
        # A key of another form is one that transformers renames, and not with a suffix behind it.
        return (self.key if self.key.endswith("weight") else self.target).removesuffix("weight")


def plan_steps(
    reader: CheckpointReader, keys: KeyMap, plan: Plan, inventory: Inventory, skeleton: Skeleton
) -> list[Step]:
    """One step for each tensor that is written, in the order of the source.

    Raises:
        CheckpointError: a tensor's shape is not the model's, or its dtype is none that can be read.
    """
    groups: dict[str, list[TensorEntry]] = {}
    for key, entry in reader.tensors.items():
        if key in keys.targets:
            merged = key in keys.converted and _encoding(keys.targets[key], plan, inventory)[1]
            groups.setdefault(keys.targets[key] if merged else key, []).append(entry)
    steps: list[Step] = []
    for entries in groups.values():
        step = _step(tuple(entries), keys, plan, inventory, skeleton)
        steps += _apart(step, inventory) if plan.container == "bitsandbytes" else [step]
    _check_complete(steps, plan, inventory)
    return steps


def _apart(step: Step, inventory: Inventory) -> list[Step]:
    """The steps for a tensor of a plain bitsandbytes checkpoint: one for each matrix where it wants them so."""
    module, _, local = step.target.rpartition(".")
    info = inventory.by_name[module]
    matrices = [each for each in LAYOUT if each.source == local] if info.stock_linears else []
    if not matrices:
        return [step]
    if step.conversions:
        raise CheckpointError(
            f"`{printable(step.key)}` is merged by transformers as it loads, so it is not taken apart"
        )
    parts = (ExpertPart(expert, matrix) for expert in range(expert_count(info)) for matrix in matrices)
    return [_part_step(step, part, info) for part in parts]


def _part_step(step: Step, part: ExpertPart, info: ModuleInfo) -> Step:
    linear = expert_linear(info, part.expert, part.matrix)
    weight = linear.tensors[0]
    nbytes = weight.numel * step.dtype.itemsize
    if step.scheme:
        nbytes = step.scheme.encoded_bytes(linear, weight) + _STATE_RECORD_BYTES
    shape = torch.Size(weight.shape)
    return replace(step, target=f"{linear.name}.weight", shape=shape, kind="linear", nbytes=nbytes, part=part)


def _check_complete(steps: list[Step], plan: Plan, inventory: Inventory) -> None:
    """Refuse a source that lacks a weight to quantize, even one that the model class may load without."""
    encoded = {step.target if step.part is None else _fused_name(step) for step in steps if step.scheme}
    for decision in plan.quantized:
        scheme = plan.schemes[cast(str, decision.scheme)]
        for local in scheme.quantized_tensors(inventory.by_name[decision.name]):
            if f"{decision.name}.{local}" not in encoded:
                raise CheckpointError(
                    f"`{decision.name}.{local}` is to be quantized, and no tensor of the shards becomes just that",
                    remedy=f"skip `{decision.name}` with a reason, or get the checkpoint again",
                )


def _fused_name(step: Step) -> str:
    part = cast(ExpertPart, step.part)
    return step.target.removesuffix(part.name) + part.matrix.source


def _encoding(target: str, plan: Plan, inventory: Inventory) -> tuple[ModuleInfo, Scheme | None]:
    """The module that a tensor belongs to, and the scheme that encodes it."""
    module_name, _, local = target.rpartition(".")
    info = inventory.by_name[module_name]
    decision = plan.by_name.get(info.name)
    scheme = plan.schemes[decision.scheme] if decision and decision.scheme else None
    return info, scheme if scheme and local in scheme.quantized_tensors(info) else None


def _step(entries: tuple[TensorEntry, ...], keys: KeyMap, plan: Plan, inventory: Inventory, skeleton: Skeleton) -> Step:
    first, target = entries[0], keys.targets[entries[0].name]
    info, scheme = _encoding(target, plan, inventory)
    shape = skeleton.tensors[target].shape
    conversions = tuple(keys.converted[each.name] for each in entries if each.name in keys.converted)
    for entry in entries:
        _check_dtype(entry, quantized=scheme is not None)
    if conversions and scheme and info.kind != "experts":
        raise CheckpointError(
            f"`{printable(first.name)}` is merged or split by transformers as it loads, so it is not quantized alone",
            remedy=f"skip `{info.name}` with a reason, or apply in memory: rulequant.torch.apply(model, rules)",
        )
    if not conversions and first.shape != tuple(shape):
        raise CheckpointError(
            f"`{printable(first.name)}` has the shape {list(first.shape)}, config.json asks for {list(shape)}",
            remedy="the weights are of another model than config.json",
        )
    tensor = info.tensor(target.rpartition(".")[2])
    dtype = skeleton.encoded_dtype(target) if scheme else _stored(first, target, skeleton)
    nbytes = sum(entry.numel for entry in entries) * dtype.itemsize
    if scheme and tensor:
        nbytes = scheme.encoded_bytes(info, tensor) + _STATE_RECORD_BYTES
    return Step(entries, target, shape, dtype, scheme, info.kind, nbytes, conversions if scheme else ())


def _check_dtype(entry: TensorEntry, *, quantized: bool) -> None:
    """Refuse what is already quantized, or is no weight: cast to a float it would mean something else."""
    if entry.dtype in _TO_TORCH and not (quantized and entry.dtype not in _FLOATS):
        return
    message = f"`{printable(entry.name)}` has the dtype {entry.dtype}"
    if entry.dtype.startswith("F8"):
        raise CheckpointError(
            f"{message}: the checkpoint is already quantized, or lacks its scales",
            remedy="give the checkpoint it was made from, in bfloat16, float16 or float32",
        )
    raise CheckpointError(f"{message}, which cannot be {'quantized' if quantized else 'read here'}")


def _stored(entry: TensorEntry, name: str, skeleton: Skeleton) -> torch.dtype:
    """Floats take the dtype that the model will have them in; integers and booleans stay."""
    stored = skeleton.stored_dtype(name)
    source = _TO_TORCH[entry.dtype]
    return stored if stored.is_floating_point and source.is_floating_point else source


def encode_step(reader: CheckpointReader, step: Step) -> Iterator[OutputTensor]:
    """Read the source of a step, and give the tensors that are written for it.

    Raises:
        NotFiniteError: it holds a value that its method cannot encode; the tensor is named.
        CheckpointError: the experts of the source do not make up the model's tensor.
    """
    entry = step.entries[0]
    if step.scheme is None:
        if step.part is None and _TO_TORCH[entry.dtype] == step.dtype:
            yield OutputTensor(step.key, entry.dtype, entry.shape, memoryview(reader.read(step.key)))
        else:
            yield _output(step.key, _source(reader, step, step.dtype))
        return
    try:
        encoded = _encode(reader, step, step.scheme)
    except NotFiniteError as error:
        raise _named(error, reader, step) from error
    for name, each in encoded.items():
        yield _output(f"{step.prefix}{name}", each)


def _named(error: NotFiniteError, reader: CheckpointReader, step: Step) -> NotFiniteError:
    """The error with the tensor's name; and whether the value is in the source, or came of the cast."""
    message = f"`{printable(step.key)}`: {error.message}"
    entry, dtype = step.entries[0], str(step.dtype).removeprefix("torch.")
    in_source, cast_to = (_source(reader, step, each) for each in (torch.float64, step.dtype))
    if cast_to.isfinite().all() or not in_source.isfinite().all():
        return NotFiniteError(message, remedy=error.remedy)
    return NotFiniteError(
        f"{message}, cast from {entry.dtype} to {dtype}, the dtype of config.json",
        remedy='say `"dtype": "bfloat16"` or `"float32"` in config.json',
    )


def _encode(reader: CheckpointReader, step: Step, scheme: Scheme) -> dict[str, torch.Tensor]:
    factory = factory_for(scheme.method)
    if step.kind != "experts":
        return factory.encode(_source(reader, step, step.dtype), step.kind, scheme)
    return cast(ExpertsFactory, factory).encode_experts(_experts(reader, step), step.shape, step.dtype, scheme)


def _experts(reader: CheckpointReader, step: Step) -> Iterator[torch.Tensor]:
    """The experts of a fused tensor one by one, [rows, columns]; as far as it can be, without the tensor as a whole."""

    def read(entry: TensorEntry) -> torch.Tensor:
        return _read(reader, entry, step.dtype)

    if step.conversions and mergeable_by_expert(step.conversions):
        yield from merged_experts(step.entries, step.conversions, read, step.shape)
    elif step.conversions:
        yield from merge_whole(step.entries, step.conversions, read, step.shape).unbind()
    else:
        yield from _sliced_experts(reader, step)


def _sliced_experts(reader: CheckpointReader, step: Step) -> Iterator[torch.Tensor]:
    entry = step.entries[0]
    size, source = entry.nbytes // step.shape[0], _TO_TORCH[entry.dtype]
    for index in range(step.shape[0]):
        data = reader.read_slice(entry.name, index * size, size)
        yield _as_tensor(data, source, tuple(step.shape[1:])).to(step.dtype)


def _source(reader: CheckpointReader, step: Step, dtype: torch.dtype) -> torch.Tensor:
    entry = step.entries[0]
    return step.part.read(reader, entry, dtype) if step.part else _read(reader, entry, dtype)


def _read(reader: CheckpointReader, entry: TensorEntry, dtype: torch.dtype) -> torch.Tensor:
    return _as_tensor(reader.read(entry.name), _TO_TORCH[entry.dtype], entry.shape).to(dtype)


def read_tensor(reader: CheckpointReader, name: str) -> torch.Tensor:
    """A tensor as it is stored."""
    entry = reader.entry(name)
    return _read(reader, entry, _TO_TORCH[entry.dtype])


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
