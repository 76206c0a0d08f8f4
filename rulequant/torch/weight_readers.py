"""Which modules have their `.weight` read by their parent's code, which a quantized layer cannot serve.

Mamba's mixer computes with `self.dt_proj.weight`, `nn.MultiheadAttention` hands `self.out_proj.weight` to a kernel:
after a swap that is a packed byte tensor. Swin v2 casts a table to the dtype of the first of `self.….parameters()`, and
it becomes one of bytes. The reads are found in the source of the parent's class, also where a local variable stands
for the layer, or where the layer is handed on: DeBERTa's `self.lm_head(hidden, self.embeddings)`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from torch import nn

from rulequant.torch.class_source import class_definition, working_methods
from rulequant.torch.guards import Guards, guarded, may_hold
from rulequant.torch.local_names import Names, local_names, paths

__all__ = ["weight_reads"]

_FIRST = "next(parameters())"
"""The end of a path to whatever holds the first parameter there."""
_HANDED = "(handed)"
"""What a parameter stands for in whose place a module was handed; no path looks like it."""
_DEEPEST = 4
"""Through how many calls a module is followed."""


class _Read(NamedTuple):
    """`self.<path>.weight` is read in `<method>` where all guards hold."""

    path: str
    method: str
    guards: Guards


class _Handed(NamedTuple):
    """`self.<path>` is the argument at a place of a call of `self.<callee>`, in `<method>` where all guards hold."""

    path: str
    callee: str
    place: int | str
    method: str
    guards: Guards


class _Source(NamedTuple):
    """What the source of one class says."""

    reads: tuple[_Read, ...] = ()
    handed: tuple[_Handed, ...] = ()
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
            if read.method not in overridden and may_hold(read.guards, module):
                found.setdefault(_resolved(read.path, module), f"{owner.__name__}.{read.method}")
        for call in source.handed:
            is_module = call.path.partition(".")[0] in module._modules
            if is_module and call.method not in overridden and may_hold(call.guards, module):
                reader = _reader(module, call.callee, call.place, _DEEPEST)
                if reader:
                    found.setdefault(call.path, reader)
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
    if node is None:
        return _Source()
    reads, handed = [], []
    for method in working_methods(node):
        names = local_names(method)
        reads += [_Read(path, method.name, guards) for path, guards in _reads(method, names)]
        handed += [
            _Handed(path, callee, place, method.name, guards) for path, callee, place, guards in _handed(method, names)
        ]
    return _Source(tuple(reads), tuple(handed), frozenset(_extending(node)))


def _extending(node: ast.ClassDef) -> Iterator[str]:
    for method in (each for each in node.body if isinstance(each, ast.FunctionDef)):
        if any(isinstance(each, ast.Name) and each.id == "super" for each in ast.walk(method)):
            yield method.name


def _reads(method: ast.FunctionDef, names: Names) -> Iterator[tuple[str, Guards]]:
    """The paths of which the weight is read."""
    for node, guards in guarded(method):
        if isinstance(node, ast.Attribute) and node.attr == "weight" and isinstance(node.ctx, ast.Load):
            yield from ((path, guards) for path in paths(node.value, names))
        yield from ((path, guards) for path in _first_parameters(node, names))


def _first_parameters(node: ast.AST, names: Names) -> Iterator[str]:
    """The paths for `next(self.a.parameters())`; of a module's own parameters nobody knows which is the first."""
    match node:
        case ast.Call(func=ast.Name("next"), args=[ast.Call(func=ast.Attribute(value, "parameters")), *_]):
            yield from (f"{path}.{_FIRST}" for path in paths(value, names))


def _handed(method: ast.FunctionDef, names: Names) -> Iterator[tuple[str, str, int | str, Guards]]:
    """(path, path of what is called, place of the argument, guards) of all arguments that are parts of `self`."""
    for node, guards in guarded(method):
        if isinstance(node, ast.Call):
            arguments: list[tuple[int | str, ast.expr]] = [*enumerate(node.args)]
            arguments += [(each.arg, each.value) for each in node.keywords if each.arg]
            for callee in paths(node.func, names):
                yield from ((path, callee, place, guards) for place, each in arguments for path in paths(each, names))


def _reader(module: nn.Module, callee: str, place: int | str, deepest: int) -> str | None:
    """The method, as "Class.method", that reads the weight of what is handed to a call; None where none does."""
    target, name = _called(module, callee)
    kind: Any = type(target)
    found = _definition(kind, name)
    if found is None or target is None or deepest == 0:
        return None
    owner, method = found
    parameter = _parameter(method, place)
    if parameter is None:
        return None
    names = local_names(method, {parameter: frozenset({_HANDED})})
    if any(path == _HANDED and may_hold(guards, target) for path, guards in _reads(method, names)):
        return f"{owner}.{name}"
    further = (each for each in _handed(method, names) if each[0] == _HANDED and may_hold(each[3], target))
    readers = (_reader(target, inner, at, deepest - 1) for _, inner, at, _ in further)
    return next((each for each in readers if each), None)


def _called(module: nn.Module, callee: str) -> tuple[nn.Module | None, str]:
    """The module and the name of the method that `self.<callee>(...)` runs."""
    target: Any = module
    for part in callee.split("."):
        children = target._modules
        target = next(iter(children.values()), None) if part == "*" else children.get(part)
        if target is None:
            return (module, callee) if hasattr(type(module), callee) else (None, callee)
    return target, "forward"


@cache
def _definition(kind: Any, name: str) -> tuple[str, ast.FunctionDef] | None:
    """The class that defines a method, and the definition."""
    owner = next((each for each in kind.__mro__ if name in vars(each)), None)
    node = class_definition(owner) if owner not in (None, nn.Module) else None
    methods = (each for each in node.body if isinstance(each, ast.FunctionDef)) if node else iter(())
    found = next((each for each in methods if each.name == name), None)
    return (owner.__name__, found) if owner and found else None


def _parameter(method: ast.FunctionDef, place: int | str) -> str | None:
    """The parameter that an argument is for."""
    if isinstance(place, str):
        return place
    listed = method.args.args[1:]  # without self
    return listed[place].arg if place < len(listed) else None
