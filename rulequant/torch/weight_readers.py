"""Which modules have their `.weight` read by their parent's code, which a quantized layer cannot serve.

Mamba's mixer computes with `self.dt_proj.weight`, `nn.MultiheadAttention` hands `self.out_proj.weight` to a kernel:
after a swap that is a packed byte tensor. Swin v2 casts a table to the dtype of the first of `self.….parameters()`, and
it becomes one of bytes. The reads are found in the source of the parent's class, also where a local variable stands
for the layer. A read under an `if` that is false for the module as it is configured (Bloom's `slow_but_exact`), that
asks for training, or that knows of packed weights itself (`!= torch.uint8`, or RWKV's `hasattr(weight, "quant_state")`)
does no harm and does not count.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from torch import nn

from rulequant.torch.class_source import class_definition, working_methods
from rulequant.torch.local_names import Names, local_names, paths

__all__ = ["weight_reads"]

_HARMLESS = frozenset({"device", "is_cuda", "requires_grad"})
"""What may be asked of a packed weight and still be right."""
_PACKED = frozenset({"SCB", "quant_state"})
"""What the weights of bitsandbytes' layers have."""
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip
_UNKNOWN = object()
_FIRST = "next(parameters())"
"""The end of a path to whatever holds the first parameter there."""


class _Read(NamedTuple):
    """`self.<path>.weight` is read in `<method>` where all guards hold."""

    path: str
    method: str
    guards: tuple[ast.expr, ...]


class _Source(NamedTuple):
    """What the source of one class says."""

    reads: tuple[_Read, ...] = ()
    extends: frozenset[str] = frozenset()
    """The methods that call `super()`, and so run the inherited method too."""


def weight_reads(module: nn.Module) -> dict[str, str]:
    """The children whose weight a module's class reads, as {path: "Class.method"}; none where it has no source.

    In a path `*` stands for any child: of `self.layers[i].weight` nobody knows `i`.
    """
    found: dict[str, str] = {}
    overridden: set[str] = set()
    for owner in type(module).__mro__:
        if owner is nn.Module:
            break
        source = _source(owner)
        for read in source.reads:
            if read.method not in overridden and all(_may_hold(guard, module) for guard in read.guards):
                found.setdefault(_resolved(read.path, module), f"{owner.__name__}.{read.method}")
        overridden |= vars(owner).keys() - source.extends
    return found


def _resolved(path: str, module: nn.Module) -> str:
    """A path that asks for the first parameter below a module, with the place of that parameter."""
    path, asked, _ = path.partition(f".{_FIRST}")
    if not asked:
        return path
    try:
        first = next(module.get_submodule(path).named_parameters(), None)
    except AttributeError:  # not there as the module is configured
        first = None
    return f"{path}.{first[0]}".rpartition(".")[0] if first else path


@cache
def _source(owner: type) -> _Source:
    node = class_definition(owner)
    return _Source(tuple(_class_reads(node)), frozenset(_extending(node))) if node else _Source()


def _class_reads(node: ast.ClassDef) -> Iterator[_Read]:
    for method in working_methods(node):
        for path, guards in _reads(method, (), local_names(method)):
            yield _Read(path, method.name, guards)


def _extending(node: ast.ClassDef) -> Iterator[str]:
    for method in (each for each in node.body if isinstance(each, ast.FunctionDef)):
        if any(isinstance(each, ast.Name) and each.id == "super" for each in ast.walk(method)):
            yield method.name


def _reads(node: ast.AST, guards: tuple[ast.expr, ...], names: Names) -> Iterator[tuple[str, tuple[ast.expr, ...]]]:
    """The reads below a node, each with the conditions under which it is reached."""
    if isinstance(node, ast.If | ast.IfExp):
        if _knows_packed_weights(node.test):
            return
        body = node.body if isinstance(node.body, list) else [node.body]
        orelse = node.orelse if isinstance(node.orelse, list) else [node.orelse]
        yield from _reads(node.test, guards, names)
        for each in body:
            yield from _reads(each, (*guards, node.test), names)
        for each in orelse:
            yield from _reads(each, (*guards, ast.UnaryOp(ast.Not(), node.test)), names)
        return
    if isinstance(node, ast.Attribute) and node.attr in _HARMLESS:
        return
    if isinstance(node, ast.Attribute) and node.attr == "weight" and isinstance(node.ctx, ast.Load):
        yield from ((path, guards) for path in paths(node.value, names))
    yield from ((path, guards) for path in _first_parameters(node, names))
    for child in ast.iter_child_nodes(node):
        yield from _reads(child, guards, names)


def _first_parameters(node: ast.AST, names: Names) -> Iterator[str]:
    """The paths for `next(self.a.parameters())`; of a module's own parameters nobody knows which is the first."""
    match node:
        case ast.Call(func=ast.Name("next"), args=[ast.Call(func=ast.Attribute(value, "parameters")), *_]):
            yield from (f"{path}.{_FIRST}" for path in paths(value, names))


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
    """Whether a condition can be true for this module; yes where it depends on more than its settings."""
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
