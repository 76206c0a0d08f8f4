"""Which weights transformers measures while it initializes a model, which it does for every model that it loads.

`_init_weights` of a model may say `sinusoids(*module.embed_positions.weight.shape)`. What was loaded is not touched,
but the shape of packed bytes makes such code fail. A weight as the argument of an initializer does no harm: what was
loaded is skipped there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from torch import nn

from rulequant.torch.class_source import class_definition

__all__ = ["initial_reads"]

_METHOD = "_init_weights"
_HARMLESS = frozenset({"device", "is_cuda", "requires_grad", "_is_hf_initialized"})


class _Read(NamedTuple):
    """`module.<path>.weight.<something>` where `module` is of one of these classes."""

    classes: frozenset[str]
    path: str


def initial_reads(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(module whose weight is measured, "Class._init_weights") for a model of transformers; none for other modules."""
    owner = next((each for each in type(model).__mro__ if _METHOD in vars(each)), None)
    for read in _reads(owner) if owner else ():
        for module in model.modules():
            if read.classes & {each.__name__ for each in type(module).__mro__}:
                found = _child(module, read.path)
                if found is not None and owner is not None:
                    yield found, f"{owner.__name__}.{_METHOD}"


def _child(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


@cache
def _reads(owner: Any) -> tuple[_Read, ...]:
    definition = class_definition(owner)
    methods = [each for each in definition.body if isinstance(each, ast.FunctionDef)] if definition else []
    return tuple(read for each in methods if each.name == _METHOD for read in _branches(each))


def _branches(method: ast.FunctionDef) -> Iterator[_Read]:
    argument = method.args.args[1].arg if len(method.args.args) > 1 else ""
    for node in ast.walk(method):
        if isinstance(node, ast.If):
            classes = frozenset(_asked_for(node.test, argument))
            for statement in node.body if classes else ():
                yield from (_Read(classes, path) for path in _measured(statement, argument))


def _asked_for(test: ast.expr, argument: str) -> Iterator[str]:
    """The names of the classes in `isinstance(module, ...)`."""
    match test:
        case ast.Call(func=ast.Name("isinstance"), args=[ast.Name(name), wanted]) if name == argument:
            listed = wanted.elts if isinstance(wanted, ast.Tuple) else [wanted]
            yield from (ast.unparse(each).rpartition(".")[2] for each in listed)


def _measured(statement: ast.stmt, argument: str) -> Iterator[str]:
    """The paths of the children whose weight is asked for something that packed bytes answer wrongly."""
    for node in ast.walk(statement):
        if not (isinstance(node, ast.Attribute) and node.attr not in _HARMLESS):
            continue
        root, _, path = ast.unparse(node.value).partition(".")
        child, _, last = path.rpartition(".")
        if root == argument and last == "weight" and child:
            yield child
