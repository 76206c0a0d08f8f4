"""`rulequant lock` and `plan --check`, on inventory files and so without torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inventories import llama, write

from rulequant.cli.main import run
from rulequant.inventory import Inventory
from rulequant.inventory_file import dump_inventory

RULES = """
extends: causal_lm
skip_modules:
  - {modules: "**.o_proj", reason: it adds up, optional: true}
"""
Capture = pytest.CaptureFixture[str]


def _save(inventory: Inventory, name: str = "model.json") -> None:
    Path(name).write_text(dump_inventory(inventory))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an inventory and rule files."""
    files = {
        "rules/llama": RULES,
        "rules/other": "extends: causal_lm\n",
        "rules/misfit": 'extends: causal_lm\nskip_modules: ["x"]\n',
    }
    monkeypatch.chdir(write(tmp_path, **files))
    monkeypatch.setenv("NO_COLOR", "1")
    _save(llama(versions={"transformers": "5.0.0"}))
    return tmp_path


def _renamed() -> Inventory:
    model = llama(versions={"transformers": "6.0.0"})
    modules = (replace(each, name=each.name.replace("o_proj", "out_proj")) for each in model.modules)
    return replace(model, modules=tuple(modules))


def _json(capsys: Capture) -> Any:
    return json.loads(capsys.readouterr().out)


def test_lock_and_check(capsys: Capture) -> None:
    """The lock lies beside its rule file, and holds; from anywhere, with the rules that it names or with RULES."""
    assert run(["lock", "model.json", "rules/llama.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rules/llama.lock: 21 modules, 12 quantized, ")
    for rules in ([], ["rules/llama.yaml"]):
        assert run(["plan", "model.json", *rules, "--check", "rules/llama.lock"]) == 0
        assert capsys.readouterr().out == "rules/llama.lock holds: 21 modules decided as locked, 129 KB\n"


def test_the_same_from_another_folder(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes the lock writes the same text, wherever he stands."""
    assert run(["lock", "model.json", "rules/llama.yaml"]) == 0
    text = Path("rules/llama.lock").read_text()
    monkeypatch.chdir("rules")
    assert run(["lock", "../model.json", "llama.yaml"]) == 0
    assert Path("llama.lock").read_text() == text
    assert json.loads(text)["rules"] == "llama.yaml"
    assert run(["plan", "../model.json", "--check", "llama.lock"]) == 0


def test_bundled_rules(capsys: Capture) -> None:
    """The lock of a bundled file lies in the working directory, and names it."""
    assert run(["lock", "model.json"]) == 0
    assert json.loads(Path("llama.lock").read_text())["rules"] == "bundled:llama"
    assert run(["plan", "model.json", "--check", "llama.lock"]) == 0


def test_stdout(capsys: Capture) -> None:
    """`-o -` prints what would be written."""
    assert run(["lock", "model.json", "rules/llama.yaml", "-o", "rules/a.lock"]) == 0
    capsys.readouterr()
    assert run(["lock", "model.json", "rules/llama.yaml", "-o", "-"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["rules"] == "rules/llama.yaml"
    assert out.replace("rules/llama.yaml", "llama.yaml") == Path("rules/a.lock").read_text()


def test_a_new_version_renames(capsys: Capture) -> None:
    """What a new version renames, and what that does to the decisions, is shown; 1."""
    assert run(["lock", "model.json", "rules/llama.yaml"]) == 0
    _save(_renamed())
    capsys.readouterr()
    assert run(["plan", "model.json", "--check", "rules/llama.lock"]) == 1
    out = capsys.readouterr().out
    assert "  transformers 5.0.0 -> 6.0.0\n" in out
    assert (
        "model.layers.{0..1}.self_attn.o_proj ×2  (Linear, 8,192 parameters, -9.98 KB)\n"
        "  likely renamed to model.layers.{0..1}.self_attn.out_proj\n"
        "  - skip: it adds up\n"
        "  + nf4\n"
    ) in out
    assert "2 modules changed" in out


def test_an_edit_changes_decisions(capsys: Capture) -> None:
    """Other rules on the same model: what they decide otherwise, and that they were edited."""
    assert run(["lock", "model.json", "rules/llama.yaml"]) == 0
    capsys.readouterr()
    assert run(["plan", "model.json", "rules/other.yaml", "--check", "rules/llama.lock", "--format", "json"]) == 1
    data = _json(capsys)
    assert data["changed"] is True
    assert data["lock"] == "rules/llama.lock"
    assert [each["name"] for each in data["changes"]] == [
        f"model.layers.{index}.self_attn.o_proj" for index in range(2)
    ]
    assert data["a"]["rules_sha256"] != data["b"]["rules_sha256"]


def test_an_edit_to_the_same_effect(capsys: Capture) -> None:
    """Rules that decide alike hold, with a word that they were edited; so does another version."""
    assert run(["lock", "model.json", "rules/llama.yaml"]) == 0
    path = Path("rules/llama.yaml")
    path.write_text(path.read_text().replace("it adds up", "it sums up"))
    _save(llama(versions={"transformers": "6.0.0"}))
    capsys.readouterr()
    assert run(["plan", "model.json", "--check", "rules/llama.lock"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["  transformers 5.0.0 -> 6.0.0", "  the rules were edited"]
    assert run(["plan", "model.json", "--check", "rules/llama.lock", "--format", "json"]) == 0
    data = _json(capsys)
    assert data["changed"] is False
    assert data["versions"] == {"locked": {"transformers": "5.0.0"}, "now": {"transformers": "6.0.0"}}


def test_rules_that_do_not_fit(capsys: Capture) -> None:
    """Rules with findings are not locked; in a check they are told beside the differences, and exit 1."""
    assert run(["lock", "model.json", "rules/misfit.yaml"]) == 1
    assert "error[RQ401]: `x` matches no module of llama" in capsys.readouterr().err
    assert not Path("rules/misfit.lock").exists()
    assert run(["lock", "model.json", "rules/other.yaml"]) == 0
    capsys.readouterr()
    assert run(["plan", "model.json", "rules/misfit.yaml", "--check", "rules/other.lock"]) == 1
    out = capsys.readouterr().out
    assert "rules/other.lock holds" in out
    assert "error[RQ401]" in out


def test_for_a_container(capsys: Capture) -> None:
    """The container is part of the lock: another one is a difference."""
    assert run(["lock", "model.json", "rules/llama.yaml", "--container", "rulequant"]) == 0
    check = ["plan", "model.json", "--check", "rules/llama.lock"]
    capsys.readouterr()
    assert run([*check, "--container", "rulequant"]) == 0
    assert run(check) == 1
    out = capsys.readouterr().out
    assert "0 modules changed" in out
    assert "container        rulequant  bitsandbytes      differs" in out


def test_replaces_only_locks(capsys: Capture) -> None:
    """A lock is written anew; that of another model only when its name is given; nothing else ever."""
    for _ in range(2):
        assert run(["lock", "model.json", "rules/llama.yaml"]) == 0
    _save(replace(llama(), model="llama-large"))
    assert run(["lock", "model.json", "rules/llama.yaml"]) == 2
    assert (
        "rules/llama.lock is the lock of another model, llama, and this one is llama-large" in capsys.readouterr().err
    )
    assert run(["lock", "model.json", "rules/llama.yaml", "-o", "rules/llama.lock"]) == 0
    assert run(["lock", "model.json", "rules/llama.yaml", "-o", "rules/other.yaml"]) == 2
    assert "rules/other.yaml exists and is not a lock" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--check", "gone.lock"], "cannot read the lock gone.lock: No such file", id="no file"),
        pytest.param(["--check", "model.json"], "model.json is not a lock: it has no `rulequant_lock`", id="inventory"),
        pytest.param(
            ["--check", "moved.lock"], "moved.lock was made with llama.yaml, and llama.yaml is no file", id="moved"
        ),
    ],
)
def test_wrong_locks(arguments: list[str], message: str, capsys: Capture) -> None:
    """What is wrong with a lock is said; 2."""
    assert run(["lock", "model.json", "rules/llama.yaml"]) == 0
    Path("rules/llama.lock").rename("moved.lock")
    capsys.readouterr()
    assert run(["plan", "model.json", *arguments]) == 2
    assert message in capsys.readouterr().err
