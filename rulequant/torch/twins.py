"""Layers of a model of transformers that share an encoded weight, from the skeleton on to what is saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

from torch import nn

from rulequant.schemes import Scheme
from rulequant.ties import find_ties
from rulequant.torch.experts import ExpertWeights
from rulequant.torch.factories import SharingFactory, factory_for
from rulequant.torch.inspect import inspect_model
from rulequant.torch.submodules import submodule

__all__ = ["Twins", "keep_biases", "tied_as_loaded"]


class Twins:
    """The quantized modules that share their weights with others, of which a checkpoint holds one."""

    def __init__(self, groups: Mapping[str, tuple[str, ...]], schemes: Mapping[str, Scheme]) -> None:
        """`groups` are those of `find_ties`, for modules of which the `schemes` are known."""
        self._groups = {name: group for name, group in groups.items() if name in schemes}
        self._schemes = schemes
        self._tied_keys: dict[str, str] | None = None

    @classmethod
    def of(cls, model: Any, schemes: Mapping[str, Scheme]) -> Twins:
        """Those of a skeleton before its layers are replaced."""
        with tied_as_loaded(model):
            parameters = [(name, id(each)) for name, each in model.named_parameters(remove_duplicate=False)]
            uses = Counter(each for _, each in parameters)
            if not any(uses[each] > 1 and name.rpartition(".")[0] in schemes for name, each in parameters):
                return cls({}, schemes)  # nearly always, and much sooner than by the inventory
            return cls(find_ties(inspect_model(model)).twins, schemes)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._groups)

    def first(self, name: str) -> str:
        """The first of a module and those that share its weights."""
        return self._groups.get(name, (name,))[0]

    def others(self, name: str) -> tuple[str, ...]:
        """Those that share the weights of a module."""
        return tuple(each for each in self._groups.get(name, ()) if each != name)

    def share(self, model: Any, name: str, child: str = "") -> None:
        """Let all others have the encoded weight of a layer; of fused experts that of one parameter, `child`."""
        if others := self.others(name):
            _turn(model, f"{name}.{child}.weight" if child else f"{name}.weight")
            factory = cast(SharingFactory, factory_for(self._schemes[name].method))
            inner = f".{child}" if child else ""
            for other in others:
                factory.share(submodule(model, f"{name}{inner}"), submodule(model, f"{other}{inner}"))

    def rename(self, model: Any) -> None:
        """Let transformers know the ties of fused experts by what their weights are called once encoded."""
        keys: dict[str, str] = model.all_tied_weights_keys if self._groups else {}
        experts = {name for name, each in model.named_modules() if isinstance(each, ExpertWeights)}
        if experts.isdisjoint(keys):
            return
        self._tied_keys = keys
        names = {name: f"{name}.weight" for name in experts}
        model.all_tied_weights_keys = {names.get(a, a): names.get(b, b) for a, b in keys.items()}

    def saved(self, model: Any) -> dict[str, Any] | None:
        """The state dict without what belongs to a shared weight, but for one of the layers; None: all of it."""
        if not self._groups:
            return None
        extra = {key for name in self._copies(model) for key in self._keys(model, name)}
        return {key: each for key, each in model.state_dict().items() if key not in extra}

    def tie_plain(self, model: Any) -> None:
        """Tie the weights and biases again, after the layers were replaced by plain ones."""
        if self._tied_keys is not None:
            model.all_tied_weights_keys, self._tied_keys = self._tied_keys, None
        vars(model).pop("tie_weights", None)
        if self._groups:
            model.tie_weights(recompute_mapping=False)

    def _copies(self, model: Any) -> Iterator[str]:
        """All but the one of each group that transformers' own files hold: the source of the ties."""
        targets = {name.rpartition(".")[0] for name in model.all_tied_weights_keys}
        for group in set(self._groups.values()):
            kept = next((each for each in group if targets.isdisjoint(_encoded(model, each))), group[0])
            yield from (each for each in group if each != kept)

    def _keys(self, model: Any, name: str) -> Iterator[str]:
        tensors = factory_for(self._schemes[name].method).tensor_names
        yield from (f"{layer}.{tensor}" for layer in _encoded(model, name) for tensor in tensors)


def _turn(model: Any, name: str) -> None:
    """Tie others to the weight that is there: what transformers ties them to it draws at random where it is not."""
    keys: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    if source := keys.pop(name, None):
        keys |= {each: name for each, other in keys.items() if other == source} | {source: name}


def keep_biases(model: Any) -> None:
    """Undo what transformers did to biases as it tied encoded weights, and will do again: see `tie_weights`."""
    if hasattr(model, "tie_weights"):
        _trim_biases(model)
        model.tie_weights = MethodType(tie_weights, model)


def tie_weights(self: Any, *arguments: Any, **options: Any) -> None:
    """What a model whose layers share encoded weights has in place of transformers' method of this name.

    That one fills biases up with zeros to as many values as the weight has rows, and packed ones have many.
    """
    type(self).tie_weights(self, *arguments, **options)
    _trim_biases(self)


def _trim_biases(model: nn.Module) -> None:
    for layer in model.modules():
        bias, size = layer._parameters.get("bias"), getattr(layer, "out_features", None)
        if isinstance(size, int) and bias is not None and len(bias) > size:
            bias.data = bias.data[:size].clone()


def _encoded(model: nn.Module, name: str) -> list[str]:
    """What holds the encoded weights of a module: itself, or of fused experts a child for each parameter."""
    children = submodule(model, name).named_children()
    return [f"{name}.{child}" for child, each in children if isinstance(each, ExpertWeights)] or [name]


@contextmanager
def tied_as_loaded(model: Any) -> Iterator[None]:
    """The skeleton with the ties that the loader makes last, when all weights are there."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for target, source in getattr(model, "all_tied_weights_keys", {}).items():
            module, _, name = target.rpartition(".")
            parameters = submodule(model, module)._parameters
            if name in parameters:
                before.append((parameters, name, parameters[name]))
                parameters[name] = model.get_parameter(source)
        yield
    finally:
        for parameters, name, parameter in reversed(before):
            parameters[name] = parameter
