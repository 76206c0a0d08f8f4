"""The predicate: each test and each objection, with its reason, its words, its line, and its place in the order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import inventories
import pytest
from inventories import linear, norm, of, ruleset

from rulequant.inventory import Inventory, ModuleInfo, TensorInfo
from rulequant.planner import held_by_ties
from rulequant.predicate import (
    Objection,
    in_output_embeddings,
    in_quantizable_types,
    in_skip_modules,
    objections,
)
from rulequant.schemes import Bnb4bit, Scheme
from rulequant.selection import select

NF4 = Bnb4bit()


def all_objections(
    info: ModuleInfo, text: str = "", *, scheme: Scheme | None = NF4, inventory: Inventory | None = None
) -> list[Objection]:
    """Every reason against quantizing a module."""
    rules = ruleset(text)
    model = inventory or of(info)
    selection = select(rules, model)
    return list(objections(info, rules, selection, scheme, held_by_ties(rules, model, selection)))


FC = linear("model.fc", 64, 64)


def test_nothing_against_a_linear() -> None:
    """A Linear that nothing speaks against is quantized."""
    assert all_objections(FC) == []


@pytest.mark.parametrize(
    ("types", "name", "passes"),
    [
        pytest.param("[Linear]", "Linear", True, id="exact"),
        pytest.param("[Linear]", "NonDynamicallyQuantizableLinear", False, id="a-subclass-is-not-its-base"),
        pytest.param("[Linear]", "FalconLinear", False, id="another-subclass"),
        pytest.param("[Linear, FalconLinear]", "FalconLinear", True, id="listed-by-name"),
        pytest.param('["*Linear"]', "FalconLinear", True, id="wildcard"),
        pytest.param('["*Experts"]', "Linear", False, id="listed-types-replace-the-default"),
        pytest.param("[linear]", "Linear", False, id="case"),
    ],
)
def test_quantizable_types(types: str, name: str, passes: bool) -> None:
    """`M in QuantizableTypes`: the class name is listed, exactly or by a wildcard."""
    objection = in_quantizable_types(replace(FC, type=name), ruleset(f"quantizable_types: {types}"))
    assert (objection is None) is passes


def test_type_in_words() -> None:
    """The reason names the class and what is listed."""
    rules = ruleset('quantizable_types: [Linear, "*Experts"]')
    expected = Objection("type", "LlamaRMSNorm is not one of quantizable_types (Linear, *Experts)")
    assert in_quantizable_types(norm("n"), rules) == expected


def test_skip_in_words() -> None:
    """The reason is the rule file's, or else the patterns; the location is the first skip that selects the module."""
    text = """
    skip_modules:
      - lm_head
      - modules: ["model.*", other]
      - {modules: "**", reason: because}
    """
    rules = ruleset(text)
    selection = select(rules, of(FC, linear("out", 4, 2)))
    first = in_skip_modules(FC, selection)
    assert first is not None
    assert (first.reason, first.detail, str(first.location)) == (
        "skip",
        "skip_modules: model.*, other",
        "rules.yaml:3:5",
    )
    second = in_skip_modules(linear("out", 4, 2), selection)
    assert second is not None
    assert (second.detail, str(second.location)) == ("because", "rules.yaml:4:5")


@pytest.mark.parametrize(
    ("facts", "detail"),
    [
        pytest.param({"output_embedding": True}, "it is the model's output embedding", id="by-identity"),
        pytest.param({"shares_output_embedding": True}, "it shares a parameter with the output embedding", id="tied"),
        pytest.param({"output_head": True}, "it is an output head on top of the base model", id="head"),
    ],
)
def test_output_embeddings(facts: dict[str, Any], detail: str) -> None:
    """`M not in OutputEmbeddings`: by identity, whatever the module is called; `quantize` lifts it."""
    info = linear("anything", 4, 2, **facts)
    assert in_output_embeddings(info, ruleset("name: x")) == Objection("output_embedding", detail)
    assert in_output_embeddings(info, ruleset("output_embeddings: skip")) is not None
    assert in_output_embeddings(info, ruleset("output_embeddings: quantize")) is None
    assert in_output_embeddings(linear("lm_head", 4, 2), ruleset("name: x")) is None


def test_a_skip_list_does_not_remove_the_protection() -> None:
    """With skips of the user's own, even none of the head or an empty list, the output embeddings stay."""
    head = linear("lm_head", 4, 2, output_embedding=True)
    for text in ("skip_modules: [model]", "skip_modules: []", 'skip_modules: [{modules: "**", except: lm_head}]'):
        assert [each.reason for each in all_objections(head, text)] == ["output_embedding"]


def test_tied_weights() -> None:
    """A weight that another module needs as it is stays, on both sides of the tie."""
    first = linear("a", 4, 2)
    second = linear("b", 4, 2, kind="embedding", tensors=(inventories.weight(4, 2, tied_to="a.weight"),))
    model = of(first, second, linear("c", 4, 2))
    expected = Objection("tied", "its weight is the same parameter as another module's, which needs it as it is")
    assert all_objections(first, inventory=model) == [expected]
    assert all_objections(second, inventory=model) == [expected]
    assert all_objections(linear("c", 4, 2), inventory=model) == []


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param(
            {"keep_in_fp32": True},
            Objection("keep_in_fp32", "the model declares it in _keep_in_fp32_modules"),
            id="keep-in-fp32",
        ),
        pytest.param(
            {"weight_reader": "MambaMixer.slow_forward"},
            Objection("weight_read_directly", "MambaMixer.slow_forward reads its weight directly"),
            id="read-directly",
        ),
        pytest.param(
            {"kind": "convolution"}, Objection("unsupported", "bnb_4bit has no layer for Linear"), id="no-layer"
        ),
        pytest.param(
            {"tensors": (inventories.weight(4, 2, dtype="float64"),)},
            Objection("unsupported", "bnb_4bit cannot encode float64 weights"),
            id="dtype",
        ),
    ],
)
def test_objections_of_the_model(facts: dict[str, Any], expected: Objection) -> None:
    """What the model declares, how its code reads the weight, and what the method cannot hold."""
    assert all_objections(replace(FC, **facts)) == [expected]


def test_no_scheme_is_an_objection() -> None:
    """A module for which the rules name no scheme stays, and says so."""
    assert all_objections(FC, scheme=None) == [Objection("unsupported", "the rule set names no scheme for it")]


def test_order() -> None:
    """All objections of a module are known, in the order of the predicate and then of the model's own."""
    info = ModuleInfo(
        "all",
        "Odd",
        tensors=(TensorInfo("weight", (4,), "bfloat16", tied_to="other.weight"),),
        output_embedding=True,
        keep_in_fp32=True,
        weight_reader="Mixer.forward",
    )
    found = all_objections(info, "skip_modules: [all]", inventory=of(linear("other", 4, 1), info))
    assert [each.reason for each in found] == [
        "type",
        "skip",
        "output_embedding",
        "tied",
        "keep_in_fp32",
        "weight_read_directly",
        "unsupported",
    ]
