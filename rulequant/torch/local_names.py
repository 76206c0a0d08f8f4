"""What the local variables of a method stand for, as far as that is a part of `self`.

`w = self.dense`, `a, b = self.a, self.b`, `for layer in self.layers` and `for i, layer in enumerate(self.layers)` are
followed, through further variables too. A variable that is assigned more than once may be any of it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

__all__ = ["Names", "local_names", "paths"]

Names = Mapping[str, frozenset[str]]
"""The paths that each variable may stand for: `a.b` for `self.a.b`, `a.*` for `self.a[i]`."""
_ROUNDS = 3
"""How often variables are replaced by what they stand for; `node = node.left` would go on for ever."""
_ITSELF = ""


def local_names(method: ast.FunctionDef, given: Names | None = None) -> Names:
    """The variables of a method that may be parts of `self`, and those that stand for something `given`."""
    bindings = [each for node in ast.walk(method) for each in _bindings(node)]
    found: dict[str, frozenset[str]] = dict(given or {})
    for _ in range(_ROUNDS):
        before = dict(found)
        for name, value, suffix in bindings:
            found[name] = found.get(name, frozenset()) | {_join(each, suffix) for each in paths(value, before)}
    return {name: each for name, each in found.items() if each}


def paths(node: ast.expr, names: Names) -> Iterator[str]:
    """`a.b` for the expression `self.a.b`, `a.0` for `self.a[0]`, and `a.*` for `self.a[i]`; none for others."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute | ast.Subscript):
        parts.append(node.attr if isinstance(node, ast.Attribute) else _index(node.slice))
        node = node.value
    inner = ".".join(reversed(parts))
    if not isinstance(node, ast.Name):
        return
    if node.id == "self" and inner:
        yield inner
    for each in sorted(names.get(node.id, ())):
        yield _join(each, inner)


def _index(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else "*"


def _join(path: str, suffix: str) -> str:
    return f"{path}.{suffix}" if suffix else path


def _bindings(node: ast.AST) -> Iterator[tuple[str, ast.expr, str]]:
    """(variable, expression, which part of its value the variable becomes) of one statement or loop."""
    match node:
        case ast.Assign():
            for target in node.targets:
                yield from _bound(target, node.value, _ITSELF)
        case ast.AnnAssign(value=ast.expr() as value) | ast.NamedExpr(value=value):
            yield from _bound(node.target, value, _ITSELF)
        case ast.For() | ast.comprehension():
            yield from _each(node.target, node.iter)


def _bound(target: ast.expr, value: ast.expr, suffix: str) -> Iterator[tuple[str, ast.expr, str]]:
    if isinstance(target, ast.Name):
        yield target.id, value, suffix
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for one, part in zip(target.elts, value.elts, strict=True):
            yield from _bound(one, part, suffix)


def _each(target: ast.expr, iterated: ast.expr) -> Iterator[tuple[str, ast.expr, str]]:
    """The variables of a loop: some child of what is iterated."""
    match target, iterated:
        case ast.Tuple(elts=[_, one]), ast.Call(func=ast.Name("enumerate"), args=[inner, *_]):
            yield from _each(one, inner)
        case ast.Tuple(elts=targets), ast.Call(func=ast.Name("zip"), args=inners) if len(targets) == len(inners):
            for one, inner in zip(targets, inners, strict=True):
                yield from _each(one, inner)
        case _:
            yield from _bound(target, iterated, "*")
