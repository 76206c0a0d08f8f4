"""A file of the output cut into units of work, small enough for the memory that a worker has."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from rulequant.errors import UsageError
from rulequant.schemes import WORK
from rulequant.torch.checkpoint.arrangement import Arrangement, arrange
from rulequant.torch.checkpoint.files import printable, size_text
from rulequant.torch.checkpoint.header import ITEM_SIZES
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.checkpoint.units import Copied, Encoded, Finished, Gathered, Unit, Whole

__all__ = ["DEFAULT_MEMORY", "SMALLEST_MEMORY", "Cutting", "slice_values"]

DEFAULT_MEMORY = 32 << 20
"""Bytes that a worker may take for what it reads, encodes and writes at a time."""
SMALLEST_MEMORY = 12 << 20
_SCRATCH = 8 << 20
"""What the kernels take of it, whatever they encode."""
_LARGEST_SLICE = 1 << 23
"""Values; larger slices are no faster."""


@dataclass(frozen=True)
class Cutting:
    """How a file is cut; a function of its steps and of the memory alone."""

    shard: str
    """Its path in the output."""
    steps: tuple[Step, ...]
    memory: int
    """What a unit may take."""

    @cached_property
    def arrangement(self) -> Arrangement:
        """Where all lies in the file."""
        return arrange(self.steps)

    def units(self) -> Iterator[tuple[int, Unit]]:
        """What may be done in any order, each with the number of its step; what only finishes a step comes later.

        Raises:
            UsageError: a row of a weight takes more memory than that.
        """
        for number, step in enumerate(self.steps):
            offsets = self._offsets(step)
            if step.scheme is not None and step.slicing is None:
                yield number, Whole(self.shard, step, offsets, self.arrangement.regions.get(step.key))
                continue
            size = slice_values(step, self.memory)
            for start in range(0, step.numel, size):
                stop = min(start + size, step.numel)
                if step.scheme is not None:
                    yield number, Encoded.of(self.shard, step, start, stop, offsets)
                else:
                    yield number, self._copied(step, start, stop)

    def count(self, step: Step) -> int:
        """The units of a step."""
        if step.scheme is not None and step.slicing is None:
            return 1
        return math.ceil(step.numel / slice_values(step, self.memory))

    def finished(self, step: Step) -> Finished:
        """The unit that ends a step of which slices were encoded that do not know of each other."""
        return Finished(self.shard, step, self._offsets(step))

    def _copied(self, step: Step, start: int, stop: int) -> Copied | Gathered:
        (tensor,) = step.tensors
        offset = self.arrangement.offset(tensor.name) + start * (tensor.nbytes // step.numel)
        block = step.blocks[0]
        # As it lies there, from the first value to the last; all else is put together.
        if len(step.blocks) > 1 or block.rows > 1 or block.entry.shape != step.shape:
            return Gathered.of(self.shard, step, start, stop, offset)
        return Copied(self.shard, block.entry, start, stop, step.dtype, offset)

    def _offsets(self, step: Step) -> dict[str, int]:
        offsets = {each.name.removeprefix(step.prefix): self.arrangement.offset(each.name) for each in step.tensors}
        work = self.arrangement.work.get(step.key)
        return offsets if work is None else {**offsets, WORK: work}


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
