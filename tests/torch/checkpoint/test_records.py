"""The rules in an output are a rule file that means the same, whatever is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rulequant.bundled import bundled_names
from rulequant.loader import load_rules
from rulequant.torch.checkpoint.records import rules_yaml, write_rules

AWKWARD = [
    "no", "1e-3", "010", "0x1F", "null", "~", "- a", "a: b", "a #b", "#a", "*a", "&a", "!a", "?x", "{a,b}", "[a]",
    "'", '"', "\\", "é", "\u2028", "a\nb", " a ", "---", "...", "1" * 40, ".inf", "2024-01-01", "@x", "`x`", "%x", "=",
]  # fmt: skip


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_rules_come_back(name: str, tmp_path: Path) -> None:
    """All that a bundled file extends is in the one file, and the hash is the same."""
    rules = load_rules(name)
    write_rules(rules, tmp_path)
    read = load_rules(tmp_path / "rulequant-rules.yaml")
    assert (read.sha256, read.name, read.description) == (rules.sha256, rules.name, rules.description)
    assert len(read.files) == 1
    assert "extends" not in rules_yaml(rules)


def _rules(text: str) -> dict[str, Any]:
    return {
        "version": 1,
        "description": text,
        "schemes": {text: {"method": "bnb_4bit"}},
        "scheme": text,
        "skip_modules": [{"modules": ["**.a", "[ab].{c,d}.?"], "reason": text, "optional": True}],
    }


@pytest.mark.parametrize("text", AWKWARD, ids=repr)
def test_any_text_comes_back(text: str, tmp_path: Path) -> None:
    """Text that YAML would take for something else is quoted."""
    rules = load_rules(_rules(text))
    write_rules(rules, tmp_path)
    read = load_rules(tmp_path / "rulequant-rules.yaml")
    assert read.sha256 == rules.sha256
    assert (read.description, list(read.schemes)) == (rules.description, list(rules.schemes))
    assert read.skips[0].selector.reason == text


def test_no_path_is_in_the_rules(tmp_path: Path) -> None:
    """A published file does not tell where its author keeps things."""
    (tmp_path / "own.yaml").write_text("version: 1\nextends: llama\n")
    write_rules(load_rules(tmp_path / "own.yaml"), tmp_path)
    assert str(tmp_path) not in (tmp_path / "rulequant-rules.yaml").read_text()
