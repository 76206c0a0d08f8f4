"""A lock: what a plan decided, as a file to commit, so that a later plan can be held against it.

JSON, as inventories and plans are, with one line for each kind of module. Equal modules of a stack of layers share a
line under a range, `model.layers.{0..31}.self_attn.q_proj`, which is a glob of the rule language too: a decision that
changes for one layer is a diff of two lines, not of thousands. Lines stand in the order of the model. A module has its
class, tensors, scheme or reason, and bytes; lines of rule files are left out, since every edit moves them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from rulequant.errors import ModelError, UsageError
from rulequant.inventory import Inventory, ModuleInfo, TensorInfo
from rulequant.inventory_file import parse_tensor, tensor_text
from rulequant.plan import Decision, Plan
from rulequant.plan_file import Count, Part, Share, first_problem, read_scheme
from rulequant.predicate import Reason
from rulequant.ranges import expand, is_range, numbers_of, products, shape_of, spell

__all__ = ["FORMAT_VERSION", "Lock", "contents", "dump_lock", "is_lock", "load_lock", "make_lock"]

FORMAT_VERSION = 1
_MARK = "rulequant_lock"
_REMEDY = "write it with `rulequant lock MODEL RULES`"
_ABOUT = "written by `rulequant lock`; `rulequant plan MODEL RULES --check FILE` says what has changed since"
_TIED = " = "
_MAX_MODULES = 1_000_000


@dataclass(frozen=True)
class Lock:
    """A plan, and what it does not know itself: the tensors of each module, and the versions behind them."""

    plan: Plan
    tensors: Mapping[str, tuple[TensorInfo, ...]]
    """The tensors by module name."""
    versions: Mapping[str, str]


class _Row(Part):
    type: str
    tensors: dict[str, str]
    scheme: str | None = None
    reason: Reason | None = None
    detail: str | None = None
    bytes: Count


class _Summary(Part):
    modules: Count
    quantized: Count
    parameters: Count
    parameters_quantized: Count
    layer_coverage: Share
    bytes_before: Count
    bytes_after: Count


class _LockFile(Part):
    model: str
    model_type: str | None
    architecture: str | None
    container: Literal["bitsandbytes", "rulequant"] | None = None
    rules: str
    rules_sha256: str
    versions: dict[str, str]
    schemes: dict[str, dict[str, Any]]
    summary: _Summary
    modules: dict[str, _Row]


def make_lock(plan: Plan, inventory: Inventory) -> Lock:
    """The lock of a plan that was made for this inventory."""
    return Lock(plan, {each.name: each.tensors for each in inventory.owners}, inventory.versions)


def contents(tensors: Iterable[TensorInfo]) -> dict[str, str]:
    """Tensors as text by local name: `bfloat16[4096,4096]`; a tied one says which tensor it is."""
    return {each.name: tensor_text(each) + (f"{_TIED}{each.tied_to}" if each.tied_to else "") for each in tensors}


def dump_lock(lock: Lock, *, rules: str | None = None) -> str:
    """The lock as JSON text; `rules` says where the rule file lies, seen from the lock.

    Raises:
        ModelError: a module is called what would be read as a range.
    """
    plan = lock.plan
    used = {each.scheme for each in plan.quantized}
    head = {
        _MARK: FORMAT_VERSION,
        "about": _ABOUT,
        "model": plan.model,
        "model_type": plan.model_type,
        "architecture": plan.architecture,
        "container": plan.container,
        "rules": rules or plan.rules,
        "rules_sha256": plan.rules_sha256,
        "versions": dict(lock.versions),
        "schemes": {
            name: each.model_dump(mode="json", by_alias=True) for name, each in plan.schemes.items() if name in used
        },
        "summary": {key: plan.summary[key] for key in _Summary.model_fields},
    }
    rows = ",\n".join(f"  {_json(pattern)}: {_json(row)}" for pattern, row in _rows(lock))
    lines = [f" {_json(key)}: {_json(value)}" for key, value in head.items()]
    return "{\n" + ",\n".join([*lines, f' "modules": {{\n{rows}\n }}' if rows else ' "modules": {}']) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _rows(lock: Lock) -> list[tuple[str, dict[str, Any]]]:
    """The modules with equal ones under one pattern, by the place of the first of each."""
    groups: dict[tuple[str, str], dict[tuple[int, ...], int]] = {}
    for position, each in enumerate(lock.plan.decisions):
        if any(is_range(segment) for segment in each.name.split(".")):
            raise ModelError(f"a module is called `{each.name}`, which a lock would take for a range of modules")
        key = (shape_of(each.name), _json(_row(each, lock)))
        groups.setdefault(key, {})[numbers_of(each.name)] = position
    found: list[tuple[int, str, dict[str, Any]]] = []
    for group in groups.values():
        for part in products(group):
            first = min(group[numbers] for numbers in product(*part))
            decision = lock.plan.decisions[first]
            found.append((first, spell(decision.name, part), _row(decision, lock)))
    return [(pattern, row) for _, pattern, row in sorted(found, key=lambda each: each[0])]


def _row(decision: Decision, lock: Lock) -> dict[str, Any]:
    row: dict[str, Any] = {"type": decision.type, "tensors": contents(lock.tensors[decision.name])}
    row |= {"scheme": decision.scheme} if decision.quantize else {"reason": decision.reason}
    if decision.detail and decision.reason != "type":  # that one repeats quantizable_types
        row["detail"] = decision.detail
    return {**row, "bytes": decision.bytes_after}


def is_lock(path: Path) -> bool:
    """Whether a file looks like a lock."""
    try:
        with path.open("rb") as stream:
            return f'"{_MARK}"' in stream.read(2000).decode("utf-8", "replace")
    except OSError:
        return False


def load_lock(path: Path) -> Lock:
    """Read a lock that `rulequant lock` wrote.

    Raises:
        UsageError: the file cannot be read, is no lock of this version, or does not add up, as after a merge.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
    except OSError as error:
        raise UsageError(f"cannot read the lock {path}: {error.strerror or error}", remedy=_REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a lock: {error}", remedy=_REMEDY) from error
    if not isinstance(data, dict) or _MARK not in data:
        raise UsageError(f"{path} is not a lock: it has no `{_MARK}`", remedy=_REMEDY)
    if data[_MARK] != FORMAT_VERSION:
        raise UsageError(f"{path}: lock format {data[_MARK]!r}; this rulequant reads {FORMAT_VERSION}", remedy=_REMEDY)
    try:
        return _lock(_LockFile.model_validate(data))
    except ValidationError as error:
        raise UsageError(f"{path} is not a valid lock: {first_problem(error)}", remedy=_REMEDY) from error
    except ValueError as error:
        raise UsageError(f"{path} is not a valid lock: {error}", remedy=_REMEDY) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key `{key}` comes twice")
        found[key] = value
    return found


def _lock(file: _LockFile) -> Lock:
    infos: dict[str, ModuleInfo] = {}
    decisions: list[Decision] = []
    for name, row in _unfolded(file.modules):
        if name in infos:
            raise ValueError(f"the module {name!r} comes twice")
        infos[name] = ModuleInfo(name, row.type, tensors=tuple(_tensors(row.tensors)))
        decisions.append(_decision(infos[name], row, file))
    plan = Plan(
        model=file.model,
        rules=file.rules,
        rules_sha256=file.rules_sha256,
        decisions=tuple(decisions),
        schemes={name: read_scheme(name, each) for name, each in file.schemes.items()},
        model_type=file.model_type,
        architecture=file.architecture,
        container=file.container,
        layer_coverage=file.summary.layer_coverage,
    )
    for key, value in file.summary.model_dump().items():
        if plan.summary[key] != value:
            raise ValueError(
                f"it was edited or merged: `summary.{key}` is {value}, its lines come to {plan.summary[key]}"
            )
    return Lock(plan, {name: each.tensors for name, each in infos.items()}, file.versions)


def _unfolded(rows: Mapping[str, _Row]) -> Iterator[tuple[str, _Row]]:
    """Each module with its row; the order is that of the lines."""
    left = _MAX_MODULES
    for pattern, row in rows.items():
        for name in expand(pattern, limit=left):
            left -= 1
            yield name, row


def _tensors(texts: Mapping[str, str]) -> Iterator[TensorInfo]:
    for name, text in texts.items():
        shown, _, tied = text.partition(_TIED)
        yield parse_tensor(name, shown, tied or None)


def _decision(info: ModuleInfo, row: _Row, file: _LockFile) -> Decision:
    if (row.scheme is None) is (row.reason is None):
        raise ValueError(f"the module {info.name!r} needs a scheme, or else a reason")
    if row.scheme is not None and row.scheme not in file.schemes:
        raise ValueError(f"the module {info.name!r} has the scheme {row.scheme!r}, which the lock does not define")
    return Decision(
        name=info.name,
        type=info.type,
        parameters=info.parameters,
        bytes_before=info.nbytes,
        bytes_after=row.bytes,
        scheme=row.scheme,
        reason=row.reason,
        detail=row.detail,
    )
