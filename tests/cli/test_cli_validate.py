"""`rulequant validate`, but for --fix and --diff."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from inventories import linear, llama, of, write

from rulequant.cli.main import run
from rulequant.inventory import Inventory
from rulequant.inventory_file import dump_inventory

GOOD = "extends: causal_lm\n"
BAD = "skip_module: []\n"
WARNED = "extends: causal_lm\nscheme: nf4\n"

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with one file of each kind."""
    monkeypatch.chdir(write(tmp_path, good=GOOD, bad=BAD, warned=WARNED))
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def _give_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def _save(inventory: Inventory, path: Path) -> str:
    path.write_text(dump_inventory(inventory))
    return str(path)


@pytest.mark.parametrize(
    ("files", "code", "summary"),
    [
        pytest.param(["good.yaml"], 0, "1 file checked, no problems\n", id="good"),
        pytest.param(["warned.yaml"], 0, "1 file checked, 1 warning\n", id="a warning alone"),
        pytest.param(["bad.yaml"], 1, "1 file checked, 1 error\n", id="an error"),
        pytest.param(["bad.yaml", "warned.yaml", "good.yaml"], 1, "3 files checked, 1 error, 1 warning\n", id="all"),
        pytest.param(["gone.yaml", "bad.yaml"], 2, "2 files checked, 2 errors\n", id="one that is not there"),
    ],
)
def test_exit_codes(files: list[str], code: int, summary: str, capsys: Capture) -> None:
    """0 but for errors, 2 where a file cannot be read; the summary is on stderr."""
    assert run(["validate", *files]) == code
    assert capsys.readouterr().err == summary


def test_clean_run_writes_nothing_to_stdout(capsys: Capture) -> None:
    """stdout holds diagnostics, and there are none."""
    assert run(["validate", "good.yaml"]) == 0
    assert capsys.readouterr().out == ""


def test_all_problems_of_all_files(capsys: Capture) -> None:
    """The first problem hides none of the others; they are sorted by file."""
    write(Path(), other="skip_modules: [a..b]\nscheme: 4\n")
    assert run(["validate", "--format", "concise", "other.yaml", "bad.yaml"]) == 1
    places = [line.split(" ")[0] for line in capsys.readouterr().out.splitlines()]
    assert places == ["bad.yaml:2:1:", "other.yaml:2:16:", "other.yaml:3:9:"]


def test_nothing_to_check(capsys: Capture) -> None:
    """No argument is a mistake: a hook that checks nothing must not pass."""
    assert run(["validate"]) == 2
    assert "nothing to check" in capsys.readouterr().err


def test_folder(capsys: Capture) -> None:
    """All *.yaml and *.yml at any depth, but for hidden folders and other files."""
    write(Path("deep/er"), one=GOOD)
    write(Path(".hidden"), two=BAD)
    Path("deep/three.yml").write_text("version: 1\n" + GOOD)
    Path("deep/notes.txt").write_text("no rule file")
    assert run(["validate", "deep", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["deep/three.yml", "deep/er/one.yaml"]


def test_empty_folder(capsys: Capture) -> None:
    """A folder without rule files is a mistake too."""
    Path("empty").mkdir()
    assert run(["validate", "empty"]) == 2
    assert "holds no *.yaml or *.yml file" in capsys.readouterr().err


def test_a_file_given_twice_is_checked_once(folder: Path, capsys: Capture) -> None:
    """However it is called: by name, by path, through its folder or a link."""
    Path("link.yaml").symlink_to("bad.yaml")
    assert run(["validate", "bad.yaml", "./bad.yaml", str(folder / "bad.yaml"), "link.yaml"]) == 1
    assert capsys.readouterr().err == "1 file checked, 1 error\n"


def test_a_shared_parent_is_reported_once(capsys: Capture) -> None:
    """Problems of a file that several extend are listed once."""
    write(Path(), parent=BAD, one="extends: ./parent.yaml\n", two="extends: ./parent.yaml\n")
    assert run(["validate", "one.yaml", "two.yaml", "--format", "concise"]) == 1
    assert capsys.readouterr().out.count("parent.yaml:2:1") == 1


@pytest.mark.parametrize("names", [["a", "b"], ["b", "a"], ["./a", "b"]])
def test_circles_end(names: list[str], folder: Path, capsys: Capture) -> None:
    """Files that extend each other are an error, however they are called."""
    write(folder, a="extends: ./b.yaml\n", b="extends: ./a.yaml\n")
    paths = [f"{names[0]}.yaml", str(folder / f"{names[1]}.yaml"), "good.yaml"]
    assert run(["validate", *paths, "--format", "concise"]) == 1
    assert "RQ303" in capsys.readouterr().out


def test_stdin(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """`-` is the text of stdin, with its own lines in the frame."""
    _give_stdin(monkeypatch, b"version: 1\nskip_module: []\n")
    assert run(["validate", "-"]) == 1
    assert capsys.readouterr().out.startswith(
        "error[RQ101]: unknown key `skip_module`\n --> <stdin>:2:1\n  |\n2 | skip_module: []\n"
    )


def test_stdin_filename(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """The name stands in messages, and relative parents are looked for beside it."""
    write(Path("sub"), parent="schemes: {x: {method: bnb_4bit}}\nscheme: x\n")
    _give_stdin(monkeypatch, b"version: 1\nextends: ./parent.yaml\nfoo: 1\n")
    assert run(["validate", "-", "--stdin-filename", "sub/new.yaml", "--format", "concise"]) == 1
    assert capsys.readouterr().out.startswith("sub/new.yaml:3:1: RQ101")
    _give_stdin(monkeypatch, b"version: 1\nextends: ./parent.yaml\n")
    assert run(["validate", "-", "--stdin-filename", "sub/new.yaml"]) == 0


def test_stdin_filename_without_stdin(capsys: Capture) -> None:
    """The option is about stdin, which must then be asked for."""
    assert run(["validate", "good.yaml", "--stdin-filename", "x"]) == 2
    assert "--stdin-filename" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["full", "concise", "json", "github", "sarif"])
@pytest.mark.parametrize("file", ["good.yaml", "bad.yaml"])
def test_formats(form: str, file: str, capsys: Capture) -> None:
    """Every format works with problems and without; the whole documents are there in both cases."""
    assert run(["validate", file, "--format", form]) == (file == "bad.yaml")
    out = capsys.readouterr().out
    if form in {"json", "sarif"}:
        json.loads(out)
    assert ("RQ101" in out) is (file == "bad.yaml")


def test_quiet(capsys: Capture) -> None:
    """Problems are printed, the summary is not."""
    assert run(["validate", "-q", "bad.yaml", "good.yaml"]) == 1
    out, err = capsys.readouterr()
    assert "RQ101" in out
    assert err == ""


def test_color(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """NO_COLOR wins over FORCE_COLOR, which wins over not being a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    run(["validate", "bad.yaml"])
    assert "\x1b[" not in capsys.readouterr().out
    monkeypatch.delenv("NO_COLOR")
    run(["validate", "bad.yaml"])
    assert "\x1b[1;31merror[RQ101]" in capsys.readouterr().out
    monkeypatch.delenv("FORCE_COLOR")
    run(["validate", "bad.yaml"])
    assert "\x1b[" not in capsys.readouterr().out


def test_names_are_escaped(capsys: Capture) -> None:
    """A file's name cannot act on the terminal."""
    write(Path(), **{"a\x1b[2Kb": BAD})
    run(["validate", "a\x1b[2Kb.yaml", "gone\x1b.yaml"])
    assert "\x1b" not in "".join(capsys.readouterr())


def test_model(folder: Path, capsys: Capture) -> None:
    """A pattern must match in the models given as inventory files."""
    write(folder, rules='extends: causal_lm\nskip_modules: ["**.o_proj", "**.mlp.gate"]\n')
    small = _save(llama(), folder / "small.json")
    routed = _save(
        of(*llama().modules, linear("model.layers.0.mlp.gate", 8, 64), model="routed"), folder / "routed.json"
    )
    assert run(["validate", "rules.yaml", "--model", small, "--format", "concise"]) == 1
    assert "rules.yaml:3:29: RQ401 error" in capsys.readouterr().out
    assert run(["validate", "rules.yaml", "--model", small, "--model", routed, "--format", "concise"]) == 0
    assert "RQ409 warning: `**.mlp.gate` matches in 1 of 2 models, not in llama" in capsys.readouterr().out
    assert run(["validate", "rules.yaml", "--model", routed]) == 0


def test_model_that_is_none(capsys: Capture) -> None:
    """A file that is no inventory is said to be none, before torch is imported."""
    assert run(["validate", "good.yaml", "--model", "bad.yaml"]) == 2
    assert run(["validate", "good.yaml", "--model", "./gone.json"]) == 2
    assert "no such file or folder" in capsys.readouterr().err


HEAVY = {"torch", "numpy", "rich", "transformers", "bitsandbytes", "difflib", "rulequant.codes"}


def test_imports_little() -> None:
    """A clean run imports neither torch nor numpy nor rich, nor click, nor any other command."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rulequant", "validate", "good.yaml"],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "pydantic" in imported
    assert HEAVY & imported == set()
    commands = {name for name in imported if name.startswith("rulequant.cli.")}
    assert commands == {f"rulequant.cli.{name}" for name in ("main", "checking", "terminal")}
    assert "click" not in imported


def test_a_quoted_glob_is_opened_up(folder: Path, capsys: Capture) -> None:
    """A glob that no shell has opened up names its files; one that matches nothing is a misuse."""
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "one.yaml").write_text("version: 1\n")
    (folder / "deep" / "two.yaml").write_text("version: 1\n")
    assert run(["validate", "deep/**/*.yaml"]) == 0
    assert "2 files checked" in capsys.readouterr().err
    assert run(["validate", "deep/*.yml"]) == 2
    assert "deep/*.yml matches no file" in capsys.readouterr().err
