"""Where values lie, after any rearrangement: as numpy has it."""

from __future__ import annotations

import random
from math import prod
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from rulequant.torch.checkpoint import boxes
from rulequant.torch.checkpoint.boxes import Layout, ScatteredError
from rulequant.torch.checkpoint.header import TensorEntry

Array = np.ndarray[Any, Any]
_SIZES = (1, 2, 3, 4, 6)


def entry(number: int, shape: tuple[int, ...]) -> TensorEntry:
    return TensorEntry(str(number), "F32", shape, 0, 4 * prod(shape), "model.safetensors")


def values(found: Layout, sources: list[Array]) -> Array:
    """What the boxes say; a value that is in none, or in several, fails."""
    made = np.full(found.shape, -1)
    for box in found.boxes:
        place = tuple(slice(start, start + size) for start, size in zip(box.start, box.shape, strict=True))
        assert (made[place] == -1).all()
        source = sources[int(box.entry.name)]
        made[place] = as_strided(source[box.first :], box.shape, [source.itemsize * each for each in box.strides])
    assert (made >= 0).all()
    return made


def matrix(found: Layout, columns: int, sources: list[Array]) -> Array:
    """What the blocks say."""
    made = np.full((prod(found.shape) // columns, columns), -1)
    for block in found.blocks(columns):
        source = sources[int(block.entry.name)]
        strides = [source.itemsize * block.stride, source.itemsize]
        part = as_strided(source[block.first :], (block.rows, block.columns), strides)
        place = made[block.row : block.row + block.height, block.column : block.column + block.width]
        assert (place == -1).all()
        place[:] = part.T if block.transposed else part
    assert (made >= 0).all()
    return made


def divisor(random_: random.Random, number: int) -> int:
    return random_.choice([each for each in range(1, number + 1) if number % each == 0])


def other_shape(random_: random.Random, numel: int) -> tuple[int, ...]:
    sizes = [1] * random_.randint(0, 1)
    while numel > 1:
        sizes.append(divisor(random_, numel))
        numel //= sizes[-1]
    random_.shuffle(sizes)
    return tuple(sizes)


def rearranged(random_: random.Random, found: Layout, array: Array) -> tuple[Layout, Array]:
    kind = random_.choice(("permuted", "reshaped", "part"))
    if kind == "reshaped":
        shape = other_shape(random_, array.size)
        return found.reshaped(shape), array.reshape(shape)
    axes = list(range(array.ndim))
    random_.shuffle(axes)
    if kind == "permuted" or not axes:
        return found.permuted(axes), array.transpose(axes)
    size = array.shape[axes[0]]
    start = random_.randrange(size)
    stop = random_.randint(start + 1, size)
    return found.part(axes[0], start, stop), array.take(range(start, stop), axes[0])


@pytest.mark.parametrize("seed", range(4))
def test_any_rearrangement(seed: int) -> None:
    """Tensors joined, then permuted, cut and reshaped at random, are those that numpy makes; so are their blocks."""
    random_ = random.Random(seed)
    as_blocks = 0
    for _ in range(250):
        shape = tuple(random_.choice(_SIZES) for _ in range(random_.randint(1, 3)))
        sources = [np.arange(prod(shape)) + 1000 * number for number in range(random_.randint(1, 3))]
        axis = random_.randrange(len(shape))
        found = Layout.joined([Layout.of(entry(number, shape)) for number in range(len(sources))], axis)
        array = np.concatenate([each.reshape(shape) for each in sources], axis)
        for _ in range(random_.randint(0, 4)):
            found, array = rearranged(random_, found, array)
            assert found.shape == array.shape
        assert np.array_equal(values(found, sources), array)
        columns = divisor(random_, array.size)
        try:
            blocks = matrix(found, columns, sources)
        except ScatteredError:
            continue
        as_blocks += 1
        assert np.array_equal(blocks, array.reshape(-1, columns))
    assert as_blocks > 100


def test_few_blocks_for_what_models_do() -> None:
    """A third of fused projections is one; a matrix permuted for rotary embeddings is two for each head."""
    fused = Layout.of(entry(0, (24, 8)))
    assert len(fused.part(0, 8, 16).blocks(8)) == 1
    rotary = fused.reshaped((4, 3, 2, 8)).permuted((0, 2, 1, 3)).reshaped((24, 8))
    assert len(rotary.blocks(8)) == 8
    assert all(each.stride == 16 and each.columns == 8 for each in rotary.blocks(8))


def test_transposed_blocks() -> None:
    """What lies in columns is read so."""
    (block,) = Layout.of(entry(0, (6, 4))).permuted((1, 0)).blocks(6)
    assert (block.rows, block.columns, block.transposed) == (6, 4, True)


def test_no_values_have_no_boxes() -> None:
    """An empty tensor can take any shape."""
    assert Layout.of(entry(0, (0, 4))).reshaped((2, 0)) == Layout((2, 0), ())


def test_neither_rows_nor_columns_in_one_piece() -> None:
    """Such values could only be read one by one."""
    found = Layout.of(entry(0, (4, 3, 2))).permuted((2, 0, 1)).part(0, 0, 1)
    with pytest.raises(ScatteredError):
        found.reshaped((4, 3)).blocks(3)


def test_too_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before there are too many to hold."""
    monkeypatch.setattr(boxes, "_MAX_BOXES", 5)
    turned = Layout.of(entry(0, (6, 4))).permuted((1, 0))
    with pytest.raises(ScatteredError):
        Layout.joined([turned] * 6, 0)
    with pytest.raises(ScatteredError):
        Layout.of(entry(0, (4, 6))).permuted((1, 0)).reshaped((24,))


def test_what_does_not_fit_together() -> None:
    """The shapes are told."""
    with pytest.raises(ValueError, match=r"\[4, 6\], \[4, 7\] do not fit together"):
        Layout.joined([Layout.of(entry(0, (4, 6))), Layout.of(entry(1, (4, 7)))], 0)
