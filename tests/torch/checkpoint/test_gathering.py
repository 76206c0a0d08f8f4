"""Rectangles of source tensors put together: every slice of the matrix is what torch makes of whole tensors."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from steps import source_of, weight_of

from rulequant.torch.checkpoint.gathering import gather, tensor_of
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.step import Block

GATE, UP, WIDE = weight_of(6, 10), weight_of(4, 10, seed=1), weight_of(7, 5, dtype=torch.float32, seed=2)


def _block(name: str, rows: int, columns: int, **place: int) -> tuple[str, Block]:
    transposed = bool(place.pop("transposed", 0))
    stride = place.pop("stride", columns)
    return name, Block(None, rows, columns, stride, transposed=transposed, **place)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expected", "blocks"),
    [
        pytest.param(GATE, [_block("gate", 6, 10)], id="as it is"),
        pytest.param(GATE.T, [_block("gate", 6, 10, transposed=1)], id="transposed"),
        pytest.param(WIDE.to(torch.bfloat16), [_block("wide", 7, 5)], id="cast"),
        pytest.param(WIDE.T.to(torch.bfloat16), [_block("wide", 7, 5, transposed=1)], id="cast and transposed"),
        pytest.param(torch.cat([GATE, UP]), [_block("gate", 6, 10), _block("up", 4, 10, row=6)], id="above each other"),
        pytest.param(
            torch.cat([GATE[:4], UP], dim=1),
            [_block("gate", 4, 10), _block("up", 4, 10, column=10)],
            id="side by side",
        ),
        pytest.param(
            torch.cat([GATE, UP]).T,
            [_block("gate", 6, 10, transposed=1), _block("up", 4, 10, column=6, transposed=1)],
            id="put together and transposed",
        ),
        pytest.param(
            torch.cat([GATE[:, 5:].T, GATE[:, :5].T]),
            [
                _block("gate", 6, 5, stride=10, first=5, transposed=1),
                _block("gate", 6, 5, stride=10, row=5, transposed=1),
            ],
            id="halves transposed",
        ),
        pytest.param(GATE[2:5, 3:7], [_block("gate", 3, 4, stride=10, first=23)], id="a part"),
    ],
)
def test_any_slice_of_the_matrix(expected: torch.Tensor, blocks: list[tuple[str, Block]], tmp_path: Path) -> None:
    """Slices that begin and end anywhere, in rows and between them."""
    entries = source_of(tmp_path / "source", {"gate": GATE, "up": UP, "wide": WIDE})
    placed = tuple(
        Block(entries[name], each.rows, each.columns, each.stride, each.first, each.row, each.column, each.transposed)
        for name, each in blocks
    )
    flat = expected.contiguous().reshape(-1)
    chosen = random.Random(0)
    ranges = [(0, len(flat))] + [tuple(sorted(chosen.sample(range(len(flat) + 1), 2))) for _ in range(60)]
    with CheckpointReader.open(tmp_path / "source") as reader:
        for start, stop in ranges:
            found = tensor_of(gather(reader, placed, expected.shape[1], start, stop, "BF16"), "BF16")
            assert found.equal(flat[start:stop]), (start, stop)
