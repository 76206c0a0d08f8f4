"""A weight of the original and what the output has of it, span by span: neither is ever there as a whole."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from rulequant.schemes import Scheme
from rulequant.torch.checkpoint.gathering import gather, tensor_of
from rulequant.torch.checkpoint.header import ITEM_SIZES, TensorEntry
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.factories import LayerFactory, SpanFactory, factory_for

__all__ = ["Span", "StoredParts", "spans"]

_ELEMENTS = 1 << 20
"""Values of a span, unless an expert or 4096 rows are more."""
_MULTIPLE = 4096
"""What a span begins at a multiple of: the largest block size."""


class Span(NamedTuple):
    """Some values of a weight, flat and in the order in which they are encoded."""

    expert: int | None
    """The expert that they are, where the weight is one of fused experts."""
    original: Tensor
    decoded: Tensor


class StoredParts:
    """The encoded tensors of one weight in an output, read in parts."""

    def __init__(self, reader: CheckpointReader, entries: Mapping[str, TensorEntry]) -> None:
        """Take the entries by the names that the factory has for them."""
        self._reader, self._entries = reader, entries

    @property
    def names(self) -> Collection[str]:
        """As the factory names them."""
        return self._entries.keys()

    def part(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The elements [start, stop) of a tensor, flat."""
        entry = self._entries[name]
        size = ITEM_SIZES[entry.dtype]
        last = entry.numel if stop is None else min(stop, entry.numel)
        data = self._reader.read_slice(entry.name, start * size, (last - start) * size)
        return tensor_of(np.frombuffer(data, np.uint8), entry.dtype) if data else torch.empty(0)

    def whole(self) -> dict[str, Tensor]:
        """All tensors as they are."""
        return {name: self.part(name).reshape(entry.shape) for name, entry in self._entries.items()}


def spans(source: CheckpointReader, step: Step, parts: StoredParts) -> Iterator[Span]:
    """The weight of a step that encodes, and what the output's tensors stand for, from the first value to the last.

    A span is valid until the next one is asked for.
    """
    originals, decoded = _Originals(source, step), _Decoded(parts, step)
    for start, stop, expert in _ranges(step):
        yield Span(expert, originals.values(start, stop), decoded.values(start, stop))


def _ranges(step: Step) -> Iterator[tuple[int, int, int | None]]:
    """(first value, the one behind the last, expert): an expert, or whole rows that are whole blocks of every size."""
    if step.kind == "experts":
        size = step.numel // step.shape[0]
        yield from ((index * size, (index + 1) * size, index) for index in range(step.shape[0]))
        return
    least = math.lcm(step.columns, _MULTIPLE)
    size = least * max(1, _ELEMENTS // least)
    yield from ((start, min(start + size, step.numel), None) for start in range(0, step.numel, size))


class _Originals:
    """The values of the source before any cast to a smaller dtype, in the order in which they are encoded."""

    def __init__(self, source: CheckpointReader, step: Step) -> None:
        self._source, self._step = source, step
        self._dtype = "F64" if any(each.dtype == "F64" for each in step.entries) else "F32"

    def values(self, start: int, stop: int) -> Tensor:
        return tensor_of(
            gather(self._source, self._step.blocks, self._step.columns, start, stop, self._dtype), self._dtype
        )


class _Decoded:
    """What encoded tensors stand for, [..., out, in] flat; as a whole where the method knows no spans."""

    def __init__(self, parts: StoredParts, step: Step) -> None:
        self._parts, self._columns = parts, step.columns
        self._factory: LayerFactory = factory_for(cast(Scheme, step.scheme).method)
        self._whole: Tensor | None = None
        if not isinstance(self._factory, SpanFactory):
            whole = self._factory.decode(parts.whole(), step.kind)
            self._whole = (whole.T if step.kind == "conv1d" else whole).reshape(-1)

    def values(self, start: int, stop: int) -> Tensor:
        if self._whole is not None:
            return self._whole[start:stop]
        factory = cast(SpanFactory, self._factory)
        encoded = factory.span(self._parts, start, stop, self._columns)
        return self._factory.decode(encoded, "linear").reshape(-1)
