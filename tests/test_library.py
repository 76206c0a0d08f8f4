"""Which bundled rule file a model gets."""

from __future__ import annotations

import pytest
from inventories import llama

from rulequant.bundled import bundled_names
from rulequant.library import Choice, choose, find, listing, nearest_types


def test_lists_every_bundled_file() -> None:
    """The listing is complete and sorted."""
    assert tuple(each.name for each in listing()) == bundled_names()
    assert all(each.description for each in listing())


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        pytest.param("llama", "llama", id="called like it"),
        pytest.param("gemma3_text", "gemma3", id="listed"),
        pytest.param("clip_vision_model", "clip", id="listed among several"),
        pytest.param("causal_lm", None, id="a base is for no model"),
        pytest.param("no_such_model", None, id="unknown"),
        pytest.param("", None, id="empty"),
        pytest.param("../rules/llama", None, id="a path is no name"),
    ],
)
def test_find(model_type: str, name: str | None) -> None:
    """The file for a model type, if there is one."""
    assert find(model_type) == name


def test_finds_what_the_files_say() -> None:
    """Each model type that a file lists leads to that file."""
    for each in listing():
        assert {find(model_type) for model_type in each.models} <= {each.name}


@pytest.mark.parametrize(
    ("model_type", "choice"),
    [
        pytest.param("llama", Choice("llama"), id="family"),
        pytest.param("llama99", Choice("causal_lm", "causal_lm"), id="default"),
        pytest.param(None, Choice("causal_lm", "causal_lm"), id="no type"),
    ],
)
def test_choose(model_type: str | None, choice: Choice) -> None:
    """The file of the family comes first, then the default for what the model is for."""
    assert choose(llama(model_type=model_type)) == choice


def test_nearest_types() -> None:
    """A type without a file is answered with those that look like it."""
    assert nearest_types("robertta") == ["roberta"]
    assert nearest_types("zzzzzz") == []
