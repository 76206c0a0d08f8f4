"""A resolved rule set as YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from inventories import write

from rulequant.bundled import bundled_names
from rulequant.loader import Loader, load_rules
from rulequant.report.rulestext import rules_data, rules_text, scalar
from rulequant.ruleset import RuleSet

CHILD = """
extends: base.yaml
description: "with \\"quotes\\", a \\\\ and \\x07"
models: [llama, "1e3"]
skip_modules:
  - modules: ["**.gate", "**.router"]
    except: "**.shared.gate"
    types: Linear
    layers: ["0:2", -1]
    optional: true
    reason: "why: because # not a comment"
rules:
  - {modules: "**.o_proj", scheme: "no"}
schemes:
  "no": {method: bnb_int8}
expect: {min_quantized: 0.5}
"""
BASE = """
schemes: {nf4: {method: bnb_4bit}}
scheme: nf4
skip_modules: ["**.norm"]
"""


def _read(text: str) -> RuleSet:
    loader = Loader()
    loaded = loader.load_text(text, file="shown.yaml")
    assert loader.diagnostics == []
    assert loaded is not None
    rules = loader.resolve(loaded)
    assert rules is not None
    return rules


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RuleSet:
    """A file that extends another, with all that a file may say."""
    monkeypatch.chdir(write(tmp_path, child=CHILD, base=BASE))
    return load_rules("child.yaml")


@pytest.mark.parametrize("name", bundled_names())
def test_means_the_same_for_bundled_files(name: str) -> None:
    """What is printed loads as the same rule set."""
    rules = load_rules(name)
    assert _read(rules_text(rules)).sha256 == rules.sha256


def test_means_the_same(child: RuleSet) -> None:
    """Texts, patterns and layers survive, with all that needs quotes."""
    shown = _read(rules_text(child))
    assert shown.to_dict() == child.to_dict()


def test_names_the_origin_of_each_entry(child: RuleSet) -> None:
    """Behind each entry stands the file and line that it comes from."""
    origins = {
        line.split("#")[0].strip(): line.rpartition("# ")[2]
        for line in rules_text(child).splitlines()
        if "  # " in line
    }
    assert origins["scheme: nf4"] == "base.yaml:4"
    assert origins['- modules: "**.norm"'] == "base.yaml:5"
    assert origins['- modules: "**.o_proj"'] == "child.yaml:14"
    assert origins["output_embeddings: skip"] == "default"
    assert origins["min_quantized: 0.5"] == "child.yaml:17"


def test_names_the_files(child: RuleSet) -> None:
    """The first line says what was merged."""
    assert rules_text(child).splitlines()[0] == "# child.yaml, with base.yaml"


def test_data(child: RuleSet) -> None:
    """The same as data: the rule set, and an origin for each part."""
    data = rules_data(child)
    assert data["rules"] == child.to_dict()
    assert data["files"] == ["base.yaml", "child.yaml"]
    assert data["origins"]["skip_modules[0]"] == {"file": "base.yaml", "line": 5}
    assert data["origins"]["rules[0]"] == {"file": "child.yaml", "line": 14}


@pytest.mark.parametrize(
    ("text", "written"),
    [
        pytest.param("nf4", "nf4", id="a word"),
        pytest.param("null", '"null"', id="a word of YAML"),
        pytest.param("true", '"true"', id="another"),
        pytest.param("1e3", '"1e3"', id="a number"),
        pytest.param("**.mlp", '"**.mlp"', id="a pattern"),
        pytest.param('say "x"\\', '"say \\"x\\"\\\\"', id="quotes and a backslash"),
        pytest.param("a\nb\x1b\u202e", r'"a\nb\x1b\u202e"', id="control characters"),
        pytest.param("größe", '"größe"', id="letters"),
        pytest.param("", '""', id="nothing"),
    ],
)
def test_scalar(text: str, written: str) -> None:
    """Text is quoted where it would read as something else, and reads back as itself."""
    assert scalar(text) == written
    loader = Loader()
    loaded = loader.load_text(f"version: 1\ndescription: {written}\n", file="f")
    assert loaded is not None
    assert loaded.content.description == text
