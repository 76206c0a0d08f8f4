"""One rule set against several models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from inventories import linear, llama, of, ruleset

from rulequant.across import check_across, fits
from rulequant.diagnostics import Diagnostic, Severity
from rulequant.inventory import Inventory

SMALL = replace(llama(), model="small")
ROUTED = of(*llama().modules, linear("model.layers.0.mlp.gate", 8, 64), model="routed", model_type="llama")
BERT = of(linear("encoder.layer.0.fc", 8, 8), model="bert", model_type="bert")


def _found(text: str, *models: Inventory) -> list[Diagnostic]:
    return list(check_across(ruleset(text), models))


def test_a_pattern_that_matches_in_all_is_fine() -> None:
    """Nothing is said of it."""
    assert _found('skip_modules: ["**.o_proj"]', SMALL, ROUTED) == []


def test_a_pattern_that_matches_in_none_is_an_error() -> None:
    """All models are named, and the nearest names of any."""
    (found,) = _found('skip_modules: ["**.mlp.gat"]', SMALL, ROUTED)
    assert (found.code, found.severity) == ("RQ401", Severity.ERROR)
    assert found.message == "`**.mlp.gat` matches no module of any of the 2 models (small, routed)"
    assert found.remedy is not None
    assert "`**.mlp.gate`" in found.remedy
    assert str(found.location) == "rules.yaml:1:16"


def test_one_model_is_named_alone() -> None:
    """With one model the message is that of a plan."""
    (found,) = _found('skip_modules: ["**.mlp.gat"]', ROUTED)
    assert found.message == "`**.mlp.gat` matches no module of routed"


def test_a_pattern_that_matches_in_some_is_a_warning() -> None:
    """The models without a match are named."""
    (found,) = _found('skip_modules: ["**.mlp.gate"]', SMALL, ROUTED)
    assert (found.code, found.severity) == ("RQ409", Severity.WARNING)
    assert found.message == "`**.mlp.gate` matches in 1 of 2 models, not in small"


def test_optional_says_that_it_is_known() -> None:
    """An optional entry may match in some, or in none."""
    assert _found('skip_modules: [{modules: ["**.mlp.gate", "**.x"], optional: true}]', SMALL, ROUTED) == []


def test_each_pattern_counts() -> None:
    """Of an entry with several patterns each must match."""
    (found,) = _found('skip_modules: [{modules: ["**.o_proj", "**.x"]}]', SMALL)
    assert found.value == "**.x"


def test_narrowed_to_nothing() -> None:
    """A pattern that names modules which the rest of the entry leaves out is told apart from a misspelt one."""
    (found,) = _found('skip_modules: [{modules: "**.o_proj", types: Conv1D}]', SMALL)
    assert found.code == "RQ401"
    assert "leave none" in found.message


def test_models_of_another_family_do_not_count() -> None:
    """A file for llama is not asked to match in a bert."""
    assert _found('models: [llama]\nskip_modules: ["**.o_proj"]', SMALL, BERT) == []


def test_no_model_of_the_family() -> None:
    """That nothing was checked is a warning."""
    (found,) = _found('models: [llama]\nskip_modules: ["**.x"]', BERT)
    assert (found.code, found.severity) == ("RQ410", Severity.WARNING)


@pytest.mark.parametrize(
    ("models", "model_type", "expected"),
    [
        pytest.param("models: [llama]", "llama", True, id="its own"),
        pytest.param("models: [llama]", "bert", False, id="another"),
        pytest.param("models: [llama]", None, True, id="a model without a type"),
        pytest.param("output_embeddings: skip", "bert", True, id="a file for any"),
    ],
)
def test_fits(models: str, model_type: str | None, expected: bool) -> None:
    """A file is for the models that it lists, or for any."""
    assert fits(ruleset(models), of(model_type=model_type)) is expected
