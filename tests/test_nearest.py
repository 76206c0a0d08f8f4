"""Suggestions for a pattern that matches nothing."""

from __future__ import annotations

import pytest
from inventories import linear, llama, of

from rulequant.globs import Glob
from rulequant.nearest import nearest_names


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        pytest.param("lm_haed", ["lm_head"], id="typo"),
        pytest.param("**.self_atn.*", ["**.self_attn.*"], id="typo-in-a-segment"),
        pytest.param("**.self_atn.{q,k}_proj", ["**.self_attn.{q,k}_proj"], id="typo-beside-braces"),
        pytest.param("**.{q_prj,k_proj}", ["**.q_proj"], id="typo-inside-braces"),
        pytest.param("model.layers.*.mpl.up_porj", ["model.layers.*.mlp.up_proj"], id="two-typos"),
        pytest.param("**.Q_proj", ["**.q_proj"], id="case"),
        pytest.param("model.Layers.0", ["model.layers.0"], id="case-of-a-number"),
        pytest.param("q_proj", ["**.q_proj"], id="no-prefix"),
        pytest.param("layers.*.mlp", ["**.layers.*.mlp"], id="short-prefix"),
        pytest.param("transformer.layers.0.mlp", ["**.layers.0.mlp"], id="another-prefix"),
        pytest.param("model.model.layers.*.self_attn", ["**.model.layers.*.self_attn"], id="long-prefix"),
        pytest.param("model.decoder.layers.*.mlp", ["**.layers.*.mlp"], id="a-segment-too-many"),
        pytest.param("**.mlp.gate_up_proj", ["**.mlp.gate_proj"], id="fused-name"),
    ],
)
def test_best_suggestion(pattern: str, expected: list[str]) -> None:
    """The first suggestion is what a reader would have meant."""
    assert nearest_names(pattern, llama())[: len(expected)] == expected


@pytest.mark.parametrize("pattern", ["lm_haed", "**.q_prj", "model.*.norms", "transformer.layers.*.mlp.up", "**.norm1"])
def test_suggestions_match(pattern: str) -> None:
    """Each suggestion matches something in the model, and there are three at most."""
    inventory = llama()
    found = nearest_names(pattern, inventory)
    assert 1 <= len(found) <= 3
    assert all(any(Glob.parse(each).matches(name) for name in inventory.by_name) for each in found)


@pytest.mark.parametrize("pattern", ["vision_tower", "**.block_sparse_moe.gate", "zzz.*", "**.zzz", "[0-12]", ""])
def test_nothing_is_near(pattern: str) -> None:
    """For what the model has nothing alike, and for what is no pattern, nothing is suggested."""
    assert nearest_names(pattern, llama()) == []


def test_numbers_become_stars() -> None:
    """Names are compared without their numbers, so that one suggestion stands for all layers."""
    assert nearest_names("h.*.attention", of(linear("h.0.attn", 4, 2), linear("h.1.attn", 4, 2)))[0] == "h.*.attn"


def test_count() -> None:
    """The number of suggestions is limited."""
    assert len(nearest_names("**.proj", llama(), count=1)) == 1


def test_an_empty_model() -> None:
    """A model without modules has nothing to suggest."""
    assert nearest_names("lm_head", of()) == []
