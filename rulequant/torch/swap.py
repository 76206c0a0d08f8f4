"""A plan carried out in memory: layers of a model replaced one by one, on meta or real, in place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from rulequant.errors import ModelError
from rulequant.escaping import module_text
from rulequant.plan import Decision, Plan
from rulequant.schemes import Scheme
from rulequant.torch.experts import expert_parameters
from rulequant.torch.factories import ExpertsFactory, LayerFactory, NotFiniteError, SharingFactory, factory_for
from rulequant.torch.inspect import kind_of
from rulequant.torch.standins import refuse_resizing
from rulequant.torch.submodules import submodule
from rulequant.torch.twins import keep_biases

__all__ = ["build_layers", "encoded_names", "replace_module", "swap_layers"]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


_OF_EVERY_MODULE = vars(nn.Module()).keys()


class _Place(NamedTuple):
    """Where a module is held."""

    holder: Any
    """A dictionary or a list."""
    key: Any


def swap_layers(model: nn.Module, plan: Plan, *, progress: Callable[[str], None] | None = None) -> None:
    """Replace every module that the plan quantizes, under all of its names; the rest of the model is not touched.

    A module on meta becomes a layer on meta, to be filled by a loader. Names, aliases, biases, forward and backward
    hooks, device and train/eval mode stay. `progress` is called with each module's name.

    All layers are built and all weights are checked before the first is replaced: whatever is raised for a model or a
    weight leaves the model as it was. Then one weight after the other is encoded and let go; one that several modules
    share is encoded once, and what was made of it shared.

    Raises:
        ModelError: the plan is for another model, or a module cannot be replaced where it stands.
        NotFiniteError: a weight holds a value that cannot be encoded.
    """
    swaps = _prepare(model, plan)
    places = _places(model)
    filled: dict[int, nn.Module] = {}
    parameters = [part.parameter for swap in swaps for part in swap.parts()]
    while swaps:
        swap = swaps.popleft()
        _fill(swap, filled)
        _put(swap.module, swap.layer, places)
        if progress:
            progress(swap.name)
    refuse_resizing(model)
    if len(set(parameters)) < len(parameters):
        keep_biases(model)


def build_layers(model: nn.Module, schemes: Mapping[str, Scheme]) -> None:
    """Make the layers of a meta skeleton, by module name, for a loader to fill."""
    modules = dict(model.named_modules())
    places = _places(model)
    for name, scheme in schemes.items():
        _put(modules[name], factory_for(scheme.method).build(modules[name], scheme), places)


def replace_module(model: nn.Module, module: nn.Module, layer: nn.Module) -> None:
    """Put a layer wherever a module is registered in a model, with the hooks that are attached to it."""
    _put(module, layer, _places(model))


@dataclass(frozen=True)
class _Swap:
    """One module, and the layer that is to take its place."""

    name: str
    module: nn.Module
    layer: nn.Module
    scheme: Scheme
    factory: LayerFactory

    def parts(self) -> Iterator[_Part]:
        """What is encoded: the weight of a layer, or each fused parameter of experts."""
        for name in encoded_names(self.module):
            # JetMoe's experts call their parameter weight too.
            target = submodule(self.layer, name) if expert_parameters(self.module) else self.layer
            weight = cast(torch.Tensor, getattr(self.module, name))
            yield _Part(f"{self.name}.{name}", weight.detach(), target, id(weight))


class _Part(NamedTuple):
    """A weight, its full name, and the layer that takes it."""

    name: str
    weight: torch.Tensor
    target: nn.Module
    parameter: int
    """The id of what the weight is in the module, which others may have too."""


def _prepare(model: nn.Module, plan: Plan) -> deque[_Swap]:
    """Everything that may fail, done without a change to the model."""
    # The names of a plan are those of the first registration, as in `named_modules()`.
    modules = dict(model.named_modules())
    offloads = any(_offloads(each) for each in modules.values())
    swaps: deque[_Swap] = deque()
    for decision in plan.quantized:
        module = modules.get(decision.name)
        _check_is_planned(module, decision)
        _check_replaceable(cast(nn.Module, module), decision.name, offloads=offloads)
        scheme = plan.schemes[cast(str, decision.scheme)]
        factory = factory_for(scheme.method)
        layer = factory.build(cast(nn.Module, module), scheme)
        swap = _Swap(decision.name, cast(nn.Module, module), layer, scheme, factory)
        for part in swap.parts():
            if part.weight.device.type != "meta":
                with _naming(part.name):
                    factory.check(part.weight, scheme)
        swaps.append(swap)
    return swaps


def _check_is_planned(module: nn.Module | None, decision: Decision) -> None:
    remedy = "make the plan anew for this model"
    if module is None:
        raise ModelError(f"the plan is for another model: this one has no `{decision.name}`", remedy=remedy)
    # What is tied, the bias or the weights or both, is counted where it comes first.
    sizes = [each.numel() for each in module._parameters.values() if each is not None]
    counts = {sum(sizes), max(sizes, default=0), sum(sizes) - sum(_encoded_sizes(module)), 0}
    if type(module).__name__ != decision.type or decision.parameters not in counts:
        raise ModelError(
            f"the plan is for another model: {module_text(decision.name)} is a {type(module).__name__} of "
            f"{sum(sizes):,} parameters here, a {decision.type} of {decision.parameters:,} in the plan",
            remedy=remedy,
        )


def _encoded_sizes(module: nn.Module) -> Iterator[int]:
    parameters = (module._parameters.get(name) for name in encoded_names(module))
    return (each.numel() for each in parameters if each is not None)


def _check_replaceable(module: nn.Module, name: str, *, offloads: bool) -> None:
    kind, weight = type(module).__name__, cast(torch.Tensor, getattr(module, encoded_names(module)[0]))
    if not name:
        raise ModelError(
            f"the model itself is a {kind}, which has no parent to be replaced in",
            remedy="wrap it: nn.Sequential(model)",
        )
    if type(weight) not in {nn.Parameter, torch.Tensor}:
        raise ModelError(
            f"`{name}`: its weight is a {type(weight).__name__}, not a plain parameter",
            remedy="apply the rules before the model is sharded or quantized by other means",
        )
    if offloads and weight.device.type == "meta":
        raise ModelError(
            f"`{name}`: its weight is offloaded by accelerate, so it is not there to be encoded",
            remedy="load the model without offloading to the CPU or the disk",
        )
    if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
        raise ModelError(
            f"`{name}`: its `forward` was replaced on the instance, which a quantized layer would drop",
            remedy="apply the rules before that, or skip the module with a reason",
        )


def _offloads(module: nn.Module) -> bool:
    """Whether accelerate keeps the weights of a module, or of those inside it, elsewhere between forward passes."""
    hook: Any = getattr(module, "_hf_hook", None)
    return any(getattr(each, "offload", False) for each in getattr(hook, "hooks", (hook,)))


def _fill(swap: _Swap, filled: dict[int, nn.Module]) -> None:
    """Encode the weights of a module; `filled` is what took those that came before, by the id of the parameter.

    An id is not used again before all modules that have the parameter are replaced.
    """
    kind = kind_of(swap.module)
    for part in swap.parts():
        twin = filled.setdefault(part.parameter, part.target)
        if twin is not part.target:
            cast(SharingFactory, swap.factory).share(twin, part.target)
            continue
        if part.weight.device.type == "meta":
            continue
        with _naming(part.name):
            if kind == "experts":
                factory = cast(ExpertsFactory, swap.factory)
                shape, dtype = part.weight.shape, part.weight.dtype
                encoded = factory.encode_experts(part.weight.unbind(), shape, dtype, swap.scheme)
            else:
                encoded = swap.factory.encode(part.weight, kind, swap.scheme)
        swap.factory.attach(part.target, encoded)


def encoded_names(module: nn.Module) -> tuple[str, ...]:
    """The parameters of a module that are encoded: the weight of a layer, or all fused parameters of experts."""
    return expert_parameters(module) or ("weight",)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say of which module a weight is."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"`{name}`: {error.message}", remedy=error.remedy) from error


def _put(module: nn.Module, layer: nn.Module, places: dict[int, list[_Place]]) -> None:
    """Put a layer wherever the module was, with what is attached to it."""
    for attribute in _HOOKS:
        # The same dictionary, so that the handles that users hold still remove their hooks.
        hooks = getattr(module, attribute)
        hooks.update(getattr(layer, attribute))
        setattr(layer, attribute, hooks)
    layer._is_full_backward_hook = module._is_full_backward_hook
    for name in module._non_persistent_buffers_set - layer._buffers.keys():  # the others are the scheme's to refuse
        layer.register_buffer(name, module._buffers[name], persistent=False)
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(layer, hook)
    for place in places[id(module)]:
        place.holder[place.key] = layer


def _places(model: nn.Module) -> dict[int, list[_Place]]:
    """Every place where each module is held."""
    places: dict[int, list[_Place]] = {}
    for parent in model.modules():
        for place in _held_by(parent):
            places.setdefault(id(place.holder[place.key]), []).append(place)
    return places


def _held_by(parent: nn.Module) -> Iterator[_Place]:
    """Where a module holds others: as children, and in lists and dictionaries of its own.

    Mask2Former goes through a list of the layers that it has registered one by one.
    """
    own = [each for name, each in vars(parent).items() if name not in _OF_EVERY_MODULE]
    for holder in (parent._modules, *(each for each in own if isinstance(each, list | dict))):
        pairs = holder.items() if isinstance(holder, dict) else enumerate(holder)
        yield from (_Place(holder, key) for key, child in pairs if isinstance(child, nn.Module))
