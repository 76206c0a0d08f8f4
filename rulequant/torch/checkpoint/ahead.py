"""The first file of an output begun while the plan is still being made, by a guess at what it will be; without torch.

A library tells what modules a checkpoint is for, and takes seconds to import. Meanwhile a process writes what names and
shapes in the headers make likely, into a file without a name, each tensor where it would lie. If just this file is
asked for then, it gets its name, and workers do what is left. A wrong guess is dropped: it costs the work of an idle
core.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from rulequant.inventory import Inventory, Kind, ModuleInfo, TensorInfo
from rulequant.plan import Plan
from rulequant.torch.checkpoint.boxes import Layout
from rulequant.torch.checkpoint.cutting import Cutting
from rulequant.torch.checkpoint.files import close_read
from rulequant.torch.checkpoint.header import DTYPE_NAMES, FLOATS, SPELLINGS, TensorEntry
from rulequant.torch.checkpoint.partfile import free_bytes, open_nameless
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.shardfile import Begun
from rulequant.torch.checkpoint.shards import plan_jobs
from rulequant.torch.checkpoint.step import Step, encoded_step, kept_step, matrix_columns
from rulequant.torch.checkpoint.units import Copied, Encoded, Result, Unit

__all__ = ["Draft", "guess_dtype", "guess_inventory", "guess_steps", "open_draft"]

_WEIGHT = ".weight"
_HEADS = frozenset({"lm_head", "embed_out", "output"})
_LOOKED_UP = ("embed", "wte", "wpe", "shared")
_EXPERTS = ".experts."
"""Which transformers fuses, so that none of them is a module."""
_MOST = 2000
"""Units: what takes longer than any import."""
_TIMES_FREE = 4
"""Of what is stored: so that the output fits wherever it fitted without, also where the guess is wrong."""


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


def guess_steps(plan: Plan, inventory: Inventory, reader: CheckpointReader, dtype: str | None) -> list[Step]:
    """What a plan would have written, in the order of the source; nothing where a library rearranges weights."""
    if any(_EXPERTS in name for name in reader.tensors):
        return []
    return [_step(entry, plan, inventory, dtype) for entry in reader.tensors.values()]


def _step(entry: TensorEntry, plan: Plan, inventory: Inventory, dtype: str | None) -> Step:
    stored = dtype if dtype and entry.dtype in FLOATS else entry.dtype
    name = entry.name.removesuffix(_WEIGHT)
    decision = plan.by_name.get(name) if name != entry.name else None
    if decision is None or decision.scheme is None:
        return kept_step(entry, entry.name, stored)
    info = inventory.by_name[name]
    tensor = info.tensors[0]
    return encoded_step(
        info,
        tensor,
        plan.schemes[decision.scheme],
        key=entry.name,
        target=entry.name,
        prefix=f"{name}.",
        dtype=stored,
        blocks=Layout.of(entry).blocks(matrix_columns(info.kind, tensor.shape)),
    )


@contextmanager
def open_draft(folder: Path, nbytes: int) -> Iterator[int | None]:
    """The descriptor of a file without a name in a folder, for up to so many bytes; None where that is asking much."""
    fd = None
    with suppress(OSError):
        if free_bytes(folder) >= _TIMES_FREE * nbytes:
            fd = open_nameless(folder)
    try:
        yield fd
    finally:
        if fd is not None:
            close_read(fd)


class Draft:
    """A file of the output that was not asked for yet: what it is taken for, and what of it is written."""

    def __init__(
        self,
        fd: int,
        steps: Sequence[Step],
        fingerprint: Mapping[str, Mapping[str, int]],
        memory: int,
        max_shard_bytes: int,
    ) -> None:
        """The first file of an output of such steps, from files of this fingerprint; the descriptor stays its owner's.

        Raises:
            ValueError: there are no steps.
            UsageError: a row of a weight takes more than the memory of a unit.
        """
        if not steps:
            raise ValueError("a file of nothing")
        self.fd, self.fingerprint = fd, {file: dict(stamp) for file, stamp in fingerprint.items()}
        job = plan_jobs(steps, max_shard_bytes)[0]
        self._cutting = Cutting(job.name, job.steps, memory)
        ahead = ((place, unit) for place, (_, unit) in enumerate(self._cutting.units()) if _may_be_ahead(unit))
        self._places: dict[int, Unit] = dict(islice(ahead, _MOST))
        self._results: dict[int, Result] = {}

    @property
    def units(self) -> list[Unit]:
        """What is to be done of it, in this order."""
        return list(self._places.values())

    def take(self, result: Result) -> None:
        """Take in the result of the next of them."""
        place = next(islice(self._places, len(self._results), None))
        self._results[place] = result

    def begun(self, cutting: Cutting, fingerprint: Mapping[str, Mapping[str, int]]) -> Begun | None:
        """What is written of a file that is asked for; None if that is another."""
        same = _what_counts(cutting) == _what_counts(self._cutting) and fingerprint == self.fingerprint
        return Begun(self.fd, self._results) if same and self._results else None

    def drop(self) -> None:
        """Give the disk back what is written."""
        with suppress(OSError):
            os.ftruncate(self.fd, 0)


def _may_be_ahead(unit: Unit) -> bool:
    """Whether a unit takes neither torch nor what only the end of another tells."""
    if isinstance(unit, Copied):
        return unit.entry.dtype == unit.dtype
    return isinstance(unit, Encoded) and not unit.step.takes_torch


def _what_counts(cutting: Cutting) -> tuple[int, list[Step]]:
    """All that decides what lies where in a file; not its name, nor what its library calls a tensor."""
    return cutting.memory, [replace(step, target="") for step in cutting.steps]
