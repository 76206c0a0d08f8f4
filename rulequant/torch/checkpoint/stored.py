"""The tensors of an output by what they stand for: the way back from the names in its shards to the model's own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from rulequant.errors import CheckpointError
from rulequant.inventory import Inventory, ModuleInfo
from rulequant.plan import Plan
from rulequant.schemes import Scheme
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.header import TensorEntry
from rulequant.torch.checkpoint.keys import Conversion, KeyMap, map_keys, renamed, renamings_of
from rulequant.torch.checkpoint.stream import encoding_of
from rulequant.torch.factories import factory_for
from rulequant.torch.skeleton import Skeleton
from rulequant.unfused import LAYOUT, expert_count, expert_linear

__all__ = ["Stored", "StoredTensor", "stored_tensors"]

_WEIGHT = "weight"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the model as the shards of an output hold it."""

    target: str
    """The model's name for it."""
    info: ModuleInfo
    scheme: Scheme | None
    """The scheme that the plan has for it; None where it stays as it is."""
    entries: Mapping[str, TensorEntry]
    """`weight` alone, or what an encoded weight became, by the names that the factory has for its tensors."""
    conversion: Conversion | None = None
    """How transformers merges or splits it as it loads, where it does."""

    @property
    def local(self) -> str:
        """Its name in the module."""
        return self.target.rpartition(".")[2]


@dataclass(frozen=True)
class Stored:
    """All tensors of an output, and the names of those that the model class loads without."""

    tensors: tuple[StoredTensor, ...]
    absent: frozenset[str] = frozenset()


def stored_tensors(entries: Mapping[str, TensorEntry], skeleton: Skeleton, plan: Plan, inventory: Inventory) -> Stored:
    """What each tensor of an output is, by transformers' own renaming; the inverse of what `encode_step` names.

    Raises:
        CheckpointError: a tensor that the model needs is in no shard, or a shard holds one that it does not have.
    """
    groups = _by_source_key(entries, plan, inventory, skeleton.model)
    apart = _taken_apart(groups, inventory) if plan.container == "bitsandbytes" else {}
    known = dict.fromkeys(apart.get(key, key) for key in groups)
    own_names = skeleton.in_memory or skeleton.dtypes is not None
    keys = _own_keys(skeleton, known) if own_names else map_keys(skeleton, known)
    found = []
    for key, target in keys.targets.items():
        info, scheme = encoding_of(target, plan, inventory)
        if key in groups:
            found.append(StoredTensor(target, info, scheme, groups[key], keys.converted.get(key)))
        else:
            found += _parts(key, info, scheme, groups)
    return Stored(tuple(found), keys.absent)


def _taken_apart(keys: Iterable[str], inventory: Inventory) -> dict[str, str]:
    """The keys of single expert matrices, as `steps_apart` names them, and the key of the fused tensor of each."""
    modules = {each.name.rpartition(".")[2] for each in inventory.owners if each.stock_linears}
    found = {}
    for key in keys:
        *module, expert, name, last = ["", "", *key.split(".")]
        matrix = next((each for each in LAYOUT if each.name == name), None)
        if matrix and module[-1] in modules and expert.isdigit() and last == _WEIGHT:
            found[key] = ".".join([*module[2:], matrix.source])
    return found


def _parts(
    key: str, info: ModuleInfo, scheme: Scheme | None, groups: Mapping[str, Mapping[str, TensorEntry]]
) -> Iterator[StoredTensor]:
    """The single matrices that a fused tensor was taken apart into."""
    module, _, source = key.rpartition(".")
    for expert in range(expert_count(info)):
        for matrix in (each for each in LAYOUT if each.source == source):
            linear = expert_linear(info, expert, matrix)
            own = f"{module}.{expert}.{matrix.name}.{_WEIGHT}"
            if own not in groups:
                raise CheckpointError(f"`{printable(own)}` is in no shard", remedy="the checkpoint is incomplete")
            yield StoredTensor(f"{linear.name}.{_WEIGHT}", linear, scheme, groups[own])


def _own_keys(skeleton: Skeleton, keys: Collection[str]) -> KeyMap:
    """Each tensor of a model of diffusers, or of a callable, under its own name, and once where names share it."""
    names = {id(each): name for name, each in reversed(skeleton.tensors.items())}.values()
    for name in sorted({*keys} ^ {*names}):
        where = "is in no shard" if name not in keys else f"is nothing that {type(skeleton.model).__name__} has"
        raise CheckpointError(f"`{printable(name)}` {where}", remedy="is MODEL what the output was made from?")
    return KeyMap({name: name for name in keys})


def _by_source_key(
    entries: Mapping[str, TensorEntry], plan: Plan, inventory: Inventory, model: nn.Module
) -> dict[str, dict[str, TensorEntry]]:
    """The tensors grouped by the key that a weight had before it was encoded."""
    used = [plan.schemes[each.scheme] for each in plan.quantized if each.scheme]
    suffixes = {name for method in {each.method for each in used} for name in factory_for(method).tensor_names}
    ordered = sorted(suffixes, key=len, reverse=True)
    fused, renamings = _fused_names(plan, inventory), renamings_of(model)
    groups: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in entries.items():
        key, local = _split(name, ordered, entries, lambda each: each in fused or renamed(each, renamings) in fused)
        groups.setdefault(key, {})[local] = entry
    return groups


def _split(name: str, suffixes: list[str], names: Collection[str], is_fused: Callable[[str], bool]) -> tuple[str, str]:
    """(key before encoding, name that the factory has for the tensor)"""
    for suffix in suffixes:
        if not name.endswith(f".{suffix}"):
            continue
        module = name.removesuffix(f".{suffix}")
        if is_fused(module):
            return module, suffix
        if suffix != _WEIGHT and f"{module}.{_WEIGHT}" in names:
            return f"{module}.{_WEIGHT}", suffix
    return name, _WEIGHT


def _fused_names(plan: Plan, inventory: Inventory) -> set[str]:
    """The fused expert parameters that are encoded, each of which is a module in the output."""
    return {
        f"{each.name}.{local}"
        for each in plan.quantized
        if each.scheme and inventory.by_name[each.name].kind == "experts"
        for local in plan.schemes[each.scheme].quantized_tensors(inventory.by_name[each.name])
    }
