"""Which modules have their `.weight` read by their parent's code, which a quantized layer cannot serve.

Mamba's mixer computes with `self.dt_proj.weight`, `nn.MultiheadAttention` hands `self.out_proj.weight` to a kernel:
after a swap that is a packed byte tensor. The reads are found in the source of the parent's class. A read under an `if`
that is false for the module as it is configured (Bloom's `slow_but_exact`), that asks for training, or that knows of
packed weights itself (`!= torch.uint8`) does no harm and does not count.
"""

from __future__ import annotations

import ast
import inspect
import operator
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from torch import nn

__all__ = ["weight_reads"]

_NOT_FORWARD = ("init", "reset_parameters", "tie_weights")
"""Parts of the names of methods that set a model up and never see a quantized layer."""
_HARMLESS = frozenset({"device", "is_cuda", "requires_grad"})
"""What may be asked of a packed weight and still be right."""
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip
_UNKNOWN = object()


class _Read(NamedTuple):
    """`self.<path>.weight` is read in `<method>` where all guards hold."""

    path: str
    method: str
    guards: tuple[ast.expr, ...]


def weight_reads(module: nn.Module) -> dict[str, str]:
    """The children whose weight a module's class reads, as {path: "Class.method"}; none where it has no source."""
    found: dict[str, str] = {}
    overridden: set[str] = set()
    for owner in type(module).__mro__:
        if owner is nn.Module:
            break
        for read in _reads_by_class(owner.__module__).get(owner.__qualname__, ()):
            if read.method not in overridden and all(_may_hold(guard, module) for guard in read.guards):
                found.setdefault(read.path, f"{owner.__name__}.{read.method}")
        overridden |= set(vars(owner))
    return found


@cache
def _reads_by_class(module_name: str) -> dict[str, tuple[_Read, ...]]:
    module = sys.modules.get(module_name)
    try:
        tree = ast.parse(inspect.getsource(module)) if module else None
    except (OSError, TypeError, SyntaxError):
        return {}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)] if tree else []
    return {node.name: tuple(_class_reads(node)) for node in classes}


def _class_reads(node: ast.ClassDef) -> Iterator[_Read]:
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and not any(each in method.name for each in _NOT_FORWARD):
            for path, guards in _reads(method, ()):
                yield _Read(path, method.name, guards)


def _reads(node: ast.AST, guards: tuple[ast.expr, ...]) -> Iterator[tuple[str, tuple[ast.expr, ...]]]:
    """The reads below a node, each with the conditions under which it is reached."""
    if isinstance(node, ast.If | ast.IfExp):
        if _knows_packed_weights(node.test):
            return
        body = node.body if isinstance(node.body, list) else [node.body]
        orelse = node.orelse if isinstance(node.orelse, list) else [node.orelse]
        yield from _reads(node.test, guards)
        for each in body:
            yield from _reads(each, (*guards, node.test))
        for each in orelse:
            yield from _reads(each, (*guards, ast.UnaryOp(ast.Not(), node.test)))
        return
    if isinstance(node, ast.Attribute) and node.attr in _HARMLESS:
        return
    if isinstance(node, ast.Attribute) and node.attr == "weight" and isinstance(node.ctx, ast.Load):
        path = _path(node.value)
        if path:
            yield path, guards
    for child in ast.iter_child_nodes(node):
        yield from _reads(child, guards)


def _knows_packed_weights(test: ast.expr) -> bool:
    return any(isinstance(each, ast.Attribute) and each.attr == "uint8" for each in ast.walk(test))


def _path(node: ast.expr) -> str | None:
    """`a.b` for the expression `self.a.b`."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id == "self" and parts:
        return ".".join(reversed(parts))
    return None


def _may_hold(guard: ast.expr, module: nn.Module) -> bool:
    """Whether a condition can be true for this module; yes where it depends on more than its settings."""
    value = _evaluate(guard, module)
    return value is _UNKNOWN or bool(value)


def _evaluate(node: ast.expr, module: nn.Module) -> Any:
    """The value of an expression of settings (`self.name`, numbers, comparisons), or `_UNKNOWN`."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Attribute():
            return _setting(_path(node), module)
        case ast.UnaryOp(op=ast.Not()):
            value = _evaluate(node.operand, module)
            return value if value is _UNKNOWN else not value
        case ast.BoolOp():
            return _combine(node, module)
        case ast.Compare(ops=[comparison]) if type(comparison) in _COMPARISONS:
            sides = [_evaluate(each, module) for each in (node.left, node.comparators[0])]
            return _UNKNOWN if _UNKNOWN in sides else _COMPARISONS[type(comparison)](*sides)
        case _:
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
