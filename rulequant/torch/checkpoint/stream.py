"""Which tensors are written, and what each is made of: the plan and the names of the model brought to the source."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import cast

from rulequant.errors import CheckpointError
from rulequant.inventory import Inventory, ModuleInfo, TensorInfo
from rulequant.plan import Plan
from rulequant.schemes import Scheme
from rulequant.torch.checkpoint.arrangement import RECORD_BYTES
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.header import DTYPE_NAMES, FLOATS, SPELLINGS, TensorEntry
from rulequant.torch.checkpoint.keys import KeyMap
from rulequant.torch.checkpoint.merging import expert_blocks, merge_of
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.step import Block, Step
from rulequant.torch.checkpoint.unfusing import steps_apart
from rulequant.torch.skeleton import Skeleton

__all__ = ["encoding_of", "plan_steps"]


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
            merged = key in keys.converted and encoding_of(keys.targets[key], plan, inventory)[1]
            groups.setdefault(keys.targets[key] if merged else key, []).append(entry)
    found = [_step(tuple(entries), keys, plan, inventory, skeleton) for entries in groups.values()]
    _check_complete(found, plan, inventory)
    if plan.container != "bitsandbytes":
        return found
    return [step for each in found for step in steps_apart(each, inventory)]


def _check_complete(steps: list[Step], plan: Plan, inventory: Inventory) -> None:
    """Refuse a source that lacks a weight to quantize, even one that the model class may load without."""
    encoded = {step.target for step in steps if step.scheme}
    for decision in plan.quantized:
        scheme = plan.schemes[cast(str, decision.scheme)]
        for local in scheme.quantized_tensors(inventory.by_name[decision.name]):
            if f"{decision.name}.{local}" not in encoded:
                raise CheckpointError(
                    f"`{decision.name}.{local}` is to be quantized, and no tensor of the shards becomes just that",
                    remedy=f"skip `{decision.name}` with a reason, or get the checkpoint again",
                )


def encoding_of(target: str, plan: Plan, inventory: Inventory) -> tuple[ModuleInfo, Scheme | None]:
    """The module that a tensor belongs to, and the scheme that encodes it."""
    module_name, _, local = target.rpartition(".")
    info = inventory.by_name[module_name]
    decision = plan.by_name.get(info.name)
    scheme = plan.schemes[decision.scheme] if decision and decision.scheme else None
    return info, scheme if scheme and local in scheme.quantized_tensors(info) else None


def _step(entries: tuple[TensorEntry, ...], keys: KeyMap, plan: Plan, inventory: Inventory, skeleton: Skeleton) -> Step:
    first, target = entries[0], keys.targets[entries[0].name]
    info, scheme = encoding_of(target, plan, inventory)
    converted = first.name in keys.converted
    shape = tuple(skeleton.tensors[target].shape)
    for entry in entries:
        _check_dtype(entry, quantized=scheme is not None)
    if converted and scheme and info.kind != "experts":
        raise CheckpointError(
            f"`{printable(first.name)}` is merged or split by transformers as it loads, so it is not quantized alone",
            remedy=f"skip `{info.name}` with a reason, or apply in memory: rulequant.torch.apply(model, rules)",
        )
    if not converted and first.shape != shape:
        raise CheckpointError(
            f"`{printable(first.name)}` has the shape {list(first.shape)}, config.json asks for {list(shape)}",
            remedy="the weights are of another model than config.json",
        )
    tensor = info.tensor(target.rpartition(".")[2])
    if scheme is None or tensor is None:
        return _kept(first, target, _stored(first, target, skeleton))
    return _encoded(entries, target, keys, info, tensor, scheme, SPELLINGS[_name(skeleton.encoded_dtype(target))])


def _kept(entry: TensorEntry, target: str, dtype: str) -> Step:
    """The step of a tensor that is copied or cast, under the source's own key."""
    written = TensorInfo(entry.name, entry.shape, DTYPE_NAMES[dtype])
    block = Block(entry, 1, entry.numel, stride=entry.numel)
    return Step(entry.name, target, "other", entry.shape, dtype, (block,), entry.numel, (written,), written.nbytes)


def _encoded(
    entries: tuple[TensorEntry, ...],
    target: str,
    keys: KeyMap,
    info: ModuleInfo,
    tensor: TensorInfo,
    scheme: Scheme,
    dtype: str,
) -> Step:
    key, shape = entries[0].name, tensor.shape
    conversions = [keys.converted[each.name] for each in entries if each.name in keys.converted]
    columns = _columns(info, shape)
    blocks = expert_blocks(entries, conversions, shape) if conversions else (_block(entries[0], info, columns),)
    merge = None if blocks else merge_of(conversions)
    encoded = scheme.encoded_tensors(info, tensor)
    prefix = _prefix(key, target, info, keys, (*(each.name for each in encoded), *scheme.record_names))
    written = tuple(TensorInfo(f"{prefix}{each.name}", each.shape, each.dtype) for each in encoded)
    nbytes = scheme.encoded_bytes(info, tensor)
    return Step(
        key=key,
        target=target,
        kind=info.kind,
        shape=shape,
        dtype=dtype,
        blocks=blocks or _unplaced(entries),
        columns=columns,
        tensors=written,
        nbytes=nbytes + RECORD_BYTES if written else nbytes,
        prefix=prefix,
        scheme=scheme,
        slicing=None if merge or not written else scheme.slicing(info, tensor),
        merge=merge,
    )


def _block(entry: TensorEntry, info: ModuleInfo, columns: int) -> Block:
    """The one source tensor as the matrix [out, in]; that of a `Conv1D` lies transposed."""
    if info.kind == "conv1d":
        rows, columns = entry.shape
        return Block(entry, rows, columns, stride=columns, transposed=True)
    return Block(entry, entry.numel // columns, columns, stride=columns)


def _unplaced(entries: tuple[TensorEntry, ...]) -> tuple[Block, ...]:
    return tuple(Block(each, 1, each.numel, stride=each.numel) for each in entries)


def _columns(info: ModuleInfo, shape: tuple[int, ...]) -> int:
    if info.kind == "conv1d":
        return shape[0]
    return shape[-1] if info.kind == "experts" else prod(shape[1:])


def _prefix(key: str, target: str, info: ModuleInfo, keys: KeyMap, names: Iterable[str]) -> str:
    """What the names of encoded tensors begin with: the source's own key, or the model's for fused experts.

    The own key of experts that are merged is what the first of them becomes before it is renamed. Where a loader would
    rename that to something else, the other of the two: it renames names with a suffix as well.

    Raises:
        CheckpointError: it would rename both.
    """
    alone = keys.converted[key].converter.rename_source_key(key)[0] if key in keys.converted else key
    own, renamed, models = (_stem(each, info) for each in (alone, keys.renamed(alone), target))
    # A key of another form is one that transformers renames, and not with a suffix behind it.
    ways = ((own, renamed), (models, models))
    for prefix, wanted in ways if key.endswith("weight") and info.kind != "experts" else ways[::-1]:
        if all(keys.renamed(f"{prefix}{name}") == f"{wanted}{name}" for name in names):
            return prefix
    raise CheckpointError(
        f"`{printable(key)}`: transformers renames it while it loads, and would rename its quantized form wrongly",
        remedy=f"skip `{info.name}` with a reason, or apply in memory: rulequant.torch.apply(model, rules)",
    )


def _stem(name: str, info: ModuleInfo) -> str:
    """Of the weight of a layer what is before `weight`; of a parameter of experts, a module once encoded, its name."""
    return name.removesuffix("weight") if name.endswith("weight") and info.kind != "experts" else f"{name}."


def _check_dtype(entry: TensorEntry, *, quantized: bool) -> None:
    """Refuse what is already quantized, or is no weight: cast to a float it would mean something else."""
    if entry.dtype in DTYPE_NAMES and not (quantized and entry.dtype not in FLOATS):
        return
    message = f"`{printable(entry.name)}` has the dtype {entry.dtype}"
    if entry.dtype.startswith("F8"):
        raise CheckpointError(
            f"{message}: the checkpoint is already quantized, or lacks its scales",
            remedy="give the checkpoint it was made from, in bfloat16, float16 or float32",
        )
    raise CheckpointError(f"{message}, which cannot be {'quantized' if quantized else 'read here'}")


def _stored(entry: TensorEntry, name: str, skeleton: Skeleton) -> str:
    """Floats take the dtype that the model will have them in; integers and booleans stay."""
    stored = SPELLINGS.get(_name(skeleton.stored_dtype(name)))
    return stored if stored in FLOATS and entry.dtype in FLOATS else entry.dtype


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
