"""One file of the output while it is written: its units of work, what they report, and its end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rulequant.errors import UsageError
from rulequant.schemes import WORK
from rulequant.torch.checkpoint.arrangement import Arrangement, Place, arrange
from rulequant.torch.checkpoint.checksums import Digest
from rulequant.torch.checkpoint.files import printable, size_text
from rulequant.torch.checkpoint.header import ITEM_SIZES
from rulequant.torch.checkpoint.partfile import PartFile
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.checkpoint.units import (
    Checked,
    Copied,
    Encoded,
    Finished,
    Gathered,
    Hashed,
    Late,
    Result,
    Synced,
    Unit,
    Whole,
)
from rulequant.torch.checkpoint.writer import header_bytes
from rulequant.verification import Sample

__all__ = ["DEFAULT_MEMORY", "SMALLEST_MEMORY", "ShardFile", "slice_values"]

DEFAULT_MEMORY = 32 << 20
"""Bytes that a worker may take for what it reads, encodes and writes at a time."""
SMALLEST_MEMORY = 12 << 20
_SCRATCH = 8 << 20
"""What the kernels take of it, whatever they encode."""
_LARGEST_SLICE = 1 << 23
"""Values; larger slices are no faster."""


@dataclass(slots=True)
class _Open:
    """A step that is not done: how many of its units are, of how many."""

    step: Step
    units: int
    done: int = 0
    late: tuple[Late, ...] = ()
    sample: Sample = field(default_factory=Sample)
    finishing: bool = False


class ShardFile:
    """A file that is written in place, unit by unit; complete when `next_unit` has no more and all were taken in."""

    def __init__(
        self, folder: Path, name: str, steps: tuple[Step, ...], *, memory: int = DEFAULT_MEMORY, sync: bool = False
    ) -> None:
        """Create it; `memory` is what a unit may take, `sync` whether syncing is a unit of its own.

        `name` is its path in the folder.

        Raises:
            UsageError: a row of a weight takes more memory than that.
            CheckpointError: it cannot be created.
        """
        self.name = name
        self._steps, self._memory, self._sync = steps, memory, sync
        self._arrangement: Arrangement = arrange(steps)
        self._open = [_Open(step, self._count(step)) for step in steps]
        self._left = sum(each.units > 0 for each in self._open)
        self._first = self._units()
        self._then: deque[tuple[int, Unit]] = deque()
        self._last = -1
        self._places: dict[str, Place] = {}
        self._sha256, self._crc32 = "", dict[str, str]()
        self._size = 0
        self._file = PartFile(folder / name)

    def next_unit(self) -> tuple[int, Unit] | None:
        """A unit that may be done now, and the number to take its result in under; None while there is none."""
        if self._then:
            return self._then.popleft()
        found = next(self._first, None)
        if found is None and self._left == 0 and self._last < 0:
            self._seal()
            return self.next_unit()
        return found

    def take(self, number: int, result: Result) -> Step | None:
        """Take the result of a unit in; returns a step that is done by it."""
        if number < 0:
            self._last -= 1
            self._sha256, self._crc32 = result.sha256 or self._sha256, dict(result.crc32 or self._crc32)
            return None
        state = self._open[number]
        state.done += 1
        state.late += result.late
        state.sample = state.sample.plus(result.sample)
        if state.done < state.units:
            return None
        if self._needs_finish(state):
            state.finishing, state.units = True, state.units + 1
            self._then.append((number, Finished(self.name, state.step, self._offsets(state.step))))
            return None
        self._left -= 1
        return state.step

    @property
    def samples(self) -> dict[str, Sample]:
        """How far encoded weights are from the original, by module; for fused experts by parameter."""
        return {each.step.target.removesuffix(".weight"): each.sample for each in self._open if each.sample.values}

    @property
    def empty_steps(self) -> list[Step]:
        """The steps that there is nothing to do for."""
        return [each.step for each in self._open if not each.units]

    @property
    def is_complete(self) -> bool:
        """Whether all is written, and the file only waits for its name."""
        return self._last == 0

    def close(self) -> tuple[dict[str, int], Digest]:
        """Sync it and give it its name: (bytes by tensor in the order of the file, size and hashes of the file)."""
        self._file.finish()
        tensors = {name: place.nbytes for name, place in self._places.items()}
        return tensors, Digest(self._size, self._sha256, self._crc32)

    def abort(self) -> None:
        """Remove what was written so far; does nothing after `close`."""
        self._file.discard()

    def _units(self) -> Iterator[tuple[int, Unit]]:
        for number, step in enumerate(self._steps):
            offsets = self._offsets(step)
            if step.scheme is not None and step.slicing is None:
                yield number, Whole(self.name, step, offsets, self._arrangement.regions.get(step.key))
                continue
            size = self._slice(step)
            for start in range(0, step.numel, size):
                stop = min(start + size, step.numel)
                if step.scheme is not None:
                    yield number, Encoded.of(self.name, step, start, stop, offsets)
                else:
                    yield number, self._copied(step, start, stop)

    def _copied(self, step: Step, start: int, stop: int) -> Copied | Gathered:
        (tensor,) = step.tensors
        offset = self._arrangement.offset(tensor.name) + start * (tensor.nbytes // step.numel)
        block = step.blocks[0]
        # As it lies there, from the first value to the last; all else is put together.
        if len(step.blocks) > 1 or block.rows > 1 or block.entry.shape != step.shape:
            return Gathered.of(self.name, step, start, stop, offset)
        return Copied(self.name, block.entry, start, stop, step.dtype, offset)

    def _offsets(self, step: Step) -> dict[str, int]:
        offsets = {each.name.removeprefix(step.prefix): self._arrangement.offset(each.name) for each in step.tensors}
        work = self._arrangement.work.get(step.key)
        return offsets if work is None else {**offsets, WORK: work}

    def _count(self, step: Step) -> int:
        if step.scheme is not None and step.slicing is None:
            return 1
        return math.ceil(step.numel / self._slice(step))

    def _needs_finish(self, state: _Open) -> bool:
        """Whether slices were encoded that do not know of each other; one alone is finished at once."""
        return state.step.slicing is not None and state.units > 1 and not state.finishing

    def _slice(self, step: Step) -> int:
        return slice_values(step, self._memory)

    def _seal(self) -> None:
        """Write the records and the header, once all else is written; then the file may be hashed and synced."""
        found = dict(self._arrangement.places)
        position = self._arrangement.end
        for state in self._open:
            region = self._arrangement.regions.get(state.step.key, 0)
            for late in state.late:
                if late.data is None:
                    found[late.name], region = self._late_place(late, region), region + late.nbytes
                    continue
                self._file.write(late.data, position)
                found[late.name], position = self._late_place(late, position), position + late.nbytes
        self._places = dict(sorted(found.items(), key=lambda each: each[1].start))
        self._file.truncate(position)
        self._size = position
        self._file.write(header_bytes(_entries(self._places), self._arrangement.header_bytes), 0)
        # In this order the first of two workers syncs, which is waiting, and checks; the second does the longest.
        last: list[Unit] = [*([Synced(self.name)] if self._sync else []), Hashed(self.name), Checked(self.name)]
        self._then.extend((-1, each) for each in last)
        self._last = len(self._then)

    def _late_place(self, late: Late, offset: int) -> Place:
        return Place(late.dtype, late.shape, offset - self._arrangement.data_start, late.nbytes)


def _entries(tensors: dict[str, Place]) -> dict[str, object]:
    return {
        name: {"dtype": each.dtype, "shape": list(each.shape), "data_offsets": [each.start, each.start + each.nbytes]}
        for name, each in tensors.items()
    }


def slice_values(step: Step, memory: int) -> int:
    """Values of the step's tensor that fit into the memory together with what becomes of them.

    Raises:
        UsageError: a row of a weight takes more memory than that.
    """
    source = max((each.item_size for each in step.entries), default=1)
    target = max((each.nbytes for each in step.tensors), default=0) / max(step.numel, 1)
    # The source is read into memory of its own where it has to be cast or put together.
    direct = len(step.blocks) == 1 and step.entries[0].dtype == step.dtype and step.blocks[0].is_in_one_piece
    size = 0 if direct else source
    values = min(int((memory - _SCRATCH) // (size + ITEM_SIZES[step.dtype] + target + 0.25)), _LARGEST_SLICE)
    multiple = step.slicing.multiple if step.slicing else 1
    if multiple > values and multiple < step.numel:
        raise UsageError(
            f"a row of `{printable(step.key)}` does not fit into {size_text(memory)}",
            remedy="give more --memory, or fewer --workers",
        )
    rows = math.lcm(multiple, max(step.columns, 1))
    multiple = rows if rows <= values else multiple
    return max(values // multiple, 1) * multiple
