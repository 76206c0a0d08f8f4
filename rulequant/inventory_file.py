"""An inventory as a small JSON file that a team commits beside its rule files.

Modules form a tree of their name segments. Neighbours with consecutive numbers and equal contents, as the layers of a
transformer have, are written once under a range such as `"0..31"`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from rulequant.errors import ModelError
from rulequant.inventory import ITEM_SIZES, Inventory, Kind, LayerIndex, ModuleInfo, TensorInfo

__all__ = ["FORMAT_VERSION", "dump_inventory", "is_inventory", "load_inventory", "parse_inventory"]

FORMAT_VERSION = 1
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_TENSOR = re.compile(r"(buffer )?([a-z0-9_]+)\[([0-9,]*)\]")
_MAX_MODULES = 2_000_000


@dataclass
class _Node:
    """A segment of the tree: the module's own facts, and what is below it in order of registration."""

    facts: dict[str, Any] = field(default_factory=dict)
    children: dict[str, _Node] = field(default_factory=dict)


def dump_inventory(inventory: Inventory) -> str:
    """The inventory as JSON text, equal layers folded."""
    root = _Node()
    for info in inventory.modules:
        _descend(root, info.name).facts = _facts(info)
    document = {
        "rulequant_inventory": FORMAT_VERSION,
        "model": inventory.model,
        "model_type": inventory.model_type,
        "architecture": inventory.architecture,
        "versions": inventory.versions,
        "aliases": {alias: info.name for info in inventory.modules for alias in info.aliases},
        "tied": {
            _join(info.name, tensor.name): tensor.tied_to
            for info in inventory.modules
            for tensor in info.tensors
            if tensor.tied_to
        },
        "modules": _fold(root),
    }
    return _layout(document) + "\n"


def load_inventory(path: Path) -> Inventory:
    """Read an inventory file.

    Raises:
        ModelError: the file cannot be read, or is not an inventory of this version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read the inventory {path}: {error}") from error
    return parse_inventory(text, file=str(path))


def is_inventory(path: Path) -> bool:
    """Whether a file looks like an inventory rather than another JSON file."""
    try:
        with path.open(encoding="utf-8") as stream:
            return '"rulequant_inventory"' in stream.read(200)
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
        version = document["rulequant_inventory"]
        if version != FORMAT_VERSION:
            raise ModelError(
                f"{file}: inventory format {version!r}; this rulequant reads {FORMAT_VERSION}", remedy=remedy
            )
        return _inventory(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file} is not a valid inventory file: {error!r}", remedy=remedy) from error


def _inventory(document: dict[str, Any]) -> Inventory:
    aliases: dict[str, list[str]] = {}
    for alias, name in document["aliases"].items():
        aliases.setdefault(name, []).append(alias)
    tied: dict[str, str] = document["tied"]
    modules: list[ModuleInfo] = []
    for name, facts, layer in _unfold("", document["modules"], None):
        modules.append(_module(name, facts, layer, tuple(aliases.get(name, ())), tied))
        if len(modules) > _MAX_MODULES:
            raise ValueError(f"more than {_MAX_MODULES:,} modules")
    return Inventory(
        model=str(document["model"]),
        modules=tuple(modules),
        model_type=document["model_type"],
        architecture=document["architecture"],
        versions=dict(document["versions"]),
    )


def _facts(info: ModuleInfo) -> dict[str, Any]:
    """The module's facts without what follows from its place in the tree."""
    facts: dict[str, Any] = {"type": info.type}
    if info.kind != "other":
        facts["kind"] = info.kind
    for flag in ("output_embedding", "output_head", "shares_output_embedding", "keep_in_fp32"):
        if getattr(info, flag):
            facts[flag] = True
    if info.weight_reader:
        facts["weight_reader"] = info.weight_reader
    if info.layer:
        # Only the child of the outermost ModuleList needs it; `_fold` turns it into `layers` of the list.
        facts["layer"] = info.layer
    if info.tensors:
        facts["tensors"] = {each.name: _tensor_text(each) for each in info.tensors}
    return facts


def _tensor_text(tensor: TensorInfo) -> str:
    shape = ",".join(str(each) for each in tensor.shape)
    return f"{'buffer ' if tensor.buffer else ''}{tensor.dtype}[{shape}]"


def _parse_tensor(name: str, text: str, tied_to: str | None) -> TensorInfo:
    found = _TENSOR.fullmatch(text)
    if not found or found[2] not in ITEM_SIZES:
        raise ValueError(f"tensor {name!r} is {text!r}, not a dtype and shape such as 'bfloat16[4096,4096]'")
    shape = tuple(int(each) for each in found[3].split(",") if each)
    return TensorInfo(name, shape, found[2], buffer=bool(found[1]), tied_to=tied_to)


def _module(
    name: str, facts: dict[str, Any], layer: LayerIndex | None, aliases: tuple[str, ...], tied: dict[str, str]
) -> ModuleInfo:
    kind = facts.get("kind", "other")
    if kind not in get_args(Kind):
        raise ValueError(f"module {name!r} has the kind {kind!r}")
    return ModuleInfo(
        name=name,
        type=str(facts["type"]),
        kind=cast(Kind, kind),
        tensors=tuple(
            _parse_tensor(local, text, tied.get(_join(name, local))) for local, text in facts.get("tensors", {}).items()
        ),
        aliases=aliases,
        layer=layer,
        output_embedding=facts.get("output_embedding", False) is True,
        output_head=facts.get("output_head", False) is True,
        shares_output_embedding=facts.get("shares_output_embedding", False) is True,
        keep_in_fp32=facts.get("keep_in_fp32", False) is True,
        weight_reader=facts.get("weight_reader"),
    )


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _descend(root: _Node, name: str) -> _Node:
    node = root
    for segment in name.split(".") if name else ():
        node = node.children.setdefault(segment, _Node())
    return node


def _fold(node: _Node, *, in_stack: bool = False) -> dict[str, Any]:
    """The node as JSON-ready data; runs of equal numbered neighbours become one entry under a range."""
    folded = {key: value for key, value in node.facts.items() if key != "layer"}
    stack = not in_stack and any("layer" in child.facts for child in node.children.values())
    if stack:
        folded["stack"] = True
    children: dict[str, Any] = {}
    run: tuple[int, int] | None = None
    last: dict[str, Any] | None = None
    for segment, child in node.children.items():
        data = _fold(child, in_stack=in_stack or stack)
        number = int(segment) if segment.isdecimal() and str(int(segment)) == segment else None
        if run and number == run[1] + 1 and data == last:
            del children[_range(run)]
            run = (run[0], number)
        else:
            run = (number, number) if number is not None else None
        children[_range(run) if run else segment] = data
        last = data
    if children:
        folded["children"] = children
    return folded


def _range(run: tuple[int, int]) -> str:
    return f"{run[0]}..{run[1]}" if run[0] != run[1] else str(run[0])


def _unfold(
    name: str, data: dict[str, Any], layer: LayerIndex | None
) -> Iterator[tuple[str, dict[str, Any], LayerIndex | None]]:
    if "type" in data:
        yield name, data, layer
    entries = [(segment, child) for key, child in data.get("children", {}).items() for segment in _segments(key)
               for child in (child,)]  # fmt: skip
    for segment, child in entries:
        inner = layer
        if data.get("stack") is True and layer is None:
            inner = LayerIndex(int(segment), len(entries))
        yield from _unfold(_join(name, segment), child, inner)


def _segments(key: str) -> list[str]:
    found = _RANGE.fullmatch(key)
    if not found:
        return [key]
    first, last = int(found[1]), int(found[2])
    if last - first > _MAX_MODULES:
        raise ValueError(f"the range {key!r} is too long")
    return [str(number) for number in range(first, last + 1)]


def _layout(value: Any, indent: int = 0) -> str:
    """JSON with one module a line where it is small, so that a change of one layer is a small diff."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict) or len(flat) + indent <= 110 or not value:
        return flat
    pad = " " * (indent + 1)
    rows = (f"{pad}{json.dumps(key, ensure_ascii=False)}: {_layout(each, indent + 1)}" for key, each in value.items())
    return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"
