"""What transformers makes of source tensors is found where it puts it, by its own operations."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from steps import source_of, weight_of
from transformers import conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    MergeModulelist,
    SplitModulelist,
    Transpose,
    WeightConverter,
)

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.boxes import ScatteredError
from rulequant.torch.checkpoint.gathering import gather, tensor_of
from rulequant.torch.checkpoint.keys import Conversion
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.tracing import converted_layouts

GATE, UP, FUSED = "experts.*.w1.weight", "experts.*.w3.weight", "experts.fused"
STACK = MergeModulelist(dim=0)
CONFIG = SimpleNamespace(
    num_attention_heads=2, vision_config=SimpleNamespace(num_attention_heads=2), get_text_config=lambda: CONFIG
)


class Model:
    """What an operation may ask of a model: its config, and the shape of a parameter."""

    config = CONFIG

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def get_parameter(self, name: str) -> torch.Tensor:
        del name
        return torch.empty(self.shape, device="meta")


class Scale(ConversionOps):  # type: ignore[misc]
    """An operation that computes."""

    def convert(self, input_dict: Any, source_patterns: Any, target_patterns: Any, **_: Any) -> Any:
        del source_patterns
        return {target_patterns[0]: next(iter(input_dict.values()))[0] + 1}


class Plain:
    """A converter, the tensors that it is given, and what it makes of them as they are."""

    def __init__(self, folder: Path, converter: Any, shape: tuple[int, ...], count: int, model: Model) -> None:
        self.folder, self.converter, self.model = folder, converter, model
        patterns = converter.source_patterns
        self.tensors = {
            pattern.replace("\\", "").replace("*", str(index)): (pattern, weight_of(*shape, seed=10 * index + number))
            for number, pattern in enumerate(patterns)
            for index in range(count if "*" in pattern else 1)
        }
        self.first = f"layer.{converter.target_patterns[0]}"
        self.made = self._convert()

    def _convert(self) -> dict[str, torch.Tensor]:
        converter = copy.deepcopy(self.converter)
        for name, (pattern, tensor) in self.tensors.items():
            converter.add_tensor(self.first, name, pattern, tensor.clone())
        made = converter.convert(self.first, model=self.model, config=CONFIG)
        return {name: each[0] if isinstance(each, list) else each for name, each in made.items()}

    def gathered(self) -> dict[str, torch.Tensor]:
        entries = source_of(self.folder, {name: tensor for name, (_, tensor) in self.tensors.items()})
        conversions = [Conversion(self.converter, pattern) for pattern, _ in self.tensors.values()]
        layouts = converted_layouts([entries[name] for name in self.tensors], conversions, self.first, self.model)
        found = {}
        with CheckpointReader.open(self.folder) as reader:
            for name, layout in layouts.items():
                numel, columns = torch.Size(layout.shape).numel(), layout.shape[-1]
                bits = gather(reader, layout.blocks(columns), columns, 0, numel, "BF16")
                values = tensor_of(bits, "BF16")
                found[name] = values.clone().reshape(layout.shape)
        return found


def assert_found(case: Plain) -> None:
    found = case.gathered()
    assert found.keys() == case.made.keys()
    for name, tensor in case.made.items():
        assert found[name].shape == tensor.shape
        assert found[name].equal(tensor), name


@pytest.mark.parametrize(
    ("patterns", "operations", "targets"),
    [
        pytest.param([GATE], [STACK], [FUSED], id="stacked"),
        pytest.param([GATE, UP], [STACK, Concatenate(dim=1)], [FUSED], id="rows together"),
        pytest.param([UP, GATE], [STACK, Concatenate(dim=1)], [FUSED], id="in the converter's order"),
        pytest.param([GATE, UP], [STACK, Concatenate(dim=2)], [FUSED], id="columns together"),
        pytest.param([GATE], [STACK, Transpose(1, 2)], [FUSED], id="transposed"),
        pytest.param([GATE, UP], [STACK, Concatenate(dim=1), Transpose(1, 2)], [FUSED], id="together, transposed"),
        pytest.param([GATE], [MergeModulelist(dim=1)], [FUSED], id="stacked otherwise"),
        pytest.param([GATE], [STACK, Transpose(0, 1)], [FUSED], id="experts transposed"),
        pytest.param([GATE, UP], [Concatenate(dim=0)], [FUSED], id="not stacked"),
        pytest.param(["qkv"], [Chunk(dim=0)], ["q", "k"], id="split"),
        pytest.param(["qkv"], [Transpose(0, 1), Chunk(dim=1)], ["q", "k"], id="transposed, split"),
        pytest.param(["fused"], [SplitModulelist(dim=1)], [FUSED + ".*"], id="taken apart"),
    ],
)
def test_places_are_those_of_transformers(
    patterns: list[str], operations: list[Any], targets: list[str], tmp_path: Path
) -> None:
    """Values gathered by place equal those that the converter makes of whole tensors."""
    converter = WeightConverter(patterns, targets, operations=operations)
    assert_found(Plain(tmp_path, converter, (4, 6), 3, Model(6, 4)))


SHAPES = ((24, 6), (4, 24, 6), (24,))
"""Of matrices, of fused experts, of biases."""
CONVERTERS = [
    pytest.param(each, id=f"{name}-{each.source_patterns[0]}")
    for name in sorted(conversion_mapping._build_checkpoint_conversion_mapping())
    if name not in conversion_mapping._MODEL_TO_CONVERSION_PATTERN
    for each in conversion_mapping.get_checkpoint_conversion_mapping(name)
    if isinstance(each, WeightConverter)
]


@pytest.mark.parametrize("converter", CONVERTERS)
def test_all_converters_of_transformers_are_followed(converter: Any, tmp_path: Path) -> None:
    """For every shape of tensors that one is for; a new one that computes would not be."""
    followed = 0
    for shape in SHAPES:
        # What splits by the sizes of parameters gets as much for each.
        model = Model(*shape[:-2], 24 // len(converter.target_patterns), *shape[-1:]) if len(shape) > 1 else Model(8)
        try:
            assert_found(Plain(tmp_path, converter, shape, 4, model))
        except (IndexError, RuntimeError, ValueError, ScatteredError):
            continue  # of experts, and not of a matrix, whose columns it would take apart; or the other way around
        followed += 1
    assert followed > 0


def test_what_computes_is_refused(tmp_path: Path) -> None:
    """Values that are nowhere in the source cannot be read; the operation is named."""
    case = Plain(tmp_path, WeightConverter("norm", "weight", operations=[Scale()]), (4, 6), 1, Model())
    with pytest.raises(CheckpointError, match=r"`norm`: transformers computes .* \(Scale\), so they are not quanti"):
        case.gathered()


def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    """Gate and up of different widths cannot be one matrix."""
    tensors = {GATE.replace("*", "0"): weight_of(4, 6), UP.replace("*", "0"): weight_of(4, 7)}
    entries = source_of(tmp_path, tensors)
    converter = WeightConverter([GATE, UP], FUSED, operations=[STACK, Concatenate(dim=1)])
    conversions = [Conversion(converter, GATE), Conversion(converter, UP)]
    with pytest.raises(CheckpointError, match=r"its like: transformers cannot convert .*\[1, 4, 6\], \[1, 4, 7\] do"):
        converted_layouts([entries[name] for name in tensors], conversions, FUSED, Model())
