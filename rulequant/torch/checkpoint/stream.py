"""Which tensors are written, and what each is made of: the plan and the names of the model brought to the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from rulequant.errors import CheckpointError
from rulequant.inventory import Inventory, ModuleInfo, TensorInfo
from rulequant.plan import Plan
from rulequant.schemes import Scheme
from rulequant.torch.checkpoint.boxes import Layout, ScatteredError
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.header import DTYPE_NAMES, FLOATS, SPELLINGS, TensorEntry
from rulequant.torch.checkpoint.keys import KeyMap
from rulequant.torch.checkpoint.naming import Naming
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.step import Block, Step, encoded_step, kept_step, matrix_columns
from rulequant.torch.checkpoint.tracing import converted_layouts
from rulequant.torch.checkpoint.unfusing import steps_apart
from rulequant.torch.skeleton import Skeleton

__all__ = ["encoding_of", "plan_steps"]


@dataclass(frozen=True)
class _Known:
    """What steps are made by."""

    keys: KeyMap
    plan: Plan
    inventory: Inventory
    skeleton: Skeleton
    naming: Naming

    def encoding(self, target: str) -> tuple[ModuleInfo, Scheme | None]:
        return encoding_of(target, self.plan, self.inventory)

    def home(self, target: str) -> str:
        """The name under which an encoded weight is written: of those that are tied the one that transformers saves.

        A loader makes the others of that one; where only another is there, it would draw the one at random first.
        """
        ties: dict[str, str] = getattr(self.skeleton.model, "all_tied_weights_keys", {})
        return ties.get(target, target) if self.encoding(target)[1] else target


def plan_steps(
    reader: CheckpointReader, keys: KeyMap, plan: Plan, inventory: Inventory, skeleton: Skeleton
) -> list[Step]:
    """One step for each tensor that is written, in the order of the source.

    Raises:
        CheckpointError: a tensor's shape is not the model's, or its dtype is none that can be read; or transformers
            computes it, and so that it cannot be quantized alone.
    """
    known = _Known(keys, plan, inventory, skeleton, Naming.of(keys, plan, inventory))
    groups: dict[str, list[TensorEntry]] = {}
    for key, entry in reader.tensors.items():
        if key in keys.targets:
            groups.setdefault(keys.targets[key] if key in keys.converted else key, []).append(entry)
    found = [step for entries in groups.values() for step in _steps(entries, known)]
    _check_complete(found, plan, inventory)
    if plan.container != "bitsandbytes":
        return found
    return [step for each in found for step in steps_apart(each, inventory)]


def _check_complete(steps: list[Step], plan: Plan, inventory: Inventory) -> None:
    """Refuse a source that lacks a weight to quantize, even one that the model class may load without."""
    encoded = {_owner(step.target, inventory) for step in steps if step.scheme}
    for decision in plan.quantized:
        scheme = plan.schemes[cast(str, decision.scheme)]
        for local in scheme.quantized_tensors(inventory.by_name[decision.name]):
            if _owner(f"{decision.name}.{local}", inventory) not in encoded:
                raise CheckpointError(
                    f"`{decision.name}.{local}` is to be quantized, and no tensor of the shards becomes just that",
                    remedy=f"skip `{decision.name}` with a reason, or get the checkpoint again",
                )


def _owner(target: str, inventory: Inventory) -> str:
    """The name by which a tensor comes first in the model: of those that are tied the source has one, whichever."""
    module, _, local = target.rpartition(".")
    info = inventory.by_name[module]
    tensor = info.tensor(local)
    return (tensor.tied_to if tensor else None) or f"{info.name}.{local}"


def encoding_of(target: str, plan: Plan, inventory: Inventory) -> tuple[ModuleInfo, Scheme | None]:
    """The module that a tensor belongs to, and the scheme that encodes it."""
    module_name, _, local = target.rpartition(".")
    info = inventory.by_name[module_name]
    decision = plan.by_name.get(info.name)
    scheme = plan.schemes[decision.scheme] if decision and decision.scheme else None
    return info, scheme if scheme and local in scheme.quantized_tensors(info) else None


def _steps(entries: Sequence[TensorEntry], known: _Known) -> list[Step]:
    """The steps of one source tensor, or of those that a converter of transformers takes together."""
    first, keys = entries[0], known.keys
    target = keys.targets[first.name]
    if first.name not in keys.converted:
        return [_step(first, known.home(target), known)]
    conversions = [keys.converted[each.name] for each in entries]
    is_quantized = any(known.encoding(name)[1] for name in conversions[0].targets(target))
    for entry in entries:
        _check_dtype(entry, quantized=is_quantized)
    if not is_quantized:
        # As they are: whoever loads the output converts them, as those of the source.
        return [kept_step(each, target, _stored(each, target, known.skeleton)) for each in entries]
    made = converted_layouts(entries, conversions, target, known.skeleton.model)
    return [
        _made(first.name, known.home(name), layout, known, is_alone=len(made) == 1) for name, layout in made.items()
    ]


def _step(entry: TensorEntry, target: str, known: _Known) -> Step:
    """The step of a source tensor that is one of the model."""
    shape, (info, scheme) = tuple(known.skeleton.tensors[target].shape), known.encoding(target)
    _check_dtype(entry, quantized=scheme is not None)
    if entry.shape != shape:
        raise CheckpointError(
            f"`{printable(entry.name)}` has the shape {list(entry.shape)}, config.json asks for {list(shape)}",
            remedy="the weights are of another model than config.json",
        )
    tensor = info.tensor(target.rpartition(".")[2])
    if scheme is None or tensor is None:
        return kept_step(entry, target, _stored(entry, target, known.skeleton))
    name = known.naming.encoded(entry.name, target, info, scheme, tensor)
    return _encoded(entry.name, target, name, Layout.of(entry), info, tensor, scheme, known)


def _made(key: str, target: str, layout: Layout, known: _Known, *, is_alone: bool) -> Step:
    """The step of a tensor of the model that transformers makes of those of the source."""
    shape, (info, scheme) = tuple(known.skeleton.tensors[target].shape), known.encoding(target)
    if layout.shape != shape:
        raise CheckpointError(
            f"`{printable(key)}` and its like come to the shape {list(layout.shape)} for `{target}`, "
            f"config.json asks for {list(shape)}",
            remedy="the weights are of another model than config.json",
        )
    tensor = info.tensor(target.rpartition(".")[2])
    if scheme is None or tensor is None:
        return _kept_apart(known.naming.kept(key, target, info), target, layout, known.skeleton)
    name = known.naming.encoded(key, target, info, scheme, tensor)
    # Of several that are made of one each has a key of its own.
    return _encoded(key if is_alone else name, target, name, layout, info, tensor, scheme, known)


def _kept_apart(name: str, target: str, layout: Layout, skeleton: Skeleton) -> Step:
    """The step of a tensor that is as it was, and not where it was."""
    columns = layout.shape[-1] if layout.shape else 1
    blocks = _blocks(layout, columns, target)
    dtype = _stored(layout.boxes[0].entry, target, skeleton) if layout.boxes else SPELLINGS["float32"]
    written = TensorInfo(name, layout.shape, DTYPE_NAMES[dtype])
    return Step(name, target, "other", layout.shape, dtype, blocks, columns, (written,), written.nbytes)


def _encoded(
    key: str,
    target: str,
    name: str,
    layout: Layout,
    info: ModuleInfo,
    tensor: TensorInfo,
    scheme: Scheme,
    known: _Known,
) -> Step:
    # The weight of a `Conv1D` is [in, out]; its matrix, as that of all others, is [out, in].
    layout = layout.permuted((1, 0)) if info.kind == "conv1d" else layout
    return encoded_step(
        info,
        tensor,
        scheme,
        key=key,
        target=target,
        prefix=known.naming.prefix(name, info),
        dtype=SPELLINGS[_name(known.skeleton.encoded_dtype(target))],
        blocks=_blocks(layout, matrix_columns(info.kind, tensor.shape), target),
    )


def _blocks(layout: Layout, columns: int, target: str) -> tuple[Block, ...]:
    try:
        return layout.blocks(columns)
    except ScatteredError as error:
        raise CheckpointError(
            f"`{target}`: transformers makes it of values that lie too far apart in the source to be read in rows",
            remedy="skip its module with a reason, or apply in memory: rulequant.torch.apply(model, rules)",
        ) from error


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
