"""Quantized layers back to plain ones, with the weights that they stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rulequant.schemes import Scheme
from rulequant.torch.experts import ExpertWeights, restore_parameters
from rulequant.torch.factories import factory_for
from rulequant.torch.standins import StandIn, original_of

__all__ = ["plain_layer"]


def plain_layer(module: nn.Module, scheme: Scheme, dtype: torch.dtype | None) -> nn.Module:
    """The dequantized layer: a Linear, experts with parameters, or the class that a stand-in was made of.

    By default it has the dtype of the decoded weights, for experts and stand-ins that which the weight had.
    """
    if isinstance(module, StandIn):
        return original_of(module, module.decoded().to(dtype or module.plain_dtype))
    return _plain_experts(module, scheme, dtype) or _plain_linear(module, scheme, dtype)


def _plain_experts(module: nn.Module, scheme: Scheme, dtype: torch.dtype | None) -> nn.Module | None:
    """The experts with their parameters in full precision again; None for what is no quantized experts."""
    weights = {name: each for name, each in module.named_children() if isinstance(each, ExpertWeights)}
    if not weights:
        return None
    decoded = {
        name: factory_for(scheme.method).decode(dict(each.state_dict()), "experts") for name, each in weights.items()
    }
    return restore_parameters(module, {name: each.to(dtype or weights[name].dtype) for name, each in decoded.items()})


def _plain_linear(layer: Any, scheme: Scheme, dtype: torch.dtype | None) -> nn.Linear:
    """A plain Linear ([out, in], for what was a `Conv1D` too) with the weight that the layer stands for."""
    state = {key: value for key, value in layer.state_dict().items() if key != "bias"}
    weight = factory_for(scheme.method).decode(state, "linear")
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain.weight = nn.Parameter(weight.to(dtype) if dtype else weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.to(dtype) if dtype else layer.bias, requires_grad=False)
    return plain.train(layer.training)
