"""Selectors: layer slices as Python has them, class names with wildcards, and what narrows a selection."""

from __future__ import annotations

from typing import Any

import pytest
from inventories import linear
from pydantic import ValidationError

from rulequant.inventory import LayerIndex
from rulequant.selector import LayerSlice, Selector, type_matches

LENGTH = 6


@pytest.mark.parametrize(
    ("value", "covered"),
    [
        pytest.param(0, [0], id="first"),
        pytest.param(3, [3], id="integer"),
        pytest.param("3", [3], id="integer-as-text"),
        pytest.param(-1, [5], id="last"),
        pytest.param(-2, [4], id="last-but-one"),
        pytest.param(-6, [0], id="as-far-back-as-it-goes"),
        pytest.param(6, [], id="beyond"),
        pytest.param(-7, [], id="beyond-backwards"),
        pytest.param("0:2", [0, 1], id="first-two"),
        pytest.param("-2:", [4, 5], id="last-two"),
        pytest.param(":2", [0, 1], id="no-start"),
        pytest.param("4:", [4, 5], id="no-stop"),
        pytest.param(":", [0, 1, 2, 3, 4, 5], id="all"),
        pytest.param("::2", [0, 2, 4], id="every-other"),
        pytest.param("1::2", [1, 3, 5], id="every-other-from-one"),
        pytest.param("::-1", [0, 1, 2, 3, 4, 5], id="backwards"),
        pytest.param("1:5:3", [1, 4], id="step"),
        pytest.param("4:2", [], id="empty"),
        pytest.param("10:20", [], id="out-of-range"),
        pytest.param("4:99", [4, 5], id="stop-beyond"),
        pytest.param(" 0:2 ", [0, 1], id="spaces-around"),
    ],
)
def test_slices_are_those_of_python(value: Any, covered: list[int]) -> None:
    """A slice covers what it takes from a list of that many layers."""
    layers = LayerSlice.parse(value)
    assert [each for each in range(LENGTH) if layers.covers(LayerIndex(each, LENGTH))] == covered


@pytest.mark.parametrize("length", range(1, 5))
@pytest.mark.parametrize("index", range(-5, 5))
def test_an_index_is_that_of_python(index: int, length: int) -> None:
    """An index covers one layer where a list has it, and none where it would raise."""
    expected = {index % length} if -length <= index < length else set()
    layers = LayerSlice.parse(index)
    assert {each for each in range(length) if layers.covers(LayerIndex(each, length))} == expected


def test_outside_any_stack_is_in_no_slice() -> None:
    """A module that is in no layer is not selected by layers, not even by all of them."""
    assert not LayerSlice.parse(":").covers(None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param("first", "'first' is neither an index nor a slice of layers", id="word"),
        pytest.param("0-2", "'0-2' is neither an index nor a slice", id="dash"),
        pytest.param("0..2", "'0\\.\\.2' is neither an index nor a slice", id="dots"),
        pytest.param("0:2:1:1", "'0:2:1:1' is neither an index nor a slice", id="four-parts"),
        pytest.param("", "'' is neither an index nor a slice", id="empty"),
        pytest.param("0 : 2", "'0 : 2' is neither an index nor a slice", id="spaces-inside"),
        pytest.param(1.0, "1\\.0 is neither an index nor a slice", id="float"),
        pytest.param(True, "True is neither an index nor a slice", id="truth-value"),
        pytest.param(None, "None is neither an index nor a slice", id="nothing"),
        pytest.param(10**12, "1000000000000 is neither an index nor a slice", id="huge"),
        pytest.param("٣", "'٣' is neither an index nor a slice", id="other-digits"),
        pytest.param("::0", "'::0' has the step 0", id="step-zero"),
    ],
)
def test_no_slice(value: Any, message: str) -> None:
    """What is neither an index nor a slice is refused."""
    with pytest.raises(ValueError, match=message):
        LayerSlice.parse(value)


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        pytest.param("Linear", "Linear", True, id="exact"),
        pytest.param("Linear", "linear", False, id="case"),
        pytest.param("NonDynamicallyQuantizableLinear", "Linear", False, id="subclass"),
        pytest.param("Linear4bit", "Linear", False, id="prefix"),
        pytest.param("FalconLinear", "*Linear", True, id="wildcard"),
        pytest.param("Qwen3MoeExperts", "*Experts", True, id="experts"),
        pytest.param("MixtralExpertsX", "*Experts", False, id="whole-name"),
        pytest.param("Conv1D", "Conv?D", True, id="question-mark"),
        pytest.param("Conv1D", "Conv[12]D", True, id="class"),
        pytest.param("Conv3D", "Conv[!12]D", True, id="negated-class"),
    ],
)
def test_types_match_exactly_or_by_wildcards(name: str, pattern: str, expected: bool) -> None:
    """A class name is matched as a whole, and a subclass is not its base."""
    assert type_matches(name, pattern) is expected


@pytest.mark.parametrize(
    ("narrowing", "expected"),
    [
        pytest.param({}, True, id="neither"),
        pytest.param({"types": "Linear"}, True, id="type"),
        pytest.param({"types": ["Conv1D", "Lin*"]}, True, id="one-of-the-types"),
        pytest.param({"types": "Conv1D"}, False, id="other-type"),
        pytest.param({"layers": 2}, True, id="layer"),
        pytest.param({"layers": [0, "2:"]}, True, id="one-of-the-layers"),
        pytest.param({"layers": "0:2"}, False, id="other-layer"),
        pytest.param({"types": "Linear", "layers": 0}, False, id="both-must-hold"),
    ],
)
def test_narrows(narrowing: dict[str, Any], expected: bool) -> None:
    """Types and layers narrow together; within each, one match is enough."""
    selector = Selector.model_validate({"modules": "**", **narrowing})
    assert selector.narrows(linear("layers.2.fc", 4, 2, layer=LayerIndex(2, 4))) is expected


def test_one_item_is_a_list_of_one() -> None:
    """Every list of a selector may be written as its only item."""
    selector = Selector.model_validate({"modules": "**.fc", "except": "a.fc", "types": "Linear", "layers": -1})
    assert [each.text for each in selector.modules] == ["**.fc"]
    assert [each.text for each in selector.except_] == ["a.fc"]
    assert selector.types == ("Linear",)
    assert [each.text for each in selector.layers] == ["-1"]


@pytest.mark.parametrize("key", ["modules", "except", "types", "layers"])
def test_lists_are_not_empty(key: str) -> None:
    """An empty list would silently mean nothing, or everything."""
    with pytest.raises(ValidationError, match="at least 1 item"):
        Selector.model_validate({"modules": "**", key: []})
