"""`rulequant plan`, `why`, `diff`, `rules` and `init` on an inventory file, and so without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from inventories import llama, of, write

from rulequant.cli import terminal
from rulequant.cli.main import run
from rulequant.inventory import Inventory, ModuleInfo, TensorInfo
from rulequant.inventory_file import dump_inventory
from rulequant.loader import load_rules
from rulequant.plan_file import load_plan
from rulequant.planner import make_plan

O_PROJ = "model.layers.0.self_attn.o_proj"
RULES = """
extends: causal_lm
skip_modules:
  - {modules: "**.o_proj", reason: it adds up}
"""
Capture = pytest.CaptureFixture[str]


def _save(inventory: Inventory, name: str = "model.json") -> None:
    Path(name).write_text(dump_inventory(inventory))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an inventory, and rule files that fit it, do not fit it, and are wrong."""
    monkeypatch.chdir(
        write(tmp_path, rules=RULES, misfit='extends: causal_lm\nskip_modules: ["**.o_prj"]\n', bad="foo: 1\n")
    )
    monkeypatch.setenv("NO_COLOR", "1")
    _save(llama())
    return tmp_path


def _json(capsys: Capture) -> Any:
    return json.loads(capsys.readouterr().out)


def test_plan(capsys: Capture) -> None:
    """Summary, folded table and what stays heavy, on stdout; nothing on stderr."""
    assert run(["plan", "model.json", "rules.yaml"]) == 0
    out, err = capsys.readouterr()
    assert "model.layers.*.self_attn.q_proj ×2" in out
    assert "skip: it adds up (rules.yaml:5)" in out
    assert "Heaviest unquantized" in out
    assert err == ""


def test_plan_with_the_bundled_rules(capsys: Capture) -> None:
    """Without RULES the file of the model's type is taken; its name may be given too."""
    assert run(["plan", "model.json", "--format", "json"]) == 0
    absent = _json(capsys)
    assert absent["rules"] == "bundled:llama"
    assert run(["plan", "model.json", "llama", "--format", "json"]) == 0
    assert _json(capsys) == absent


def test_plan_as_json_is_the_plan(capsys: Capture) -> None:
    """`--format json` is `Plan.to_dict()`, and `-o` writes the same."""
    assert run(["plan", "model.json", "rules.yaml", "--format", "json", "-o", "plan.json"]) == 0
    plan = make_plan(load_rules("rules.yaml"), llama())
    assert _json(capsys) == plan.to_dict() == json.loads(Path("plan.json").read_text())
    assert load_plan(Path("plan.json")).sha256 == plan.sha256


def test_plan_all(capsys: Capture) -> None:
    """Each module has its line."""
    assert run(["plan", "model.json", "rules.yaml", "--all"]) == 0
    out = capsys.readouterr().out
    assert all(each.name in out for each in llama().owners)
    assert "×" not in out


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        pytest.param(200, "", id="wide"),
        pytest.param(95, "before", id="narrower"),
        pytest.param(80, "before and parameters", id="narrow"),
        pytest.param(72, "type and parameters and before", id="narrowest"),
        pytest.param(40, "", id="too-narrow-for-names"),
    ],
)
def test_plan_on_a_terminal(width: int, left_out: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Whole names come before other columns, which are said to be missing; nothing is wider than the terminal."""
    monkeypatch.setattr(terminal, "is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(["plan", "model.json"]) == 0
    table = capsys.readouterr().out.partition("\n\n")[2].partition("\n\nHeaviest")[0]
    names = "model.layers.*.self_attn.q_proj ×2"
    assert (names in table) is (width > 40)
    said = table.partition("too narrow for ")[2].partition(";")[0].split(" and ")
    assert set(said) == set(left_out.split(" and "))
    assert all(len(line) <= width for line in table.partition("\n\nThe terminal")[0].splitlines())


def test_plan_that_does_not_fit(capsys: Capture) -> None:
    """Findings come with their line, and exit 1; the plan is printed and saved all the same."""
    assert run(["plan", "model.json", "misfit.yaml", "-o", "plan.json"]) == 1
    out = capsys.readouterr().out
    assert "error[RQ401]: `**.o_prj` matches no module of llama" in out
    assert "did you mean `**.o_proj`?" in out
    assert Path("plan.json").exists()


def test_plan_with_a_bad_rule_file(capsys: Capture) -> None:
    """What is wrong with the file is on stderr; as JSON it is on stdout."""
    assert run(["plan", "model.json", "bad.yaml"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "error[RQ101]: unknown key `foo`" in err
    assert run(["plan", "model.json", "bad.yaml", "--format", "json"]) == 1
    assert [each["code"] for each in _json(capsys)["diagnostics"]] == ["RQ101"]


def test_html() -> None:
    """The report is a page, may be written anew, and never over anything else."""
    assert run(["plan", "model.json", "--html", "plan.html"]) == 0
    assert Path("plan.html").read_text().startswith("<!doctype html>")
    assert run(["plan", "model.json", "--html", "plan.html"]) == 0
    assert run(["plan", "model.json", "--html", "rules.yaml"]) == 2
    assert Path("rules.yaml").read_text().endswith(RULES.strip("\n") + "\n")


def test_plan_is_not_written_over_something_else(capsys: Capture) -> None:
    """A saved plan may be replaced, a rule file not."""
    assert run(["plan", "model.json", "-o", "plan.json"]) == 0
    assert run(["plan", "model.json", "-o", "plan.json"]) == 0
    assert run(["plan", "model.json", "-o", "rules.yaml"]) == 2
    assert "rules.yaml exists and is not a plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["rules.yaml", "model.json"], "is a rule file, and MODEL comes first", id="wrong order"),
        pytest.param(["./modle.json"], "did you mean `model.json`?", id="misspelt file"),
        pytest.param(["rule.yaml"], "rule.yaml: no such file, and rule files come after MODEL", id="missing rule file"),
        pytest.param(["./gone/model"], "gone does not exist either", id="no folder"),
        pytest.param(["empty"], "holds no config.json", id="folder without a config"),
        pytest.param(["model.json", "rule.yaml"], "did you mean `rules.yaml`?", id="misspelt rules"),
        pytest.param(["model.json", "empty"], "cannot read `empty`: it is a directory", id="a folder for the rules"),
        pytest.param(["model.json", "lama"], "did you mean `llama`?", id="misspelt bundled name"),
        pytest.param(["model.json", "zzz"], "one of the names that `rulequant rules` lists", id="neither"),
        pytest.param(["model.json", "olmo3"], "models of type `olmo3` have the bundled file `olmo2`", id="model type"),
        pytest.param(["other.json"], "is not an inventory file", id="other JSON"),
        pytest.param(["config.json"], "a file, not a checkpoint folder", id="the config itself"),
        pytest.param(["./" + "x" * 5000], "no such file or folder", id="long name"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: Capture) -> None:
    """Each mistake is said to be what it is, without torch, and exits 2."""
    Path("other.json").write_text("{}")
    Path("config.json").write_text("{}")
    Path("empty").mkdir()
    assert run(["plan", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


@pytest.mark.parametrize("model_type", ["robertaa", "zzz"], ids=["near", "far"])
def test_no_rules_for_the_type(model_type: str, capsys: Capture) -> None:
    """A type without a bundled file is planned by the default for its task, which a note says, with the nearest."""
    _save(llama(model_type=model_type))
    assert run(["plan", "model.json"]) == 0
    out, err = capsys.readouterr()
    assert "bundled:causal_lm" in out
    assert f"no bundled rule file is for the model_type `{model_type}`" in err
    assert "taking `causal_lm`, the default for decoder language models" in err
    assert ("(nearest: roberta)" in err) is (model_type == "robertaa")
    assert "`rulequant init MODEL -o rules.yaml`" in err
    assert run(["rules", "model.json", "--format", "json"]) == 0
    assert _json(capsys) == {"format_version": 1, "model_type": model_type, "rules": "causal_lm", "default": True}


def test_no_type(capsys: Capture) -> None:
    """A model without a type needs RULES."""
    _save(llama(model_type=None))
    assert run(["plan", "model.json"]) == 2
    err = capsys.readouterr().err
    assert "has no model_type to choose rules by\n  give RULES: a rule file, which `rulequant init" in err
    assert err.endswith("or `causal_lm`\n")


def test_names_are_escaped(capsys: Capture) -> None:
    """A name in the inventory cannot act on the terminal."""
    odd = ModuleInfo("a\x1b[2K", "B\r", tensors=(TensorInfo("w\x1b", (4,), "float32"),))
    _save(of(odd, model="m\x1b", model_type="llama"))
    run(["plan", "model.json"])
    run(["why", "model.json", "a\x1b[2K"])
    run(["why", "model.json", "b\x1b[2K"])
    run(["init", "model.json"])
    text = "".join(capsys.readouterr())
    assert "\x1b" not in text
    assert "\r" not in text


def test_plan_for_a_container(capsys: Capture) -> None:
    """The container is told, and one that cannot be is an error with the modules in its way; vLLM's notes are none."""
    Path("mixed.yaml").write_text(
        'version: 1\nextends: causal_lm\nrules: [{modules: "**.mlp", scheme: int8}]\n', encoding="utf-8"
    )
    assert run(["plan", "model.json"]) == 0
    assert "container        bitsandbytes, which transformers loads as it is\n" in capsys.readouterr().out
    assert run(["plan", "model.json", "mixed.yaml"]) == 0
    out = capsys.readouterr().out
    assert "container        rulequant, which transformers loads after `import rulequant.torch.transformers`\n" in out
    assert "note[RQ451]: vLLM loads bitsandbytes checkpoints" in out
    assert run(["plan", "model.json", "mixed.yaml", "--container", "bitsandbytes", "--format", "json"]) == 1
    data = _json(capsys)
    assert data["container"] == "bitsandbytes"
    (found,) = data["diagnostics"]
    assert found["code"] == "RQ503"
    assert "`int8` on model.layers.0.mlp.gate_proj and 5 more" in found["message"]


def test_why(capsys: Capture) -> None:
    """One module, with or without RULES."""
    assert run(["why", "model.json", "rules.yaml", O_PROJ]) == 0
    assert "not quantized: skip: it adds up (rules.yaml:5)" in capsys.readouterr().out
    assert run(["why", "model.json", O_PROJ]) == 0
    assert "quantized with nf4" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["rules.yaml"], id="no module"),
        pytest.param(["llama"], id="no module, a bundled name"),
        pytest.param([O_PROJ, "rules.yaml"], id="wrong order"),
    ],
)
def test_why_of_a_rule_file(arguments: list[str], capsys: Capture) -> None:
    """RULES where MODULE should be is told as what it is."""
    assert run(["why", "model.json", *arguments]) == 2
    message = f"error: `{arguments[-1]}` is a rule file, and MODULE comes last\n  write MODEL RULES MODULE\n"
    assert capsys.readouterr().err == message


def test_why_as_json(capsys: Capture) -> None:
    """The trace, or the contents of a container."""
    assert run(["why", "model.json", "rules.yaml", O_PROJ, "--format", "json"]) == 0
    assert _json(capsys)["decision"]["reason"] == "skip"
    assert run(["why", "model.json", "model.layers.0", "--format", "json"]) == 0
    assert len(_json(capsys)["modules"]) == 9


def test_why_of_an_unknown_module(capsys: Capture) -> None:
    """The nearest name is given, and exit 2."""
    assert run(["why", "model.json", "model.layers.0.self_attn.o_prj"]) == 2
    assert f"`{O_PROJ}`" in capsys.readouterr().err


def test_diff(capsys: Capture) -> None:
    """What changes, and 0 unless `--exit-code` asks."""
    assert run(["diff", "model.json", "llama", "rules.yaml"]) == 0
    assert "model.layers.{0..1}.self_attn.o_proj ×2" in capsys.readouterr().out
    assert run(["diff", "model.json", "llama", "rules.yaml", "--exit-code", "--format", "json"]) == 1
    assert [each["name"] for each in _json(capsys)["changes"]] == [O_PROJ, O_PROJ.replace("0", "1")]
    assert run(["diff", "model.json", "llama", "llama", "--exit-code"]) == 0


def test_rules(capsys: Capture) -> None:
    """All bundled files, or the one that a model gets."""
    assert run(["rules"]) == 0
    assert "causal_lm" in capsys.readouterr().out
    assert run(["rules", "model.json"]) == 0
    assert capsys.readouterr().out == "llama\n"
    assert run(["rules", "--format", "json"]) == 0
    listed = {each["name"]: each for each in _json(capsys)["rules"]}
    assert listed["llama"]["models"] == ["llama"]
    assert run(["rules", "model.json", "--format", "json"]) == 0
    assert _json(capsys) == {"format_version": 1, "model_type": "llama", "rules": "llama", "default": False}


def test_show(capsys: Capture) -> None:
    """A rule file with all that it extends, as YAML that loads, or as JSON."""
    assert run(["show", "rules.yaml"]) == 0
    Path("shown.yaml").write_text(capsys.readouterr().out)
    assert load_rules("shown.yaml").sha256 == load_rules("rules.yaml").sha256
    assert run(["show", "llama", "--format", "json"]) == 0
    assert _json(capsys)["files"] == ["bundled:causal_lm", "bundled:llama"]
    assert run(["show", "lama"]) == 2


def test_explain(capsys: Capture) -> None:
    """A code in any spelling; an unknown one is answered with the nearest."""
    assert run(["explain", "rq101", "402"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("RQ101 (error): unknown key\n")
    assert "RQ402 (warning)" in out
    assert run(["explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 40
    assert run(["explain", "RQ1O1"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_init(capsys: Capture) -> None:
    """The file is written once, validates, and plans."""
    assert run(["init", "model.json", "-o", "new.yaml"]) == 0
    assert "rulequant plan model.json new.yaml" in capsys.readouterr().err
    assert run(["validate", "new.yaml", "--model", "model.json"]) == 0
    assert run(["plan", "model.json", "new.yaml"]) == 0
    assert run(["init", "model.json", "-o", "new.yaml"]) == 2
    assert "new.yaml exists\n" in capsys.readouterr().err
    assert run(["init", "model.json"]) == 0
    assert capsys.readouterr().out == Path("new.yaml").read_text()


def test_inventory_of_an_inventory(capsys: Capture) -> None:
    """An inventory file is copied as it is; to stdout, or to a file that is an inventory or new."""
    text = Path("model.json").read_text()
    assert run(["inventory", "model.json"]) == 0
    assert capsys.readouterr().out == text
    assert run(["inventory", "model.json", "-o", "-"]) == 0
    assert capsys.readouterr().out == text
    for _ in range(2):
        assert run(["inventory", "model.json", "-o", "copy.json"]) == 0
        assert Path("copy.json").read_text() == text
    assert run(["inventory", "model.json", "-o", "rules.yaml"]) == 2
    assert "rules.yaml exists and is not an inventory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["plan", "model.json", "--html", "p.html"], id="plan"),
        pytest.param(["why", "model.json", O_PROJ], id="why"),
        pytest.param(["diff", "model.json", "llama", "rules.yaml"], id="diff"),
        pytest.param(["rules", "model.json"], id="rules"),
        pytest.param(["init", "model.json"], id="init"),
        pytest.param(["inventory", "model.json"], id="inventory"),
        pytest.param(["validate", "rules.yaml", "--model", "model.json"], id="validate"),
        pytest.param(["lock", "model.json", "rules.yaml"], id="lock"),
        pytest.param(["show", "llama"], id="show"),
        pytest.param(["schema"], id="schema"),
        pytest.param(["explain", "RQ101"], id="explain"),
    ],
)
def test_needs_no_torch(arguments: list[str]) -> None:
    """In an environment where the extra cannot be imported all of this works."""
    done = _without_extra(arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["plan", "checkpoint"], id="plan"),
        pytest.param(["apply", "checkpoint", "-o", "out"], id="apply"),
        pytest.param(["inventory", "package.module:build"], id="inventory"),
    ],
)
def test_says_what_to_install(arguments: list[str]) -> None:
    """What takes torch names the missing package and the extra, and exits 2."""
    Path("checkpoint").mkdir()
    Path("checkpoint/config.json").write_text("{}")
    done = _without_extra(arguments)
    assert done.returncode == 2
    assert "needs torch, which is not installed\n  pip install 'rulequant[torch]'" in done.stderr


BLOCK = """
import sys
from importlib.abc import MetaPathFinder

EXTRA = {"torch", "numpy", "transformers", "bitsandbytes", "accelerate", "safetensors", "huggingface_hub", "rich"}


class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in EXTRA:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())
from rulequant.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def _without_extra(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK, *arguments], capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}
    )
