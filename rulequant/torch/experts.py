"""Fused experts: modules that hold the weights of all experts of a layer in three-dimensional parameters.

A quantized layer keeps the module's own class and eager forward; only its parameters become `ExpertWeights`, which
dequantize the one expert that `self.gate_up_proj[expert]` asks for. So every layout ([E, 2I, H], [E, in, out], with
biases, with whatever activation) stays the business of the class that defines it.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from torch import Tensor, nn

from rulequant.torch.class_source import class_definition, self_path, working_methods
from rulequant.torch.derived import copy_as, derived_class
from rulequant.torch.expert_weights import ExpertWeights, forward_of_experts

__all__ = ["ExpertWeights", "expert_parameters", "restore_parameters", "swap_parameters"]

_METADATA = frozenset({"shape", "dtype", "device", "ndim", "size"})
"""What `ExpertWeights` can tell without dequantizing."""


def expert_parameters(module: nn.Module) -> tuple[str, ...]:
    """The names of a module's fused expert parameters, if its forward takes them one expert at a time; else none.

    They are three-dimensional. They need not agree in the number of experts: LongCat's zero experts, which pass their
    input on, have rows in one of its two parameters.
    """
    fused = frozenset(name for name, each in module._parameters.items() if each is not None and each.ndim == 3)
    if not fused or not _taken_one_by_one(cast(Any, type(module)), fused):
        return ()
    return tuple(name for name in module._parameters if name in fused)


@cache
def _taken_one_by_one(owner: Any, names: frozenset[str]) -> bool:
    """Whether the code of a class does no more with the parameters than `ExpertWeights` can serve."""
    definition = class_definition(owner)
    if definition is None:
        return False
    used: set[str] = set()
    served: set[int] = set()
    reads: list[ast.Attribute] = []
    for method in working_methods(definition):
        for node in ast.walk(method):
            served |= _served(node)
            if isinstance(node, ast.Attribute) and self_path(node) in names:
                reads.append(node)
                used.add(node.attr)
    return used == names and all(id(each) in served for each in reads)


def _served(node: ast.AST) -> set[int]:
    """The expressions inside a node that stand where `ExpertWeights` may stand."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Name | ast.Attribute | ast.Constant):
        return {id(node.value)}
    if isinstance(node, ast.Attribute) and node.attr in _METADATA:
        return {id(node.value)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "bmm":
        return {id(each) for each in node.args[1:2]}
    if isinstance(node, ast.Compare) and all(isinstance(each, ast.Is | ast.IsNot) for each in node.ops):
        return {id(node.left)}  # `is None`, which neither a parameter nor what replaces it is
    return set()


def swap_parameters(module: nn.Module, weights: Mapping[str, ExpertWeights]) -> nn.Module:
    """A copy of a module with some parameters replaced and its own eager forward; the original is unchanged."""
    swapped = copy_as(module, _eager_class(cast(Any, type(module))))
    for name, each in weights.items():
        del swapped._parameters[name]
        swapped._modules[name] = each.train(module.training)
    return swapped


def restore_parameters(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The reverse of `swap_parameters`: a copy with parameters again, and the forward of the original class."""
    restored = copy_as(module, cast(Any, type(module)).rulequant_base)
    for name, each in tensors.items():
        del restored._modules[name]
        restored._parameters[name] = nn.Parameter(each, requires_grad=False)
    return restored


@cache
def _eager_class(owner: Any) -> Any:
    """A subclass of the same name whose forward is the eager one.

    transformers dispatches to grouped kernels, which want the fused parameter as a whole.
    """
    eager = forward_of_experts(getattr(owner.forward, "__wrapped__", owner.forward))
    return derived_class(owner, (owner,), {"forward": eager, "rulequant_base": owner}, (_eager_class, owner))
