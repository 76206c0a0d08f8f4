"""Encoded weights on their way from a checkpoint into the layers of a model, by the keys that they have there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from rulequant.schemes import Scheme
from rulequant.torch.checkpoint.keys import prefix_forms
from rulequant.torch.expert_weights import ExpertWeights
from rulequant.torch.factories import factory_for
from rulequant.torch.standins import StandIn
from rulequant.torch.submodules import submodule

__all__ = ["encoded_weights", "initialized"]


def encoded_weights(hf_quantizer: Any, model: Any, names: tuple[str, ...]) -> list[Any]:
    """What a loader has to do first, and in this order; `names` are those of tensors inside an encoded layer.

    Of several converters that match a key it takes the first. The quantizer knows the `schemes` of the model's modules,
    and which of these are `twins`.
    """
    schemes: Mapping[str, Scheme] = hf_quantizer.schemes
    prefix, written = str(getattr(model, "base_model_prefix", "") or ""), _WrittenName()
    layers = frozenset(form for name in _encoded_layers(model, schemes) for form in prefix_forms(name, prefix))
    tensors = frozenset(form for name in _tensors(model) for form in prefix_forms(name, prefix))
    return [written, _EncodedWeights(_Keys(hf_quantizer, names, layers, tensors, written))]


def initialized(layer: Any) -> Tensor:
    """The weight of a layer, marked so that transformers does not draw it anew when it initializes what is missing."""
    # Subclasses of embeddings have more than a weight: buffers that are not in a checkpoint, and are filled then.
    marked: Any = layer.weight if isinstance(layer, StandIn) else layer
    marked._is_hf_initialized = True
    return cast(Tensor, layer.weight)


class _Attach(ConversionOps):  # type: ignore[misc]
    """The tensors of an encoded weight become the parameter of its layer."""

    def __init__(self, hf_quantizer: Any) -> None:
        """By an attribute of that name transformers knows not to cast what the operation is given."""
        self.hf_quantizer = hf_quantizer

    def convert(
        self, input_dict: dict[str, Any], model: Any = None, full_layer_name: str | None = None, **_: Any
    ) -> dict[str, Any]:
        name = cast(str, full_layer_name).rpartition(".")[0]
        # The weights of fused experts are children of the module that the scheme is for.
        schemes: Mapping[str, Scheme] = self.hf_quantizer.schemes
        scheme = schemes.get(name) or schemes.get(name.rpartition(".")[0])
        if scheme is None:
            return input_dict
        encoded = {key: value[0] if isinstance(value, list) else value for key, value in input_dict.items()}
        layer = submodule(model, name)
        factory_for(scheme.method).attach(layer, encoded)
        module, child = (name, "") if name in schemes else name.rpartition(".")[::2]
        self.hf_quantizer.twins.share(model, module, child)
        return {"weight": initialized(layer)}


class _WrittenName(WeightRenaming):  # type: ignore[misc]
    """Remembers the name that a tensor has in the file: it is the first to be asked, and the others rename that."""

    def __init__(self) -> None:
        """Nothing is remembered yet."""
        super().__init__("", "")
        self.name = ""

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """The name as it is."""
        self.name = source_key
        return source_key, None


@dataclass(frozen=True)
class _Keys:
    """What the keys of a checkpoint are told apart by; those of a model with and without the base model's prefix."""

    hf_quantizer: Any
    names: tuple[str, ...]
    """Of tensors inside a layer."""
    layers: frozenset[str]
    """Keys up to there."""
    tensors: frozenset[str]
    """The keys of all tensors of the model."""
    written: _WrittenName

    def part(self, key: str) -> tuple[str, str | None]:
        """The parameter that a tensor is a part of, and which part; the key alone where it is none."""
        for name in self.names:
            layer = key.removesuffix(f".{name}")
            if layer != key and layer in self.layers:
                return f"{layer}.weight", name
        return key, None


class _EncodedWeights(WeightConverter):  # type: ignore[misc]
    """The tensors of one encoded weight become one parameter; those of weights that are as they were are not touched.

    A converter of the model may be waiting for them: Kimi Linear's makes one convolution of three.
    """

    def __init__(self, keys: _Keys) -> None:
        """One for all weights, until transformers copies it for each."""
        super().__init__(list(keys.names), "weight", [_Attach(keys.hf_quantizer)])
        self.keys = keys

    def __deepcopy__(self, memo: dict[int, Any]) -> _EncodedWeights:
        """A converter for one more weight."""
        del memo
        return _EncodedWeights(self.keys)

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """The parameter that a tensor is a part of, and which part; the key alone where it is none.

        Renamings that are not made for what quantized weights have behind their names may spoil them, as Inkling's do:
        where the renamed key is nothing that the model has, that in the file may be.
        """
        found = self.keys.part(source_key)
        if found[1] is not None or source_key in self.keys.tensors:
            return found
        found = self.keys.part(self.keys.written.name)
        return found if found[1] is not None else (source_key, None)


def _encoded_layers(model: Any, schemes: Mapping[str, Scheme]) -> set[str]:
    """The names of all encoded weights without `.weight`."""
    names: set[str] = set()
    for name in schemes:
        children = submodule(model, name).named_children()
        fused = [f"{name}.{child}" for child, module in children if isinstance(module, ExpertWeights)]
        names |= set(fused or [name])
    return names


def _tensors(model: Any) -> list[str]:
    """The names of all parameters and buffers; a state dict would have layers on meta say what they do not know."""
    return [name for kind in (model.named_parameters, model.named_buffers) for name, _ in kind(remove_duplicate=False)]
