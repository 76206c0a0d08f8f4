"""Modules that share parameters: which of them use a weight alike, and which do not."""

from __future__ import annotations

from typing import Any

import pytest
from inventories import linear, of, weight

from rulequant.inventory import ModuleInfo, TensorInfo
from rulequant.ties import find_ties


def experts(name: str, *, gate_up: str | None = None, down: str | None = None) -> ModuleInfo:
    """Fused experts, whose parameters may be those of other modules."""
    tensors = (
        TensorInfo("gate_up", (4, 8, 8), "bfloat16", tied_to=gate_up),
        TensorInfo("down", (4, 8, 8), "bfloat16", tied_to=down),
        TensorInfo("bias", (4, 8), "bfloat16"),
    )
    return ModuleInfo(name, "Experts", "experts", tensors)


@pytest.mark.parametrize(
    ("name", "tied_to", "twins", "mixed"),
    [
        pytest.param("weight", "a.weight", {"a", "b"}, set(), id="weight-to-weight"),
        pytest.param("weight", "shared", set(), {"b"}, id="weight-to-a-parameter-of-the-root"),
        pytest.param("weight", "weight", set(), {"", "b"}, id="weight-to-the-weight-of-the-root"),
        pytest.param("weight", "a.kernel", set(), {"b"}, id="weight-to-another-parameter"),
        pytest.param("kernel", "a.weight", set(), {"a"}, id="another-parameter-to-weight"),
        pytest.param("bias", "a.bias", set(), set(), id="bias-to-bias"),
    ],
)
def test_weights_alone_tie(name: str, tied_to: str, twins: set[str], mixed: set[str]) -> None:
    """Modules are tied by their weights; with another name there is another use."""
    first = linear(
        "a", 4, 2, tensors=(weight(4, 2), *(TensorInfo(each, (4, 2), "bfloat16") for each in ("kernel", "bias")))
    )
    root = ModuleInfo("", "Model", tensors=(weight(4, 2), TensorInfo("shared", (4, 2), "bfloat16")))
    second = linear("b", 4, 2, tensors=(TensorInfo(name, (4, 2), "bfloat16", tied_to=tied_to),))
    found = find_ties(of(root, first, second))
    assert (set(found.twins), found.mixed) == (twins, mixed)


def test_all_twins_of_each() -> None:
    """Three layers with one weight are one group, in the order of the model."""
    tied = [linear(name, 4, 2, tensors=(weight(4, 2, tied_to="a.weight"),)) for name in ("b", "c")]
    found = find_ties(of(linear("a", 4, 2), *tied, linear("d", 4, 2)))
    assert found.twins == dict.fromkeys(("a", "b", "c"), ("a", "b", "c"))
    assert not found.mixed


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"kind": "embedding", "type": "Embedding"}, id="embedding"),
        pytest.param({"kind": "conv1d", "type": "Conv1D"}, id="transposed"),
        pytest.param({"kind": "other", "type": "Own"}, id="own-class"),
    ],
)
def test_another_kind_is_another_use(facts: dict[str, Any]) -> None:
    """What looks rows up, or has the weight in another orientation, is no twin of a Linear; a third does not help."""
    tied = (weight(4, 2, tied_to="a.weight"),)
    found = find_ties(of(linear("a", 4, 2), linear("b", 4, 2, tensors=tied, **facts), linear("c", 4, 2, tensors=tied)))
    assert (found.twins, found.mixed) == ({}, {"a", "b", "c"})


def test_fused_experts() -> None:
    """Experts are twins where all of their parameters are the same, each by its name; the biases are their own."""
    both = experts("b", gate_up="a.gate_up", down="a.down")
    assert find_ties(of(experts("a"), both)).twins == {"a": ("a", "b"), "b": ("a", "b")}
    assert find_ties(of(experts("a"), experts("b", gate_up="a.gate_up"))).mixed == {"a", "b"}
    crossed = experts("b", gate_up="a.down", down="a.gate_up")
    assert find_ties(of(experts("a"), crossed)).mixed == {"a", "b"}


def test_one_weight_twice_in_a_module() -> None:
    """A module that has one parameter under two names is nobody's twin."""
    own = experts("a", down="a.gate_up")
    assert find_ties(of(own)).mixed == {"a"}


def test_diffusers_knows_no_ties() -> None:
    """A component of diffusers keeps what it shares: its loader would leave the second layer empty."""
    tied = linear("b", 4, 2, tensors=(weight(4, 2, tied_to="a.weight"),))
    found = find_ties(of(linear("a", 4, 2), tied, versions={"diffusers": "1"}))
    assert (found.twins, found.mixed) == ({}, {"a", "b"})
