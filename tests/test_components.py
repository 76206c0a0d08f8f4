"""Rule files that name the components of a pipeline: one rule set for each, and nothing beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from rulequant.cli.main import run
from rulequant.diagnostics import DiagnosticsError
from rulequant.loader import load_rules

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a rule file and a pipeline's beside each other in a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    Path("rules").mkdir()
    Path("rules/own.yaml").write_text("version: 1\nextends: causal_lm\n")
    Path("rules/pipeline.yaml").write_text("version: 1\ncomponents:\n  transformer: ./own.yaml\n  text_encoder: t5\n")
    return tmp_path


def test_each_component_gets_its_rule_set() -> None:
    """Paths are relative to the file that names them, other names are bundled."""
    rules = load_rules("rules/pipeline.yaml")
    assert {name: each.file for name, each in rules.components.items()} == {
        "transformer": str(Path("rules/own.yaml")),
        "text_encoder": "bundled:t5",
    }
    assert rules.components["text_encoder"].sha256 == load_rules("t5").sha256
    assert rules.origin("components.text_encoder").line == 4


def test_as_data() -> None:
    """A mapping takes paths relative to the working directory."""
    rules = load_rules({"version": 1, "components": {"transformer": "./rules/own.yaml"}})
    assert list(rules.components) == ["transformer"]


def test_the_hash_is_that_of_all_of_them() -> None:
    """It changes with the rules of a component, and not with their place."""
    before = load_rules("rules/pipeline.yaml").sha256
    Path("rules/moved.yaml").write_text(Path("rules/own.yaml").read_text())
    Path("rules/pipeline.yaml").write_text("version: 1\ncomponents: {transformer: ./moved.yaml, text_encoder: t5}\n")
    assert load_rules("rules/pipeline.yaml").sha256 == before
    Path("rules/moved.yaml").write_text("version: 1\nextends: causal_lm\nscheme: int8\n")
    assert load_rules("rules/pipeline.yaml").sha256 != before


def test_what_is_wrong_with_a_component_is_wrong() -> None:
    """Its findings have their own places."""
    Path("rules/own.yaml").write_text("version: 1\nextends: causal_lm\nscheme: nf5\n")
    with pytest.raises(DiagnosticsError) as caught:
        load_rules("rules/pipeline.yaml")
    assert [(each.code, each.location and each.location.file) for each in caught.value.diagnostics] == [
        ("RQ301", str(Path("rules/own.yaml")))
    ]


def test_validate_reads_the_components(capsys: Capture) -> None:
    """Errors and warnings of a component's file are found, and told once."""
    assert run(["validate", "rules/pipeline.yaml"]) == 0
    Path("rules/own.yaml").write_text("version: 1\nextends: causal_lm\nscheme: nf4\n")
    capsys.readouterr()
    assert run(["validate", "rules/pipeline.yaml", "rules/own.yaml", "--format", "concise"]) == 0
    assert capsys.readouterr().out.count("RQ317") == 1


def test_show(capsys: Capture) -> None:
    """What is printed is the file again, with the place of the components."""
    assert run(["show", "rules/pipeline.yaml"]) == 0
    assert 'components: {transformer: "rules/own.yaml", text_encoder: "bundled:t5"}' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("components: {a: 1}", "RQ104"),
        ("components: {a: ''}", "RQ105"),
        ("components: [a]", "RQ104"),
    ],
    ids=["number", "empty", "list"],
)
def test_values(text: str, code: str, capsys: Capture) -> None:
    """Names of components map to names of files."""
    Path("x.yaml").write_text(f"version: 1\n{text}\n")
    assert run(["validate", "x.yaml", "--format", "concise"]) == 1
    assert code in capsys.readouterr().out
