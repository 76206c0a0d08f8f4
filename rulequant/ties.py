"""Modules that share parameters, and which of them can share an encoded weight in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rulequant.inventory import Inventory, ModuleInfo, TensorInfo

__all__ = ["Ties", "find_ties"]

Users = list[tuple[ModuleInfo, str]]
"""The modules that have a parameter, each with the name that it has there."""


@dataclass(frozen=True, slots=True)
class Ties:
    """The modules of a model of whose weights some are other modules' too."""

    twins: Mapping[str, tuple[str, ...]]
    """Modules that use the same weights in the same way, each with all of them, itself among them, in the order of the
    model: what is encoded of one is the encoded weight of all."""
    mixed: frozenset[str]
    """Modules that share a weight with one that uses it otherwise, as a head does that is tied to an embedding."""


def find_ties(inventory: Inventory) -> Ties:
    """Look for parameters that several modules have; biases, which stay as they are, may be shared or not."""
    users = _users(inventory)
    twins: dict[str, tuple[str, ...]] = {}
    mixed: set[str] = set()
    for info in inventory.modules:
        shared = [users[_full_name(info, each)] for each in _weights(info)]
        if all(len(each) == 1 for each in shared):
            continue
        if "diffusers" not in inventory.versions and _are_twins(info, shared):  # whose loader knows of no ties
            twins[info.name] = tuple(each.name for each, _ in shared[0])
        else:
            mixed.add(info.name)
    return Ties(twins, frozenset(mixed))


def _users(inventory: Inventory) -> dict[str, Users]:
    found: dict[str, Users] = {}
    for info in inventory.modules:
        for tensor in info.tensors:
            found.setdefault(_full_name(info, tensor), []).append((info, tensor.name))
    return found


def _are_twins(info: ModuleInfo, shared: list[Users]) -> bool:
    """Whether all weights of a module are those of the same others, by the same names and for the same use."""
    weights = _weights(info)
    names = [each.name for each in weights]
    others = [other for other, _ in shared[0]]
    return (
        all([each for each, _ in users] == others for users in shared)
        and all(local == each.name for each, users in zip(weights, shared, strict=True) for _, local in users)
        and all(each.kind == info.kind and [tensor.name for tensor in _weights(each)] == names for each in others)
    )


def _weights(info: ModuleInfo) -> list[TensorInfo]:
    """What a method would encode: the parameters of fused experts, else the weight."""
    if info.kind == "experts":
        return [each for each in info.tensors if len(each.shape) == 3 and not each.buffer]
    return [each for each in info.tensors if each.name == "weight"]


def _full_name(info: ModuleInfo, tensor: TensorInfo) -> str:
    """That of the parameter as it comes first in the model."""
    return tensor.tied_to or (f"{info.name}.{tensor.name}" if info.name else tensor.name)
