"""A plan carried out in memory: layers of a model replaced one by one, on meta or real, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import nn

from rulequant.errors import ModelError
from rulequant.inventory import Kind
from rulequant.plan import Plan
from rulequant.torch.factories import NotFiniteError, factory_for
from rulequant.torch.inspect import is_conv1d

__all__ = ["swap_layers"]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def swap_layers(model: nn.Module, plan: Plan, *, progress: Callable[[str], None] | None = None) -> None:
    """Replace every module that the plan quantizes, under all of its names; the rest of the model is not touched.

    A module on meta becomes a layer on meta, to be filled by a loader. Names, aliases, biases, hooks, device and
    train/eval mode stay. `progress` is called with each module's name.

    Raises:
        ModelError: the plan is for another model.
        NotFiniteError: a weight cannot be encoded; the model is then left partly swapped.
    """
    targets = {each.name: each.scheme for each in plan.quantized}
    modules = dict(model.named_modules(remove_duplicate=False))
    missing = [name for name in targets if name not in modules]
    if missing:
        raise ModelError(f"the plan is not for this model: it has no module {missing[0]!r}")
    places = _places(model)
    # Names first, modules later: replacing while walking would walk into the replacements.
    for name, scheme_name in targets.items():
        module = modules.pop(name)
        _replace(module, places[id(module)], plan, name, cast(str, scheme_name))
        if progress:
            progress(name)


def _replace(module: nn.Module, places: list[tuple[nn.Module, str]], plan: Plan, name: str, scheme_name: str) -> None:
    scheme = plan.schemes[scheme_name]
    factory = factory_for(scheme.method)
    layer = factory.build(module, scheme)
    weight = cast(torch.Tensor, module.weight)
    if weight.device.type != "meta":
        kind: Kind = "conv1d" if is_conv1d(module) else "linear"
        try:
            factory.attach(layer, factory.encode(weight.detach(), kind, scheme))
        except NotFiniteError as error:
            raise NotFiniteError(f"{name}.weight: {error.message}", remedy=error.remedy) from error
    _carry_over(module, layer)
    for parent, attribute in places:
        parent._modules[attribute] = layer


def _carry_over(module: nn.Module, layer: nn.Module) -> None:
    """Hooks and accelerate's dispatch follow the module to its replacement."""
    for attribute in _HOOKS:
        getattr(layer, attribute).update(getattr(module, attribute))
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(layer, hook)


def _places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Every (parent, attribute) under which each module is registered."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent, attribute, child in _registrations(model):
        places.setdefault(id(child), []).append((parent, attribute))
    return places


def _registrations(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        for attribute, child in parent._modules.items():
            if child is not None:
                yield parent, attribute, child
