"""Weights encoded while the plan is still being made, by a guess at what it will be; without torch.

A library tells what modules a checkpoint is for, and takes seconds to import. Meanwhile a process encodes what names
and shapes in the headers make likely, into a file that nobody sees. A worker that is asked for the same slice of the
same values by the same scheme finds it done. A wrong guess is never asked for: it costs the work of an idle core.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage
from typing import Any

from rulequant.errors import UsageError
from rulequant.inventory import Inventory, Kind, ModuleInfo, TensorInfo
from rulequant.plan import Plan
from rulequant.schemes import Bnb4bit
from rulequant.torch.checkpoint.boxes import Layout
from rulequant.torch.checkpoint.header import DTYPE_NAMES, FLOATS, SPELLINGS, TensorEntry
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.shardfile import slice_values
from rulequant.torch.checkpoint.step import encoded_step, matrix_columns
from rulequant.torch.checkpoint.units import Encoded, Made

__all__ = ["MadeAhead", "guess_dtype", "guess_inventory", "guess_units", "open_store"]

_WEIGHT = ".weight"
_HEADS = frozenset({"lm_head", "embed_out", "output"})
_LOOKED_UP = ("embed", "wte", "wpe", "shared")
_EXPERTS = ".experts."
"""Which transformers fuses, so that none of them is a module."""
_MOST = 2000
"""Units: what takes longer than any import."""
_TIMES_FREE = 4
"""Of what is stored: so that the output fits, too, wherever it fitted without."""


def guess_inventory(reader: CheckpointReader, config: Mapping[str, Any], model: str) -> Inventory:
    """What the headers of a checkpoint, whose names are those of the model by guess, make likely."""
    architectures = config.get("architectures")
    return Inventory(
        model,
        tuple(
            _module(entry, reader.tensors)
            for name, entry in reader.tensors.items()
            if name.endswith(_WEIGHT) and _EXPERTS not in name
        ),
        model_type=config.get("model_type"),
        architecture=architectures[0] if architectures else None,
    )


def _module(entry: TensorEntry, entries: Mapping[str, TensorEntry]) -> ModuleInfo:
    name = entry.name.removesuffix(_WEIGHT)
    tensors = tuple(
        TensorInfo(local, found.shape, DTYPE_NAMES.get(found.dtype, found.dtype))
        for local in ("weight", "bias")
        if (found := entries.get(f"{name}.{local}")) is not None
    )
    kind, type_ = _kind(name, entry)
    return ModuleInfo(name, type_, kind, tensors, output_embedding=name.rpartition(".")[2] in _HEADS)


def _kind(name: str, entry: TensorEntry) -> tuple[Kind, str]:
    if len(entry.shape) != 2:
        return "other", "Module"
    if any(each in name.rpartition(".")[2] for each in _LOOKED_UP):
        return "embedding", "Embedding"
    return "linear", "Linear"


def guess_dtype(reader: CheckpointReader, config: Mapping[str, Any]) -> str | None:
    """The dtype that the model is loaded in, as safetensors spells it; None for a checkpoint without floats."""
    declared = SPELLINGS.get(str(config.get("dtype", config.get("torch_dtype"))))
    return declared or next((each.dtype for each in reader.tensors.values() if each.dtype in FLOATS), None)


def guess_units(
    plan: Plan, inventory: Inventory, reader: CheckpointReader, dtype: str | None, memory: int
) -> list[Encoded]:
    """What a worker of so much memory would be asked for under a plan, in the order of the source; not all of much."""
    units: list[Encoded] = []
    for decision in plan.quantized:
        info, scheme = inventory.by_name[decision.name], plan.schemes[str(decision.scheme)]
        tensor, entry = info.tensors[0], reader.entry(f"{info.name}{_WEIGHT}")
        if not isinstance(scheme, Bnb4bit) or entry.dtype != dtype or DTYPE_NAMES[dtype] not in scheme.dtypes:
            continue  # int8 takes no longer to make of the source than to copy from the store
        step = encoded_step(
            info,
            tensor,
            scheme,
            key=entry.name,
            target=entry.name,
            prefix=f"{info.name}.",
            dtype=entry.dtype,
            blocks=Layout.of(entry).blocks(matrix_columns(info.kind, tensor.shape)),
        )
        try:
            size = slice_values(step, memory)
        except UsageError:
            continue
        starts = range(0, step.numel, size)
        units += [Encoded.of("", step, start, min(start + size, step.numel), {}) for start in starts]
        if len(units) > _MOST:
            break
    return units


@contextmanager
def open_store(folder: Path, nbytes: int) -> Iterator[int | None]:
    """The descriptor of a file without a name in a folder, for up to so many bytes; None where that is asking much."""
    with ExitStack() as stack:
        yield _store(folder, nbytes, stack)


def _store(folder: Path, nbytes: int, stack: ExitStack) -> int | None:
    try:
        if disk_usage(folder).free < _TIMES_FREE * nbytes:
            return None
        return stack.enter_context(tempfile.TemporaryFile(dir=folder)).fileno()
    except OSError:
        return None


class MadeAhead:
    """Slices that were encoded ahead, by what they are made of."""

    def __init__(self, units: Iterable[Encoded], fingerprint: Mapping[str, Mapping[str, int]]) -> None:
        """The units in the order in which they are encoded, from files of this fingerprint."""
        self._units = list(units)
        self._fingerprint = fingerprint
        self._taken = 0
        self._made: dict[object, Made] = {}

    def take(self, made: Made) -> None:
        """Take the next of them in."""
        self._made[_key(self._units[self._taken])] = made
        self._taken += 1

    def look_up(self, unit: Encoded, fingerprint: Mapping[str, Mapping[str, int]]) -> Encoded:
        """The unit, with what it was encoded to if that is known."""
        made = self._made.get(_key(unit)) if fingerprint == self._fingerprint else None
        return replace(unit, made=made) if made else unit


def _key(unit: Encoded) -> object:
    step = unit.step
    scheme = step.scheme.model_dump_json() if step.scheme else None
    return (
        type(step.scheme),
        scheme,
        step.kind,
        step.shape,
        step.dtype,
        step.blocks,
        step.columns,
        unit.start,
        unit.stop,
    )
