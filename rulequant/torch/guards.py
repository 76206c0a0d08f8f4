"""The parts of a method that may run for a module, with the conditions around them.

What stands under an `if` that is false for the module as it is configured (Bloom's `slow_but_exact`), that asks for
training, or that knows of packed weights itself (`!= torch.uint8`, or RWKV's `hasattr(weight, "quant_state")`), does
not run, or does no harm.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from rulequant.torch.local_names import paths

__all__ = ["Guards", "guarded", "may_hold"]

Guards = tuple[ast.expr, ...]
_HARMLESS = frozenset({"device", "is_cuda", "requires_grad"})
"""What may be asked of a packed weight and still be right."""
_PACKED = frozenset({"SCB", "quant_state"})
"""What the weights of bitsandbytes' layers have."""
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip
_UNKNOWN = object()


def guarded(node: ast.AST, guards: Guards = ()) -> Iterator[tuple[ast.AST, Guards]]:
    """A node and all below it, each with the conditions under which it is reached."""
    if isinstance(node, ast.If | ast.IfExp):
        if _knows_packed_weights(node.test):
            return
        body = node.body if isinstance(node.body, list) else [node.body]
        orelse = node.orelse if isinstance(node.orelse, list) else [node.orelse]
        yield from guarded(node.test, guards)
        for each in body:
            yield from guarded(each, (*guards, node.test))
        for each in orelse:
            yield from guarded(each, (*guards, ast.UnaryOp(ast.Not(), node.test)))
        return
    if isinstance(node, ast.Attribute) and node.attr in _HARMLESS:
        return
    yield node, guards
    for child in ast.iter_child_nodes(node):
        yield from guarded(child, guards)


def may_hold(guards: Guards, module: nn.Module) -> bool:
    """Whether all conditions can be true for this module; yes where one depends on more than its settings."""
    return all(_may_hold(each, module) for each in guards)


def _knows_packed_weights(test: ast.expr) -> bool:
    """Whether a condition asks if a weight is uint8, or is one of bitsandbytes; an input may be uint8, too."""
    return any(_asks_for_packed(each) for each in ast.walk(test))


def _asks_for_packed(node: ast.AST) -> bool:
    match node:
        case ast.Compare():
            return {"weight", "uint8"} <= _attributes(node)
        case ast.Call(func=ast.Name("hasattr"), args=[ast.Attribute(attr="weight"), ast.Constant(value=name)]):
            return name in _PACKED
        case _:
            return False


def _attributes(node: ast.expr) -> set[str]:
    return {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}


def _may_hold(guard: ast.expr, module: nn.Module) -> bool:
    value = _evaluate(guard, module)
    return value is _UNKNOWN or bool(value)


def _evaluate(node: ast.expr, module: nn.Module) -> Any:
    """The value of an expression of settings (`self.name`, numbers, comparisons), or `_UNKNOWN`."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Attribute():
            return _setting(next(paths(node, {}), None), module)
        case ast.UnaryOp(op=ast.Not()):
            value = _evaluate(node.operand, module)
            return value if value is _UNKNOWN else not value
        case ast.BoolOp():
            return _combine(node, module)
        case ast.Compare(ops=[comparison]) if type(comparison) in _COMPARISONS:
            return _compare(comparison, _evaluate(node.left, module), _evaluate(node.comparators[0], module))
        case _:
            return _UNKNOWN


def _compare(comparison: ast.cmpop, left: Any, right: Any) -> Any:
    if left is _UNKNOWN or right is _UNKNOWN:
        return _UNKNOWN
    try:
        return _COMPARISONS[type(comparison)](left, right)
    except TypeError:  # a setting that may be None, and is asked elsewhere whether it is
        return _UNKNOWN


def _combine(node: ast.BoolOp, module: nn.Module) -> Any:
    values = [_evaluate(each, module) for each in node.values]
    deciding = isinstance(node.op, ast.Or)
    if any(each is not _UNKNOWN and bool(each) is deciding for each in values):
        return deciding
    return _UNKNOWN if _UNKNOWN in values else not deciding


def _setting(path: str | None, module: nn.Module) -> Any:
    """A plain value held by the module; whatever else may change between now and the forward pass."""
    if path == "training":  # a quantized layer is frozen: fused training kernels are not its use
        return False
    value: Any = vars(module).get(path, _UNKNOWN) if path else _UNKNOWN
    return value if value is None or isinstance(value, bool | int | float | str) else _UNKNOWN
