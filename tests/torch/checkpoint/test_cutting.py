"""A file cut into units: each value in one of them, none larger than the memory, the same for the same steps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from steps import encoded_step, kept_step, source_of

from rulequant.errors import UsageError
from rulequant.schemes import WORK, Bnb4bit, BnbInt8
from rulequant.torch.checkpoint.cutting import DEFAULT_MEMORY, SMALLEST_MEMORY, Cutting, slice_values
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.checkpoint.units import Copied, Encoded, Finished

MEMORIES = [SMALLEST_MEMORY, 17_000_001, DEFAULT_MEMORY, 1 << 30]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Step, ...]:
    """Of weights that little memory does not hold, one that is small, one that is kept, and one of nothing."""
    bf16 = torch.bfloat16
    shapes = {"a": (2048, 4096), "b": (1000, 3000), "c": (64, 64), "d": (4001, 1001), "e": (0, 4)}
    tensors = {f"{name}.weight": torch.zeros(shape, dtype=bf16) for name, shape in shapes.items()}
    entries = source_of(tmp_path_factory.mktemp("cutting"), tensors)
    double = Bnb4bit(double_quant=True)
    return (
        encoded_step(entries["a.weight"], double),
        encoded_step(entries["b.weight"], BnbInt8()),
        encoded_step(entries["c.weight"], double),
        kept_step(entries["d.weight"]),
        kept_step(entries["e.weight"]),
    )


@pytest.mark.parametrize("memory", MEMORIES)
def test_each_value_is_in_one_unit(memory: int, steps: tuple[Step, ...]) -> None:
    """One behind the other from the first to the last, as many units as were counted."""
    cutting = Cutting("it", steps, memory)
    reached: Counter[int] = Counter()
    counts: Counter[int] = Counter()
    for number, unit in cutting.units():
        assert isinstance(unit, Copied | Encoded)
        assert unit.shard == "it"
        assert unit.start == reached[number]
        reached[number] = unit.stop
        counts[number] += 1
    assert [reached[number] for number in range(len(steps))] == [step.numel for step in steps]
    assert [counts[number] for number in range(len(steps))] == [cutting.count(step) for step in steps]


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_slice_and_what_becomes_of_it_fit(memory: int, steps: tuple[Step, ...]) -> None:
    """And it is of whole rows or blocks, but for the last."""
    for step in steps[:3]:
        values = slice_values(step, memory)
        assert values * (2 + step.nbytes / step.numel) < memory
        assert step.slicing is not None
        assert values % step.slicing.multiple == 0


def test_little_memory_cuts(steps: tuple[Step, ...]) -> None:
    """Else there would be nothing to see above; a small weight is one unit."""
    counts = [Cutting("it", steps, SMALLEST_MEMORY).count(step) for step in steps]
    assert counts[0] > 2
    assert counts[1] > 1
    assert counts[2:] == [1, counts[3], 0]
    assert counts[3] > 1


def test_the_last_of_a_weight_knows_the_room_for_work(steps: tuple[Step, ...]) -> None:
    """Which all its slices fill."""
    cutting = Cutting("it", steps, SMALLEST_MEMORY)
    finished = cutting.finished(steps[0])
    assert isinstance(finished, Finished)
    encoded = next(unit for _, unit in cutting.units())
    assert isinstance(encoded, Encoded)
    assert finished.offsets == encoded.offsets
    assert finished.offsets[WORK] == cutting.arrangement.work["a.weight"]


def test_the_same_of_the_same(steps: tuple[Step, ...]) -> None:
    """So that what was done for one cutting is done for another that is equal."""
    assert list(Cutting("it", steps, DEFAULT_MEMORY).units()) == list(Cutting("it", steps, DEFAULT_MEMORY).units())
    assert list(Cutting("it", steps, SMALLEST_MEMORY).units()) != list(Cutting("it", steps, DEFAULT_MEMORY).units())


def test_a_row_that_does_not_fit(tmp_path: Path) -> None:
    """int8 takes whole ones."""
    entries = source_of(tmp_path, {"it.weight": torch.zeros(2, 5_000_000, dtype=torch.bfloat16)})
    step = encoded_step(entries["it.weight"], BnbInt8())
    with pytest.raises(UsageError, match=r"a row of `it\.weight` does not fit into 12\.58 MB"):
        Cutting("it", (step,), SMALLEST_MEMORY).count(step)
    assert Cutting("it", (step,), 1 << 30).count(step) == 2
