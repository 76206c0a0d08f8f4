"""The source of a module's class as a syntax tree, for questions that only the code of `forward` answers."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

__all__ = ["class_definition", "self_path", "working_methods"]

_NOT_FORWARD = ("init", "reset_parameters", "tie_weights", "fuse_projections", "resize")
"""Parts of the names of methods that set a model up and never see a quantized layer, or that only a user calls."""


@cache
def class_definition(owner: Any) -> ast.ClassDef | None:
    """The definition of a class; None where its source is not to be had."""
    return _top_level_classes(owner.__module__).get(owner.__qualname__) or _inner_class(owner)


@cache
def _top_level_classes(module_name: str) -> dict[str, ast.ClassDef]:
    """The classes of a Python module from one reading of its file, which may define hundreds."""
    module = sys.modules.get(module_name)
    try:
        tree = ast.parse(inspect.getsource(module)) if module else None
    except (OSError, TypeError, SyntaxError):
        return {}
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)} if tree else {}


def _inner_class(owner: type) -> ast.ClassDef | None:
    """A class defined in a function, under a condition, or in a notebook."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError, SyntaxError):
        return None
    return next((node for node in tree.body if isinstance(node, ast.ClassDef)), None)


def working_methods(definition: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """The methods that may run in a forward pass."""
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and not any(each in node.name for each in _NOT_FORWARD):
            yield node


def self_path(node: ast.expr) -> str | None:
    """`a.b` for the expression `self.a.b`."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id == "self" and parts:
        return ".".join(reversed(parts))
    return None
