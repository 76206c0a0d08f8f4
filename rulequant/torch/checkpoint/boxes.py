"""Where the values of a tensor lie in the source, followed through whatever only rearranges them; without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple

from rulequant.torch.checkpoint.header import TensorEntry
from rulequant.torch.checkpoint.step import Block

__all__ = ["Layout", "ScatteredError"]

_MAX_BOXES = 1 << 16
"""More than any tensor is made of: two for each head, or for each of a thousand experts."""


class ScatteredError(Exception):
    """The values lie in more pieces, or otherwise, than can be read."""


class _Box(NamedTuple):
    """Values of a source tensor at equal distances, and where they lie in the tensor; all numbers count elements."""

    entry: TensorEntry
    first: int
    """Where in the source tensor the first of them is."""
    start: tuple[int, ...]
    """Of the first, by dimension."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """From one to the next in the source, by dimension."""


class _Run(NamedTuple):
    """What a box has in one dimension; `first` is what that adds to where it begins in the source."""

    start: int
    size: int
    stride: int
    first: int = 0


_Runs = tuple[tuple[_Run, ...], int]
"""Of several dimensions together, and what their beginnings add."""


@dataclass(frozen=True)
class Layout:
    """A tensor by where its values are in the source; every value is in one box."""

    shape: tuple[int, ...]
    boxes: tuple[_Box, ...]

    @classmethod
    def of(cls, entry: TensorEntry) -> Layout:
        """A source tensor as it is."""
        strides = tuple(prod(entry.shape[axis + 1 :]) for axis in range(len(entry.shape)))
        return cls(entry.shape, (_Box(entry, 0, (0,) * len(entry.shape), entry.shape, strides),))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Of the source tensors, as safetensors spells them."""
        return tuple(dict.fromkeys(box.entry.dtype for box in self.boxes))

    def permuted(self, axes: Sequence[int]) -> Layout:
        """With its dimensions in another order."""

        def turned(values: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(values[axis] for axis in axes)

        boxes = (
            each._replace(start=turned(each.start), shape=turned(each.shape), strides=turned(each.strides))
            for each in self.boxes
        )
        return Layout(turned(self.shape), tuple(boxes))

    def part(self, axis: int, start: int, stop: int) -> Layout:
        """What lies in a range of one dimension."""
        boxes = []
        for box in self.boxes:
            low, high = max(box.start[axis], start), min(box.start[axis] + box.shape[axis], stop)
            if low < high:
                first = box.first + (low - box.start[axis]) * box.strides[axis]
                here, size = _with(box.start, axis, low - start), _with(box.shape, axis, high - low)
                boxes.append(box._replace(first=first, start=here, shape=size))
        return Layout(_with(self.shape, axis, stop - start), tuple(boxes))

    @staticmethod
    def joined(layouts: Sequence[Layout], axis: int) -> Layout:
        """Side by side along a dimension in which alone they may differ.

        Raises:
            ValueError: they do not fit together.
        """
        shape = layouts[0].shape
        if any(_with(each.shape, axis, 0) != _with(shape, axis, 0) for each in layouts):
            raise ValueError(f"{', '.join(str(list(each.shape)) for each in layouts)} do not fit together")
        boxes: list[_Box] = []
        at = 0
        for each in layouts:
            boxes += [box._replace(start=_with(box.start, axis, box.start[axis] + at)) for box in each.boxes]
            at += each.shape[axis]
        return _bounded(_with(shape, axis, at), boxes)

    def reshaped(self, shape: Sequence[int]) -> Layout:
        """The same values, row by row, in another shape of as many elements.

        Raises:
            ScatteredError: they come to lie in too many pieces.
        """
        new = tuple(shape)
        if prod(self.shape) == 0:
            return Layout(new, ())
        groups = tuple(_groups(self.shape, new))
        boxes: list[_Box] = []
        for box in self.boxes:
            runs = [
                list(_split_all(_merged(self.shape[old], box, old, left=_MAX_BOXES), new[made])) for old, made in groups
            ]
            if prod(map(len, runs)) + len(boxes) > _MAX_BOXES:
                raise ScatteredError
            boxes += [_box(box, chosen) for chosen in product(*runs)]
        return Layout(new, tuple(boxes))

    def blocks(self, columns: int) -> tuple[Block, ...]:
        """As rectangles of the matrix [rows, columns] that the values are, row by row.

        Raises:
            ScatteredError: neither the rows nor the columns of a rectangle lie in one piece in the source.
        """
        matrix = self.reshaped((prod(self.shape) // max(columns, 1), columns))
        return tuple(_block(each) for each in sorted(matrix.boxes, key=lambda each: each.start))


def _with(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return *values[:axis], value, *values[axis + 1 :]


def _bounded(shape: tuple[int, ...], boxes: list[_Box]) -> Layout:
    if len(boxes) > _MAX_BOXES:
        raise ScatteredError
    return Layout(shape, tuple(boxes))


def _groups(old: tuple[int, ...], new: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Dimensions of two shapes that hold the same elements, as few together as can be."""
    i = j = 0
    while i < len(old) or j < len(new):
        first = i, j
        one, other = prod(old[i : i + 1]), prod(new[j : j + 1])
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while one != other:
            if one < other:
                one, i = one * old[i], i + 1
            else:
                other, j = other * new[j], j + 1
        yield slice(first[0], i), slice(first[1], j)


def _merged(shape: tuple[int, ...], box: _Box, axes: slice, *, left: int) -> list[_Run]:
    """A box in some dimensions that are made one."""
    runs, extent = [_Run(0, 1, 0)], 1
    dimensions = zip(shape, box.start[axes], box.shape[axes], box.strides[axes], strict=True)
    for whole, start, size, stride in reversed(list(dimensions)):
        inner = runs[0]
        is_full = len(runs) == 1 and inner.size == extent
        if is_full and (size == 1 or extent == 1 or stride == inner.stride * extent):
            step = stride if extent == 1 else inner.stride
            runs = [_Run(start * extent, size * extent, step, inner.first)]
        elif size * len(runs) > left:
            raise ScatteredError
        else:
            runs = [
                _Run((start + index) * extent + each.start, each.size, each.stride, each.first + index * stride)
                for index in range(size)
                for each in runs
            ]
        extent *= whole
    return runs


def _split_all(runs: list[_Run], shape: tuple[int, ...]) -> Iterator[_Runs]:
    for run in runs:
        for found, first in _split(run, shape):
            yield found, run.first + first


def _split(run: _Run, shape: tuple[int, ...]) -> Iterator[_Runs]:
    """A run in one dimension that is made several."""
    if len(shape) < 2:
        yield (run,) if shape else (), 0
        return
    inner, end = prod(shape[1:]), run.start + run.size
    whole = range(-(-run.start // inner), end // inner)
    pieces = [(whole.start, len(whole), 0, inner)] if whole else []
    for row in dict.fromkeys((run.start // inner, (end - 1) // inner)):
        if row not in whole:
            low, high = max(run.start, row * inner), min(end, (row + 1) * inner)
            pieces.append((row, 1, low - row * inner, high - low))
    for row, count, start, size in pieces:
        skipped = (row * inner + start - run.start) * run.stride
        for found, first in _split(_Run(start, size, run.stride), shape[1:]):
            yield (_Run(row, count, run.stride * inner), *found), skipped + first


def _box(box: _Box, chosen: Sequence[_Runs]) -> _Box:
    runs = [run for found, _ in chosen for run in found]
    return _Box(
        box.entry,
        box.first + sum(first for _, first in chosen),
        tuple(each.start for each in runs),
        tuple(each.size for each in runs),
        tuple(each.stride for each in runs),
    )


def _block(box: _Box) -> Block:
    (row, column), (rows, columns), (down, right) = box.start, box.shape, box.strides
    if right == 1 or columns == 1:
        return Block(box.entry, rows, columns, down if rows > 1 else columns, box.first, row, column)
    if down == 1 or rows == 1:
        return Block(box.entry, columns, rows, right, box.first, row, column, transposed=True)
    raise ScatteredError
