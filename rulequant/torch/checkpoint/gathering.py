"""Values of a step's matrix read from where they lie in the source, a slice at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from rulequant.torch.arrays.spans import scratch
from rulequant.torch.checkpoint.header import DTYPE_NAMES, TensorEntry
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.step import Block

__all__ = ["TORCH_DTYPES", "gather", "raw", "read_tensor", "read_values"]

TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, each) for name, each in DTYPE_NAMES.items()}
"""What can be read, as safetensors spells it."""


class _Rectangle(NamedTuple):
    """Rows and columns of the matrix, from the first up to, but without, the last."""

    top: int
    bottom: int
    left: int
    right: int


def gather(
    reader: CheckpointReader, blocks: tuple[Block, ...], columns: int, start: int, stop: int, dtype: torch.dtype
) -> Tensor:
    """The values of a matrix [rows, columns] from one flat index to another, in memory of the calling thread.

    The next call overwrites them.
    """
    values = torch.from_numpy(scratch("gathered", ((stop - start) * dtype.itemsize,), np.uint8)).view(dtype)
    for rectangle in _rectangles(start, stop, columns):
        at = rectangle.top * columns + rectangle.left - start
        height, width = rectangle.bottom - rectangle.top, rectangle.right - rectangle.left
        target = values[at : at + height * width].view(height, width)
        for block in blocks:
            if (shared := _shared(block, rectangle)) is not None:
                _fill(reader, block, shared, target, rectangle)
    return values


def read_values(reader: CheckpointReader, entry: TensorEntry, start: int, count: int) -> Tensor:
    """Some values of a source tensor, flat, in memory of the calling thread, which the next call overwrites."""
    data = scratch("read", (count * entry.item_size,), np.uint8)
    reader.fill(entry, start * entry.item_size, memoryview(cast(Any, data)))
    return torch.from_numpy(data).view(TORCH_DTYPES[entry.dtype])


def read_tensor(reader: CheckpointReader, name: str) -> Tensor:
    """A source tensor as it is stored, in memory of its own."""
    entry = reader.entry(name)
    return read_values(reader, entry, 0, entry.numel).clone().reshape(entry.shape)


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU; they are copied only where they do not lie in a row."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return memoryview(cast(Any, flat.numpy())) if flat.numel() else memoryview(b"")


def _rectangles(start: int, stop: int, columns: int) -> Iterator[_Rectangle]:
    """A flat range as the rest of a row, whole rows, and the beginning of a row."""
    if start % columns:
        end = min(stop, start - start % columns + columns)
        row = start // columns
        yield _Rectangle(row, row + 1, start % columns, end - row * columns)
        start = end
    whole = stop // columns
    if start // columns < whole:
        yield _Rectangle(start // columns, whole, 0, columns)
        start = whole * columns
    if start < stop:
        yield _Rectangle(whole, whole + 1, 0, stop - start)


def _shared(block: Block, rectangle: _Rectangle) -> _Rectangle | None:
    top, bottom = max(block.row, rectangle.top), min(block.row + block.height, rectangle.bottom)
    left, right = max(block.column, rectangle.left), min(block.column + block.width, rectangle.right)
    return _Rectangle(top, bottom, left, right) if top < bottom and left < right else None


def _fill(reader: CheckpointReader, block: Block, part: _Rectangle, target: Tensor, around: _Rectangle) -> None:
    """Read a part of a block into its place in `target`, which holds the values of the rectangle around it."""
    rows = part.top - block.row, part.bottom - block.row
    columns = part.left - block.column, part.right - block.column
    if block.transposed:
        rows, columns = columns, rows
    place = target[part.top - around.top : part.bottom - around.top, part.left - around.left : part.right - around.left]
    first = block.first + rows[0] * block.stride + columns[0]
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    in_a_row = width == block.stride or height == 1
    if in_a_row and not block.transposed and place.is_contiguous() and _is_dtype(block.entry, place.dtype):
        reader.fill(block.entry, first * block.entry.item_size, raw(place))
        return
    # A narrow part of wide rows, as of a transposed matrix: only what is asked for is read, row by row.
    values = read_values(reader, block.entry, first, height * width) if in_a_row else None
    if values is None:
        values = _read_rows(reader, block, first, height, width)
    found = values.view(height, width)
    place.copy_(found.T if block.transposed else found)


def _is_dtype(entry: TensorEntry, dtype: torch.dtype) -> bool:
    return TORCH_DTYPES[entry.dtype] == dtype


def _read_rows(reader: CheckpointReader, block: Block, first: int, height: int, width: int) -> Tensor:
    size = block.entry.item_size
    data = scratch("read", (height * width * size,), np.uint8)
    view = memoryview(cast(Any, data))
    for row in range(height):
        at = row * width * size
        reader.fill(block.entry, (first + row * block.stride) * size, view[at : at + width * size])
    return torch.from_numpy(data).view(TORCH_DTYPES[block.entry.dtype])
