"""Values of a step's matrix read from where they lie in the source, a slice at a time.

They are bit patterns, as integers of their size: torch is imported only where they are cast, or wanted as a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from rulequant.torch.arrays.spans import scratch
from rulequant.torch.checkpoint.header import DTYPE_NAMES, ITEM_SIZES, TensorEntry
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.step import Block

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cast_bits", "gather", "raw", "read_bits", "read_tensor", "tensor_of"]

_INTEGERS: dict[int, type[np.generic]] = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


class _Rectangle(NamedTuple):
    """Rows and columns of the matrix, from the first up to, but without, the last."""

    top: int
    bottom: int
    left: int
    right: int


def gather(
    reader: CheckpointReader, blocks: tuple[Block, ...], columns: int, start: int, stop: int, dtype: str
) -> NDArray[Any]:
    """The values of a matrix [rows, columns] from one flat index to another, in memory of the calling thread.

    They are cast to `dtype`, as safetensors spells it. The next call overwrites them.
    """
    values = scratch("gathered", (stop - start,), _INTEGERS[ITEM_SIZES[dtype]])
    for rectangle in _rectangles(start, stop, columns):
        at = rectangle.top * columns + rectangle.left - start
        height, width = rectangle.bottom - rectangle.top, rectangle.right - rectangle.left
        target = values[at : at + height * width].reshape(height, width)
        for block in blocks:
            if (shared := _shared(block, rectangle)) is not None:
                _fill(reader, block, shared, target, rectangle, dtype)
    return values


def read_bits(reader: CheckpointReader, entry: TensorEntry, start: int, count: int) -> NDArray[Any]:
    """Some values of a source tensor, flat, in memory of the calling thread, which the next call overwrites."""
    data = scratch("read", (count,), _INTEGERS[entry.item_size])
    reader.fill(entry, start * entry.item_size, raw(data))
    return data


def read_tensor(reader: CheckpointReader, name: str) -> Tensor:
    """A source tensor as it is stored, in memory of its own."""
    entry = reader.entry(name)
    return tensor_of(read_bits(reader, entry, 0, entry.numel), entry.dtype).clone().reshape(entry.shape)


def tensor_of(bits: NDArray[Any], dtype: str) -> Tensor:
    """The same memory as a tensor of a dtype, as safetensors spells it."""
    import torch  # start-up: most of what is written was never a tensor here

    return torch.from_numpy(bits).view(getattr(torch, DTYPE_NAMES[dtype]))


def cast_bits(bits: NDArray[Any], dtype: str, to: str) -> NDArray[Any]:
    """Values of one dtype as those of another."""
    if dtype == to:
        return bits
    import torch  # start-up: as in `tensor_of`

    values = tensor_of(bits, dtype).to(getattr(torch, DTYPE_NAMES[to]))
    found: NDArray[Any] = values.view(getattr(torch, f"int{8 * values.itemsize}")).numpy()
    return found


def raw(values: NDArray[Any]) -> memoryview:
    """The bytes of an array; they are copied only where they do not lie in a row."""
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return memoryview(cast(Any, flat)) if flat.size else memoryview(b"")


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


def _fill(
    reader: CheckpointReader, block: Block, part: _Rectangle, target: NDArray[Any], around: _Rectangle, dtype: str
) -> None:
    """Read a part of a block into its place in `target`, which holds the values of the rectangle around it."""
    rows = part.top - block.row, part.bottom - block.row
    columns = part.left - block.column, part.right - block.column
    if block.transposed:
        rows, columns = columns, rows
    place = target[part.top - around.top : part.bottom - around.top, part.left - around.left : part.right - around.left]
    first = block.first + rows[0] * block.stride + columns[0]
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    in_a_row = width == block.stride or height == 1
    if in_a_row and not block.transposed and place.flags.c_contiguous and block.entry.dtype == dtype:
        reader.fill(block.entry, first * block.entry.item_size, raw(place))
        return
    # A narrow part of wide rows, as of a transposed matrix: only what is asked for is read, row by row.
    values = read_bits(reader, block.entry, first, height * width) if in_a_row else None
    if values is None:
        values = _read_rows(reader, block, first, height, width)
    found = cast_bits(values, block.entry.dtype, dtype).reshape(height, width)
    np.copyto(place, found.T if block.transposed else found)


def _read_rows(reader: CheckpointReader, block: Block, first: int, height: int, width: int) -> NDArray[Any]:
    size = block.entry.item_size
    data = scratch("read", (height * width,), _INTEGERS[size])
    view = raw(data)
    for row in range(height):
        at = row * width * size
        reader.fill(block.entry, (first + row * block.stride) * size, view[at : at + width * size])
    return data
