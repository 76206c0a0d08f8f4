"""A model of the user's own class filled with the quantized weights that `apply` wrote for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from rulequant.errors import CheckpointError, ModelError, UsageError
from rulequant.plan import Plan
from rulequant.plan_file import load_plan
from rulequant.schemes import Scheme
from rulequant.ties import Ties, find_ties
from rulequant.torch.calling import call_for_model
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.gathering import read_tensor
from rulequant.torch.checkpoint.prepare import check_same_model
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.records import PLAN_NAME
from rulequant.torch.factories import factory_for
from rulequant.torch.inspect import inspect_model
from rulequant.torch.submodules import submodule
from rulequant.torch.swap import build_layers, encoded_names
from rulequant.torch.twins import Twins, keep_biases

__all__ = ["load_quantized"]

Buildable = nn.Module | Callable[[], nn.Module] | str


def load_quantized(model: Buildable, folder: str | os.PathLike[str]) -> nn.Module:
    """See `rulequant.torch.load_quantized`."""
    path = Path(folder)
    if (path / "config.json").exists():
        raise UsageError(
            f"{printable(path)} is a checkpoint with a config.json",
            remedy="load it with the class that its README.md names: `from_pretrained`",
        )
    plan = load_plan(path / PLAN_NAME)
    built = _built(model)
    inventory = inspect_model(built)
    check_same_model(plan, inventory)
    with CheckpointReader.open(path) as reader:
        _fill(built, plan, find_ties(inventory), reader)
    keep_biases(built)
    _check_whole(built)
    return built.eval()


def _built(model: Buildable) -> nn.Module:
    if isinstance(model, str):
        return call_for_model(model)
    built = model if isinstance(model, nn.Module) else model()
    if not isinstance(built, nn.Module):
        raise ModelError(f"the callable returns {type(built).__name__}, not an nn.Module")
    return built


def _fill(model: nn.Module, plan: Plan, ties: Ties, reader: CheckpointReader) -> None:
    """Put every tensor of the folder where it belongs, all of them and each once."""
    schemes = {each.name: plan.schemes[cast(str, each.scheme)] for each in plan.quantized}
    modules = dict(model.named_modules())
    encoded = {name: encoded_names(modules[name]) for name in schemes}
    weights = [f"{name}.{local}" for name, names in encoded.items() for local in names]
    left = set(reader.tensors) - _fill_plain(model, weights, reader)
    build_layers(model, schemes)
    modules = dict(model.named_modules())
    twins = Twins(ties.twins, schemes)
    for name, scheme in schemes.items():
        for local in encoded[name] if twins.first(name) == name else ():
            left -= _attach(modules[name], name, local, scheme, reader)
            twins.share(model, name, local if local in modules[name]._modules else "")
    if left:
        raise CheckpointError(
            f"{printable(reader.folder)} holds `{printable(min(left))}`, which {type(model).__name__} does not have",
            remedy="give the model that it was made from",
        )


def _fill_plain(model: nn.Module, encoded: list[str], reader: CheckpointReader) -> set[str]:
    """Fill in what is not encoded; the names that were found. What shares a parameter still does."""
    state = model.state_dict(keep_vars=True)
    seen = {id(state[name]) for name in encoded}
    values: dict[int, Tensor] = {}
    used: set[str] = set()
    for name, tensor in state.items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        used.add(name)
        value = _value(name, tensor, reader)
        if tensor.device.type == "meta":
            values[id(tensor)] = value
        else:
            with torch.no_grad():
                tensor.copy_(value)
    _put_all(model, values)
    return used


def _value(name: str, tensor: Tensor, reader: CheckpointReader) -> Tensor:
    if name not in reader.tensors:
        raise CheckpointError(f"{printable(reader.folder)} lacks `{name}`, which the model has")
    value = read_tensor(reader, name)
    if (value.shape, value.dtype) != (tensor.shape, tensor.dtype):
        raise CheckpointError(
            f"{printable(reader.folder)}: `{name}` is {value.dtype} of shape {list(value.shape)}, the model's is "
            f"{tensor.dtype} of shape {list(tensor.shape)}",
            remedy="give the model that it was made from",
        )
    return value


def _put_all(model: nn.Module, values: dict[int, Tensor]) -> None:
    """Put tensors in the place of others, wherever those are registered."""
    parameters: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in values:
                new = nn.Parameter(values[id(parameter)], requires_grad=parameter.requires_grad)
                module._parameters[name] = parameters.setdefault(id(parameter), new)
        for name, buffer in module._buffers.items():
            if buffer is not None and id(buffer) in values:
                module._buffers[name] = values[id(buffer)]


def _attach(layer: nn.Module, name: str, local: str, scheme: Scheme, reader: CheckpointReader) -> set[str]:
    """Give a layer an encoded weight; the names of the tensors that make it up."""
    factory = factory_for(scheme.method)
    prefix, target = (f"{name}.{local}", submodule(layer, local)) if local in layer._modules else (name, layer)
    found = {each: f"{prefix}.{each}" for each in factory.tensor_names if f"{prefix}.{each}" in reader.tensors}
    if "weight" not in found:
        raise CheckpointError(f"{printable(reader.folder)} lacks `{prefix}.weight`, which the plan says is quantized")
    factory.attach(target, {each: read_tensor(reader, full) for each, full in found.items()})
    return set(found.values())


def _check_whole(model: nn.Module) -> None:
    """Refuse what is still on meta: buffers that are not saved, which only the model's own code can compute."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    empty = next((name for name, each in tensors if each.device.type == "meta"), None)
    if empty:
        raise ModelError(
            f"`{empty}` is on meta, and no checkpoint holds it: the model computes it when it is built",
            remedy="build the model on the CPU",
        )
