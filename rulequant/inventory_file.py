"""An inventory as a small JSON file that a team commits beside its rule files.

Modules form a tree of their name segments. Neighbours with consecutive numbers and equal contents, as the layers of a
transformer have, are written once under a range such as `"0..31"`. The position in the outermost stack of layers
follows from the tree: `stack` of a container is its number of layers, and a module has `layer` only where that differs.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from rulequant.errors import ModelError
from rulequant.inventory import ITEM_SIZES, Inventory, Kind, LayerIndex, ModuleInfo, TensorInfo

__all__ = [
    "FORMAT_VERSION",
    "dump_inventory",
    "is_inventory",
    "load_inventory",
    "parse_inventory",
    "parse_tensor",
    "tensor_text",
]

FORMAT_VERSION = 1
_MARK = "rulequant_inventory"
_RANGE = re.compile(r"(\d+)\.\.(\d+)", re.A)
_TENSOR = re.compile(r"(buffer )?([a-z0-9_]+)\[(\d+(?:,\d+)*)?\]", re.A)
_FLAGS = ("output_embedding", "output_head", "shares_output_embedding", "keep_in_fp32", "stock_linears")
_TEXTS = ("weight_reader", "obstacle")
_PLACE_KEYS = frozenset({"layer", "stack", "children"})
_MODULE_KEYS = frozenset({"type", "kind", "tensors", *_TEXTS, *_FLAGS}) | _PLACE_KEYS
_MAX_MODULES = 1_000_000
_MAX_PEEK = 1 << 24
"""Characters in which a file must call itself an inventory, whatever a formatter sorted before that."""
T = TypeVar("T")


def dump_inventory(inventory: Inventory) -> str:
    """The inventory as JSON text, equal layers folded."""
    root = _Node()
    for info in inventory.modules:
        _descend(root, info.name).info = info
    document = {
        _MARK: FORMAT_VERSION,
        "model": inventory.model,
        "model_type": inventory.model_type,
        "architecture": inventory.architecture,
        **({"called": True} if inventory.called else {}),
        "versions": inventory.versions,
        "aliases": {alias: info.name for info in inventory.modules for alias in info.aliases},
        "tied": {
            _join(info.name, tensor.name): tensor.tied_to
            for info in inventory.modules
            for tensor in info.tensors
            if tensor.tied_to
        },
        "modules": _fold(root, None),
    }
    return _layout(document) + "\n"


def load_inventory(path: Path) -> Inventory:
    """Read an inventory file.

    Raises:
        ModelError: the file cannot be read, or is not an inventory of this version.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read the inventory {path}: {error}") from error
    return parse_inventory(text, file=str(path))


def is_inventory(path: Path) -> bool:
    """Whether a file looks like an inventory rather than another JSON file."""
    try:
        with path.open(encoding="utf-8") as stream:
            return f'"{_MARK}"' in stream.read(_MAX_PEEK)
    except (OSError, UnicodeDecodeError):
        return False


def parse_inventory(text: str, *, file: str) -> Inventory:
    """Build an inventory from JSON text.

    Raises:
        ModelError: the text is not an inventory of this version.
    """
    remedy = "write it anew with `rulequant inventory MODEL -o FILE`"
    try:
        document = json.loads(text)
        version = _get(document, _MARK, int)
        if version == FORMAT_VERSION:
            return _inventory(document)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not a valid inventory file: {error}", remedy=remedy) from error
    raise ModelError(f"{file}: inventory format {version}; this rulequant reads {FORMAT_VERSION}", remedy=remedy)


@dataclass
class _Node:
    """A segment of the tree: the module there, and what is below it in order of registration."""

    info: ModuleInfo | None = None
    children: dict[str, _Node] = field(default_factory=dict)


def _descend(root: _Node, name: str) -> _Node:
    node = root
    for segment in name.split(".") if name else ():
        node = node.children.setdefault(segment, _Node())
    return node


def _fold(node: _Node, inherited: LayerIndex | None) -> dict[str, Any]:
    """The node as JSON-ready data; runs of equal numbered neighbours become one entry under a range."""
    folded = _facts(node.info) if node.info else {}
    layer = node.info.layer if node.info else inherited
    if layer != inherited:
        folded["layer"] = [layer.index, layer.length] if layer else None
    stack = None if layer else _stack_length(node)
    if stack is not None:
        folded["stack"] = stack
    children: dict[str, Any] = {}
    run: tuple[int, int] | None = None
    last = ""
    for segment, child in node.children.items():
        data = _fold(child, _layer_below(layer, stack, segment))
        text = json.dumps(data)  # unlike the data themselves, not equal where the order differs
        number = _number(segment)
        if run and number == run[1] + 1 and text == last:
            del children[_range(run)]
            run = (run[0], number)
        else:
            run = (number, number) if number is not None else None
        children[_range(run) if run else segment] = data
        last = text
    if children:
        folded["children"] = children
    return folded


def _facts(info: ModuleInfo) -> dict[str, Any]:
    """The module's facts without what follows from its place in the tree."""
    facts: dict[str, Any] = {"type": info.type}
    if info.kind != "other":
        facts["kind"] = info.kind
    facts |= {flag: True for flag in _FLAGS if getattr(info, flag)}
    facts |= {name: text for name in _TEXTS if (text := getattr(info, name))}
    if info.tensors:
        facts["tensors"] = {each.name: tensor_text(each) for each in info.tensors}
    return facts


def tensor_text(tensor: TensorInfo) -> str:
    """The tensor without its name and tie: `bfloat16[4096,4096]`, `buffer int64[1,512]`."""
    shape = ",".join(str(each) for each in tensor.shape)
    return f"{'buffer ' if tensor.buffer else ''}{tensor.dtype}[{shape}]"


def _stack_length(node: _Node) -> int | None:
    infos = (child.info for child in node.children.values())
    return next((info.layer.length for info in infos if info and info.layer), None)


def _layer_below(layer: LayerIndex | None, stack: int | None, segment: str) -> LayerIndex | None:
    """The layer that a child is in if nothing else is said: that of its parent, or its own number in the stack."""
    number = _number(segment)
    if layer is not None or stack is None or number is None:
        return layer
    return LayerIndex(number, stack)


def _number(segment: str) -> int | None:
    """The number that a segment spells in the one way that a range gives back."""
    return int(segment) if segment.isascii() and segment.isdecimal() and str(int(segment)) == segment else None


def _range(run: tuple[int, int]) -> str:
    return f"{run[0]}..{run[1]}" if run[0] != run[1] else str(run[0])


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _layout(value: Any, indent: int = 0) -> str:
    """JSON with one module a line where it is small, so that a change of one layer is a small diff."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict) or len(flat) + indent <= 110 or not value:
        return flat
    pad = " " * (indent + 1)
    rows = (f"{pad}{json.dumps(key, ensure_ascii=False)}: {_layout(each, indent + 1)}" for key, each in value.items())
    return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"


def _inventory(document: dict[str, Any]) -> Inventory:
    aliases: dict[str, list[str]] = {}
    for alias, name in _texts(document, "aliases").items():
        aliases.setdefault(name, []).append(alias)
    tied = _texts(document, "tied")
    modules = tuple(
        _module(name, facts, layer, tuple(aliases.get(name, ())), tied)
        for name, facts, layer in _unfold("", _get(document, "modules", dict), None, iter(range(_MAX_MODULES)))
    )
    _check_names(modules, aliases, tied)
    return Inventory(
        model=_get(document, "model", str),
        modules=modules,
        model_type=_get(document, "model_type", str, optional=True),
        architecture=_get(document, "architecture", str, optional=True),
        called=_get(document, "called", bool, optional=True) or False,
        versions=_texts(document, "versions"),
    )


def _unfold(
    name: str, data: Any, layer: LayerIndex | None, budget: Iterator[int]
) -> Iterator[tuple[str, dict[str, Any], LayerIndex | None]]:
    """Every module with its name and layer, parents first; each node of the tree takes one from the budget."""
    if next(budget, None) is None:
        raise ValueError(f"more than {_MAX_MODULES:,} modules")
    if not isinstance(data, dict):
        raise ValueError(f"module {name!r} is {data!r:.60}, not a mapping")
    if unknown := data.keys() - (_MODULE_KEYS if "type" in data else _PLACE_KEYS):
        raise ValueError(f"module {name!r} has the key `{min(unknown)}`, which means nothing there")
    layer = _layer(name, data["layer"]) if "layer" in data else layer
    stack = _get(data, "stack", int, optional=True)
    if "type" in data:
        yield name, data, layer
    for key, child in (_get(data, "children", dict, optional=True) or {}).items():
        for segment in _segments(key):
            yield from _unfold(_join(name, segment), child, _layer_below(layer, stack, segment), budget)


def _segments(key: str) -> Iterable[str]:
    found = _RANGE.fullmatch(key)
    if not found:
        if not key or "." in key:
            raise ValueError(f"{key!r} is neither one segment of a name nor a range such as '0..31'")
        return [key]
    first, last = int(found[1]), int(found[2])
    if not first < last < first + _MAX_MODULES:
        raise ValueError(f"the range {key!r} is empty or too long")
    return map(str, range(first, last + 1))


def _layer(name: str, value: Any) -> LayerIndex | None:
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 2 and all(type(each) is int for each in value)):
        raise ValueError(f"module {name!r} has the layer {value!r}, not an index and a length")
    return LayerIndex(*value)


def _module(
    name: str, facts: dict[str, Any], layer: LayerIndex | None, aliases: tuple[str, ...], tied: dict[str, str]
) -> ModuleInfo:
    kind = facts.get("kind", "other")
    if kind not in get_args(Kind):
        raise ValueError(f"module {name!r} has the kind {kind!r}; known kinds: {', '.join(get_args(Kind))}")
    return ModuleInfo(
        name=name,
        type=_get(facts, "type", str),
        kind=cast(Kind, kind),
        tensors=tuple(
            parse_tensor(local, text, tied.get(_join(name, local)))
            for local, text in (_get(facts, "tensors", dict, optional=True) or {}).items()
        ),
        aliases=aliases,
        layer=layer,
        weight_reader=_get(facts, "weight_reader", str, optional=True),
        obstacle=_get(facts, "obstacle", str, optional=True),
        **{flag: _get(facts, flag, bool, optional=True) or False for flag in _FLAGS},
    )


def parse_tensor(name: str, text: Any, tied_to: str | None) -> TensorInfo:
    """The tensor that `tensor_text` wrote.

    Raises:
        ValueError: the text is of another form.
    """
    found = _TENSOR.fullmatch(text) if isinstance(text, str) else None
    if not found or found[2] not in ITEM_SIZES:
        raise ValueError(f"tensor {name!r} is {text!r}, not a dtype and shape such as 'bfloat16[4096,4096]'")
    shape = tuple(int(each) for each in found[3].split(",")) if found[3] else ()
    return TensorInfo(name, shape, found[2], buffer=bool(found[1]), tied_to=tied_to)


def _check_names(modules: tuple[ModuleInfo, ...], aliases: dict[str, list[str]], tied: dict[str, str]) -> None:
    """Refuse names that come twice, and aliases and ties of what does not exist."""
    names = Counter(name for info in modules for name in info.names)
    if names and (most := names.most_common(1)[0])[1] > 1:
        raise ValueError(f"module {most[0]!r} comes twice")
    if strays := aliases.keys() - {info.name for info in modules}:
        raise ValueError(f"{aliases[min(strays)][0]!r} is an alias of {min(strays)!r}, which is not a module")
    free = {_join(info.name, each.name): not each.tied_to for info in modules for each in info.tensors}
    for name, owner in tied.items():
        if name not in free or not free.get(owner):
            raise ValueError(f"{name!r} is tied to {owner!r}, and not both of them are tensors, the second untied")


def _texts(data: dict[str, Any], key: str) -> dict[str, str]:
    found = _get(data, key, dict)
    for value in found.values():
        if not isinstance(value, str):
            raise ValueError(f"`{key}` holds {value!r:.60}, not text")
    return cast("dict[str, str]", found)


def _get(data: Any, key: str, wanted: type[T], *, optional: bool = False) -> Any:
    """The value of a key, checked; None where an optional key is missing or null."""
    if not isinstance(data, dict) or (key not in data and not optional):
        raise ValueError(f"it has no `{key}`")
    value = data.get(key)
    if value is None and optional:
        return None
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ValueError(f"`{key}` is {value!r:.60}, not of type {wanted.__name__}")
    return value
