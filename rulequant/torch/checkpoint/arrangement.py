"""Where every tensor of an output file lies, known before any of it is encoded.

Records, whose length only encoding tells, come last. Tensors of whole words come first, so that they are aligned.
Behind all of it, while the file is written, is room for what encoders keep until a tensor is complete.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rulequant.torch.checkpoint.header import ITEM_SIZES, SPELLINGS
from rulequant.torch.checkpoint.step import RECORD_BYTES, Step
from rulequant.torch.checkpoint.writer import aligned, estimate_header

__all__ = ["Arrangement", "Place", "arrange"]

_WORD = 8
_UNNAMED = 8
"""More tensors than any method makes of a weight; where its scheme does not name them."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a file; `start` counts from the end of the header."""

    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Arrangement:
    """The places of all tensors of a file, and what else it has room for. Offsets count bytes of the file."""

    header_bytes: int
    """Reserved for the header, without the eight bytes of its length."""
    places: Mapping[str, Place]
    """By full name, in the order of the file."""
    regions: Mapping[str, int]
    """Where the tensors of a step begin that its scheme does not name, by the key of the step."""
    end: int
    """Where the records begin."""
    work: Mapping[str, int]
    """Where encoders keep what they need at the end, by the key of the step; page by page."""
    size: int
    """Bytes of the file while it is written."""

    @property
    def data_start(self) -> int:
        """Where the header ends."""
        return _WORD + self.header_bytes

    def offset(self, name: str) -> int:
        """Where a tensor begins in the file."""
        return self.data_start + self.places[name].start


def arrange(steps: Sequence[Step]) -> Arrangement:
    """Arrange the tensors of one file."""
    tensors = [tensor for step in steps for tensor in step.tensors]
    # A stable sort: otherwise in the order of the steps.
    tensors.sort(key=lambda each: each.nbytes % _WORD != 0)
    places: dict[str, Place] = {}
    position = 0
    for tensor in tensors:
        places[tensor.name] = Place(SPELLINGS[tensor.dtype], tensor.shape, position, tensor.nbytes)
        position += tensor.nbytes
    header = estimate_header(_entries(steps, places))
    end = _WORD + header + position
    regions: dict[str, int] = {}
    for step in steps:
        if not step.tensors:
            regions[step.key] = end
            end += step.nbytes
    work: dict[str, int] = {}
    size = end + RECORD_BYTES * sum(step.scheme is not None for step in steps)
    for step in steps:
        if step.slicing and step.slicing.work_bytes:
            work[step.key] = aligned(size, mmap.ALLOCATIONGRANULARITY)
            size = work[step.key] + step.slicing.work_bytes
    return Arrangement(header, places, regions, end, work, size)


def _entries(steps: Sequence[Step], places: Mapping[str, Place]) -> list[tuple[str, str, tuple[int, ...]]]:
    """The entries that a header may have at most, for its estimate."""
    entries = [(name, place.dtype, place.shape) for name, place in places.items()]
    longest = max(map(len, ITEM_SIZES))
    for step in steps:
        if step.scheme is not None:
            # Names of unknown suffixes: as many as there can be, each longer than any.
            name = f"{max(step.prefix, step.key, step.target, key=len)}{'x' * 48}"
            count = _UNNAMED if not step.tensors else 2
            entries += [(f"{name}{number}", "_" * longest, (0, 0, 0)) for number in range(count)]
    return entries
