"""The README and docs/: their rule files are valid, their sessions print what they show, their Python runs."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from documents import CHECKOUT, MODEL, PAGES, Block, blocks, make_folder, run, shows, steps
from pydantic import BaseModel

from rulequant.cli.group import COMMANDS
from rulequant.lint import lint
from rulequant.loader import Loader
from rulequant.predicate import Reason
from rulequant.rulefile import Expect, Rule, RuleFile, SkipModules
from rulequant.schemes import BUILTIN

KEYS = set(RuleFile.model_fields)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_RESULT = re.compile(r"^  (nf4|int8|mixed) +([\d.]+) MB  ([\d.]+)", re.MULTILINE)


def _top_level(block: Block) -> set[str]:
    data = yaml.safe_load(block.text)
    return set(data) if isinstance(data, dict) else set()


YAML = [each for each in blocks("yaml") if not each.text.lstrip().startswith("#!")]
RULE_FILES = [each for each in YAML if "version" in _top_level(each)]
FRAGMENTS = [each for each in YAML if _top_level(each) and _top_level(each) <= KEYS - {"version"}]
SESSIONS = [each for each in blocks("console") if steps(each)]
NEEDS_TORCH = [each for each in SESSIONS if MODEL in re.sub(r"^(?!\$).*", "", each.text, flags=re.MULTILINE)]
PYTHON = blocks("python")


def _check(text: str, folder: Path) -> list[str]:
    """What `validate` finds in a rule file."""
    path = folder / "rules.yaml"
    path.write_text(text, encoding="utf-8")
    loader = Loader()
    loaded = loader.load(path)
    rules = loader.resolve(loaded) if loaded else None
    chain = loader.chain(loaded) if loaded and rules else None
    found = lint(chain, rules) if chain and rules else []
    return [each.concise() for each in (*loader.diagnostics, *found)]


def _write_parents(folder: Path) -> None:
    """Rule files that others on the pages extend begin with a comment that names them."""
    for block in RULE_FILES:
        first = block.text.splitlines()[0]
        if re.fullmatch(r"# [\w.-]+\.yaml", first):
            (folder / first.removeprefix("# ")).write_text(block.text, encoding="utf-8")


@pytest.mark.parametrize("block", RULE_FILES, ids=lambda each: each.id)
def test_rule_file_is_valid(block: Block, tmp_path: Path) -> None:
    """`validate` finds nothing in a rule file on a page."""
    _write_parents(tmp_path)
    assert _check(block.text, tmp_path) == []


@pytest.mark.parametrize("block", FRAGMENTS, ids=lambda each: each.id)
def test_fragment_is_valid(block: Block, tmp_path: Path) -> None:
    """`validate` finds nothing in a part of a rule file, put into one that extends the bundled base."""
    _write_parents(tmp_path)
    base = "" if "extends" in _top_level(block) else "extends: causal_lm\n"
    assert _check(f"version: 1\n{base}{block.text}", tmp_path) == []


@pytest.mark.parametrize(
    "block", [each for each in YAML if each not in RULE_FILES and each not in FRAGMENTS], ids=lambda each: each.id
)
def test_other_yaml_is_configuration(block: Block) -> None:
    """What is neither a rule file nor a part of one configures pre-commit or GitHub Actions."""
    assert _top_level(block) & {"repos", "jobs"}


def test_readme_shows_the_example() -> None:
    """The rule file of the README is the one that its sessions use."""
    assert (CHECKOUT / "examples/minilm/mixed.yaml").read_text(encoding="utf-8") in {each.text for each in RULE_FILES}


@pytest.mark.parametrize(
    "block",
    [pytest.param(each, marks=[pytest.mark.slow] if each in NEEDS_TORCH else [], id=each.id) for each in SESSIONS],
)
def test_session_prints_what_it_shows(block: Block, tmp_path: Path) -> None:
    """Each command of a session, run again, prints what the page shows below it."""
    make_folder(tmp_path)
    for step in steps(block):
        printed = run(step, tmp_path)
        assert shows(step.output, printed), f"$ {step.command}\n{printed}"


@pytest.mark.slow
def test_quickstart_prints_what_the_readme_shows(tmp_path: Path) -> None:
    """The main job reaches its floors, and the figures of the README are those that it prints."""
    script = CHECKOUT / "examples/minilm/quickstart.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "out"], capture_output=True, text=True, env=_environment()
    )
    assert done.returncode == 0, done.stderr
    shown = {name: (size, worst) for name, size, worst in _RESULT.findall((CHECKOUT / "README.md").read_text("utf-8"))}
    printed = {name: (size, worst) for name, size, worst in _RESULT.findall(done.stdout)}
    assert {name: size for name, (size, _) in printed.items()} == {name: size for name, (size, _) in shown.items()}
    for name, (_, worst) in printed.items():
        assert float(worst) == pytest.approx(float(shown[name][1]), abs=0.001)  # kernels differ in the last bits


def _environment() -> dict[str, str]:
    """The scripts of this interpreter's environment come first."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize("page", PAGES)
def test_examples_at_the_prompt_hold(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands behind `>>>` gives what stands below."""
    monkeypatch.chdir(CHECKOUT)
    result = doctest.testfile(str(CHECKOUT / page), module_relative=False, encoding="utf-8", report=True)
    assert result.failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("block", [each for each in PYTHON if ">>>" not in each.text], ids=lambda each: each.id)
def test_python_runs(block: Block, tmp_path: Path) -> None:
    """A Python block without prompts runs from top to bottom, in a process of its own."""
    make_folder(tmp_path)
    (tmp_path / "rules.yaml").write_text("version: 1\nextends: bert\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", block.text], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """A link to a file of the repository names one that exists."""
    folder = (CHECKOUT / page).parent
    targets = [each["target"] for each in _LINK.finditer((CHECKOUT / page).read_text(encoding="utf-8"))]
    local = [each.partition("#")[0] for each in targets if not each.startswith(("https://", "#"))]
    assert [each for each in local if not (folder / each).exists()] == []


def test_readme_names_every_command() -> None:
    """The table of commands is complete."""
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert [each for each in COMMANDS if f"`rulequant {each}" not in text] == []


def test_readme_names_every_reason() -> None:
    """The table of reasons is the closed set of the predicate."""
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| (?:its|an entry|it is|the model|other|the scheme)", text, re.MULTILINE) == list(
        Reason.__args__  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize(
    "model", [RuleFile, SkipModules, Rule, Expect, *BUILTIN.values()], ids=lambda each: each.__name__
)
def test_language_page_names_every_key(model: type[BaseModel]) -> None:
    """docs/rule-files.md is complete."""
    text = (CHECKOUT / "docs/rule-files.md").read_text(encoding="utf-8")
    keys = [field.alias or name for name, field in model.model_fields.items()]
    assert [each for each in keys if f"`{each}`" not in text] == []
