"""Experts of a source found in the fused tensor: the places are where transformers' own converters put them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from steps import source_of, weight_of
from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose, WeightConverter

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.gathering import gather
from rulequant.torch.checkpoint.keys import Conversion
from rulequant.torch.checkpoint.merging import expert_blocks, merge_of, merge_whole
from rulequant.torch.checkpoint.reader import CheckpointReader

GATE, UP = "experts.*.w1.weight", "experts.*.w3.weight"
STACK = MergeModulelist(dim=0)


def _source(folder: Path, patterns: list[str], count: int = 3, shape: tuple[int, int] = (4, 6)) -> Any:
    tensors = {
        pattern.replace("*", str(index)): weight_of(*shape, seed=10 * index + number)
        for number, pattern in enumerate(patterns)
        for index in range(count)
    }
    return tensors, source_of(folder, tensors)


def _merged(
    folder: Path, patterns: list[str], operations: list[Any], shape: tuple[int, ...], **options: Any
) -> tuple[Any, Any, Any]:
    tensors, entries = _source(folder, patterns, **options)
    converter = WeightConverter(patterns, "experts.fused", operations=operations)
    found = [entries[name] for name in tensors]
    conversions = [Conversion(converter, pattern) for pattern in patterns for _ in range(len(found) // len(patterns))]
    return found, conversions, shape


@pytest.mark.parametrize(
    ("patterns", "operations", "shape"),
    [
        pytest.param([GATE], [STACK], (3, 4, 6), id="stacked"),
        pytest.param([GATE, UP], [STACK, Concatenate(dim=1)], (3, 8, 6), id="rows together"),
        pytest.param([UP, GATE], [STACK, Concatenate(dim=1)], (3, 8, 6), id="in the converter's order"),
        pytest.param([GATE, UP], [STACK, Concatenate(dim=2)], (3, 4, 12), id="columns together"),
        pytest.param([GATE], [STACK, Transpose(1, 2)], (3, 6, 4), id="transposed"),
        pytest.param([GATE, UP], [STACK, Concatenate(dim=1), Transpose(1, 2)], (3, 6, 8), id="together, transposed"),
    ],
)
def test_places_are_those_of_transformers(
    patterns: list[str], operations: list[Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Values gathered by place equal those that the converter makes of whole tensors."""
    entries, conversions, shape = _merged(tmp_path, patterns, operations, shape)
    blocks = expert_blocks(entries, conversions, shape)
    assert blocks is not None
    numel = torch.Size(shape).numel()
    with CheckpointReader.open(tmp_path) as reader:
        gathered = gather(reader, blocks, shape[-1], 0, numel, torch.bfloat16).reshape(shape)

        def read(entry: Any) -> torch.Tensor:
            data = torch.frombuffer(reader.read(entry.name), dtype=torch.bfloat16)
            return data.reshape(entry.shape)

        assert gathered.equal(merge_whole(entries, merge_of(conversions), read, shape))


@pytest.mark.parametrize(
    "operations",
    [[MergeModulelist(dim=1)], [STACK, Transpose(0, 1)], [Concatenate(dim=0)]],
    ids=["stacked otherwise", "experts transposed", "not stacked"],
)
def test_other_converters_are_left_to_transformers(operations: list[Any], tmp_path: Path) -> None:
    """What works across experts has no places."""
    assert expert_blocks(*_merged(tmp_path, [GATE], operations, (3, 4, 6))) is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 8, 6), r"`experts\.0\.w1\.weight` and its like are \[3\] tensors, config\.json asks for 5 experts"),
        ((3, 8, 7), r"merge to the shape \[3, 8, 6\], config\.json asks for \[3, 8, 7\]"),
    ],
    ids=["count", "size"],
)
def test_experts_of_another_model_are_refused(shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    """Their number and their sizes are compared before anything is written."""
    with pytest.raises(CheckpointError, match=message):
        expert_blocks(*_merged(tmp_path, [GATE, UP], [STACK, Concatenate(dim=1)], shape))


def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    """Gate and up of different widths cannot be one matrix."""
    tensors = {GATE.replace("*", "0"): weight_of(4, 6), UP.replace("*", "0"): weight_of(4, 7)}
    entries = source_of(tmp_path, tensors)
    converter = WeightConverter([GATE, UP], "experts.fused", operations=[STACK, Concatenate(dim=1)])
    conversions = [Conversion(converter, GATE), Conversion(converter, UP)]
    with pytest.raises(CheckpointError, match=r"have the shapes \[4, 6\], \[4, 7\], which do not fit together"):
        expert_blocks([entries[name] for name in tensors], conversions, (1, 8, 6))
