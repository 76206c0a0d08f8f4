"""The resolved rule set: back to data and from there again, and a hash of nothing but its meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inventories import check, ruleset

from rulequant.bundled import bundled_names
from rulequant.diagnostics import Location
from rulequant.loader import load_rules
from rulequant.ruleset import RuleSet

FULL = """
version: 1
name: everything
description: One of each key.
models: [llama, mistral]
quantizable_types: [Linear, "*Experts"]
skip_modules:
  - "**.mlp.gate"
  - {modules: [model.visual, model.audio], except: model.visual.merger, types: Linear, layers: [0, "-2:"],
     optional: true, reason: they lose accuracy}
output_embeddings: quantize
schemes:
  nf4: {method: bnb_4bit, quant_type: nf4, double_quant: true, blocksize: 128, compute_dtype: bfloat16}
  int8: {method: bnb_int8, threshold: 0}
scheme: nf4
rules:
  - {modules: "**.{q,k,v,o}_proj", layers: ["0:2", -1], scheme: int8, reason: first and last}
  - {modules: "**", types: "*Experts", scheme: nf4}
expect: {min_quantized: 0.5, min_quantized_layers: 0.9}
"""


def loaded(text: str) -> RuleSet:
    """The rule set of a text without mistakes."""
    rules, diagnostics = check(text)
    assert diagnostics == []
    assert rules is not None
    return rules


def test_to_dict_says_everything() -> None:
    """The data are those of one rule file; what was left to defaults is written out."""
    data = loaded(FULL).to_dict()
    assert data["skip_modules"] == [
        {"modules": ["**.mlp.gate"]},
        {
            "modules": ["model.visual", "model.audio"],
            "except": ["model.visual.merger"],
            "types": ["Linear"],
            "layers": ["0", "-2:"],
            "optional": True,
            "reason": "they lose accuracy",
        },
    ]
    assert data["schemes"]["int8"] == {"method": "bnb_int8", "threshold": 0.0}
    assert data["schemes"]["nf4"]["quant_storage"] == "uint8"
    assert data["rules"][0]["scheme"] == "int8"
    assert data["expect"] == {"min_quantized": 0.5, "min_quantized_layers": 0.9}
    assert {key: data[key] for key in ("version", "name", "output_embeddings", "scheme")} == {
        "version": 1,
        "name": "everything",
        "output_embeddings": "quantize",
        "scheme": "nf4",
    }


def test_to_dict_of_nothing() -> None:
    """A file that says nothing means the defaults."""
    assert loaded("version: 1").to_dict() == {
        "version": 1,
        "name": "rules",
        "quantizable_types": ["Linear"],
        "output_embeddings": "skip",
        "schemes": {},
    }


@pytest.mark.parametrize("text", [pytest.param(FULL, id="full"), pytest.param("version: 1", id="empty")])
def test_to_dict_means_the_same(text: str) -> None:
    """The data load into an equal rule set."""
    rules = loaded(text)
    again = load_rules(rules.to_dict())
    assert again.to_dict() == rules.to_dict()
    assert again.sha256 == rules.sha256


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_rules_mean_the_same_as_their_data(name: str) -> None:
    """So do all bundled files, whatever they extend."""
    rules = load_rules(name)
    assert load_rules(rules.to_dict()).sha256 == rules.sha256


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("name: everything", "name: another", id="name"),
        pytest.param("One of each key.", "Another description.", id="description"),
        pytest.param("version: 1\n", "# a comment\nversion: 1  # another\n\n", id="comments"),
        pytest.param("models: [llama, mistral]", "models:\n- llama\n- 'mistral'", id="layout"),
        pytest.param("threshold: 0}", "threshold: 0.0}", id="number"),
        pytest.param("blocksize: 128, ", "quant_storage: uint8, blocksize: 128, ", id="default-written-out"),
        pytest.param('- "**.mlp.gate"', '- {modules: ["**.mlp.gate"], optional: false}', id="short-form"),
        pytest.param('"0:2", -1', '"0:2", "-1"', id="index-as-text"),
        pytest.param("scheme: nf4\nrules:", "rules:", id="order-of-keys"),
    ],
)
def test_hash_ignores_form(old: str, new: str) -> None:
    """Names, comments, layout, short forms and the order of keys do not change the hash."""
    assert old in FULL
    text = FULL.replace(old, new) + ("scheme: nf4\n" if new == "rules:" else "")
    assert loaded(text).sha256 == loaded(FULL).sha256


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("[llama, mistral]", "[llama]", id="models"),
        pytest.param('[Linear, "*Experts"]', "[Linear]", id="types"),
        pytest.param('- "**.mlp.gate"', '- "**.mlp.gates"', id="pattern"),
        pytest.param("except: model.visual.merger, ", "", id="except"),
        pytest.param("optional: true", "optional: false", id="optional"),
        pytest.param("output_embeddings: quantize", "output_embeddings: skip", id="output-embeddings"),
        pytest.param("blocksize: 128", "blocksize: 64", id="setting"),
        pytest.param("scheme: nf4\nrules", "scheme: int8\nrules", id="scheme"),
        pytest.param('"0:2", -1', '"0:3", -1', id="layers"),
        pytest.param("min_quantized: 0.5", "min_quantized: 0.6", id="floor"),
    ],
)
def test_hash_follows_meaning(old: str, new: str) -> None:
    """Whatever may change a decision changes the hash."""
    assert old in FULL
    assert loaded(FULL.replace(old, new)).sha256 != loaded(FULL).sha256


def test_hash_does_not_know_how_many_files(tmp_path: Path) -> None:
    """A rule set cut into a file and its parents has the hash of the whole."""
    parts: dict[str, Any] = {
        "base.yaml": "version: 1\nschemes: {nf4: {method: bnb_4bit}}\nskip_modules: [a]\n"
        "rules: [{modules: r2, scheme: nf4}]\nexpect: {min_quantized: 0.1}\n",
        "child.yaml": "version: 1\nextends: ./base.yaml\nscheme: int8\nschemes: {int8: {method: bnb_int8}}\n"
        "skip_modules: [b]\nrules: [{modules: r1, scheme: int8}]\n",
        "whole.yaml": "version: 1\nscheme: int8\nschemes: {int8: {method: bnb_int8}, nf4: {method: bnb_4bit}}\n"
        "skip_modules: [a, b]\nrules: [{modules: r1, scheme: int8}, {modules: r2, scheme: nf4}]\n"
        "expect: {min_quantized: 0.1}\n",
    }
    for name, text in parts.items():
        (tmp_path / name).write_text(text)
    assert load_rules(tmp_path / "child.yaml").sha256 == load_rules(tmp_path / "whole.yaml").sha256


def test_origins() -> None:
    """Each value knows its line; a default is at the start of the file."""
    rules = ruleset("scheme: nf4\nschemes: {nf4: {method: bnb_4bit}}\nexpect:\n  min_quantized: 0.5")
    assert str(rules.origin("scheme")) == "rules.yaml:1:9"
    assert str(rules.origin("schemes.nf4")) == "rules.yaml:2:11"
    assert str(rules.origin("expect.min_quantized")) == "rules.yaml:4:3"
    assert rules.origin("output_embeddings") == Location("rules.yaml", 1, 1, 1, 1)
