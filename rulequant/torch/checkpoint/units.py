"""What is done to write a file, in units small enough for the memory that a worker has; each by itself, in any order.

A unit is plain data, without torch, that any process can carry out (`work.py`): it says what to read, what to make of
it and where to write that. The bytes of a file do not depend on how it was cut into units, nor on who did them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from rulequant.torch.checkpoint.header import TensorEntry
from rulequant.torch.checkpoint.step import Block, Step
from rulequant.verification import Sample

__all__ = [
    "Checked",
    "Copied",
    "Encoded",
    "Finished",
    "Gathered",
    "Hashed",
    "Late",
    "Result",
    "Synced",
    "Unit",
    "Whole",
]


class Late(NamedTuple):
    """A tensor that only encoding could tell of: a record with its bytes, or what was put into a step's region."""

    name: str
    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]
    nbytes: int
    data: bytes | None = None
    """None: it is written."""


class Result(NamedTuple):
    """What a unit has to report."""

    late: tuple[Late, ...] = ()
    sha256: str = ""
    """Of the file, in hex, where it was hashed."""
    crc32: Mapping[str, str] | None = None
    """Of the tensors in the file, in hex, where they were checked."""
    sample: Sample = Sample()
    """How far encoded values are from the original."""


@dataclass(frozen=True, slots=True)
class Copied:
    """Elements of a tensor that is not encoded: copied, or cast."""

    shard: str
    entry: TensorEntry
    start: int
    stop: int
    dtype: str
    offset: int
    """In the file, of the first of these elements."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """Values of a tensor that is not encoded, but put together from where they lie in the source."""

    shard: str
    step: Step
    start: int
    stop: int
    offset: int
    """In the file, of the first of these values."""

    @classmethod
    def of(cls, shard: str, step: Step, start: int, stop: int, offset: int) -> Gathered:
        """The unit, with no more of the step than it needs."""
        return cls(shard, replace(step, blocks=_overlapping(step, start, stop), tensors=()), start, stop, offset)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A slice of a weight; where it is all of the weight, what is known only at the end is added at once."""

    shard: str
    step: Step
    start: int
    stop: int
    offsets: Mapping[str, int]
    """In the file, of the tensors by their names after the step's prefix; and of the room for work."""

    @classmethod
    def of(cls, shard: str, step: Step, start: int, stop: int, offsets: Mapping[str, int]) -> Encoded:
        """The unit, with no more of the step than it needs."""
        return cls(shard, replace(step, blocks=_overlapping(step, start, stop), tensors=()), start, stop, offsets)


@dataclass(frozen=True, slots=True)
class Finished:
    """What is known only when all slices of a weight are encoded."""

    shard: str
    step: Step
    offsets: Mapping[str, int]
    """As those of `Encoded`."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A weight that its method encodes only as a whole."""

    shard: str
    step: Step
    offsets: Mapping[str, int]
    """As those of `Encoded`, without room for work."""
    region: int | None = None
    """Where the tensors go one behind the other, if the scheme does not name them."""


@dataclass(frozen=True, slots=True)
class Hashed:
    """The hash of a file that is complete but for its name."""

    shard: str


@dataclass(frozen=True, slots=True)
class Checked:
    """The checksums of the tensors in a file that is complete but for its name; beside the hash, on another core."""

    shard: str


@dataclass(frozen=True, slots=True)
class Synced:
    """What is written of a file brought to the disk, while others work on."""

    shard: str


Unit = Copied | Gathered | Encoded | Finished | Whole | Hashed | Checked | Synced


def _overlapping(step: Step, start: int, stop: int) -> tuple[Block, ...]:
    """The blocks that hold some of the values from one flat index to another."""
    if len(step.blocks) == 1:
        return step.blocks
    top, bottom = start // step.columns, -(-stop // step.columns)
    return tuple(each for each in step.blocks if each.row < bottom and each.row + each.height > top)
