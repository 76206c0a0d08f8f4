"""The pre-commit hook: its manifest fits the command, and the real pre-commit runs it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import CHECKOUT, commit_all, copy_checkout, git

from rulequant.cli.app import cli

HOOK = "rulequant-validate"
GOOD = 'version: 1\nextends: llama\nskip_modules:\n  - "**.o_proj"\n'
BAD = "version: 1\nextends: llama\nskip_module:\n  - **.o_proj\n"
INVENTORY = "examples/minilm/inventory.json"


def _manifest() -> dict[str, Any]:
    hooks = yaml.safe_load((CHECKOUT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    return {each["id"]: each for each in hooks}[HOOK]


def test_pre_commit_accepts_the_manifest() -> None:
    """The manifest is valid by pre-commit's own check."""
    manifest = pytest.importorskip("pre_commit.clientlib").load_manifest(CHECKOUT / ".pre-commit-hooks.yaml")
    assert [each["id"] for each in manifest] == [HOOK]


def test_entry_is_a_command() -> None:
    """The entry names an installed script and a command, and its arguments parse with a file behind them."""
    script, command, *arguments = shlex.split(_manifest()["entry"])
    assert {each.value for each in entry_points(group="console_scripts", name=script)} == {"rulequant.cli.main:main"}
    found = cli.get_command(cli.make_context(script, [command]), command)
    assert found is not None
    context = found.make_context(command, [*arguments, *_manifest().get("args", []), "rules/a.yaml"])
    assert context.params["files"] == ("rules/a.yaml",)


def test_all_files_come_in_one_call() -> None:
    """A parent that several files extend is read, and complained about, once."""
    assert _manifest()["require_serial"] is True


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("rules/llama.yaml", True),
        ("configs/rules/llama.yml", True),
        ("rule/a/b.yaml", True),
        ("llama.rules.yaml", True),
        ("models/llama.rules.yml", True),
        ("rules/README.md", False),
        ("myrules/llama.yaml", False),
        ("llama.yaml", False),
        (".github/workflows/rules.yaml", False),
    ],
)
def test_files_of_the_hook(path: str, expected: bool) -> None:
    """Rule files are found in folders of that name, and elsewhere by their ending."""
    assert bool(re.search(_manifest()["files"], path)) is expected


def test_docs_say_which_files() -> None:
    """The pages show hooks that exist."""
    for page in ("README.md", "docs/continuous-integration.md"):
        text = (CHECKOUT / page).read_text(encoding="utf-8")
        assert set(re.findall(r"- id: (\S+)", text)) == {HOOK}


def _consumer(folder: Path, hook_repository: Path, revision: str) -> Path:
    """A repository that uses the hook as the page on continuous integration says: by files, and by folder."""
    entry = {"id": HOOK}
    whole = {
        "id": HOOK,
        "alias": "whole-folder",
        "args": ["rules/", "--model", "inventory.json"],
        "files": "^(rules|inventory)",
        "types": ["text"],
        "pass_filenames": False,
        "stages": ["manual"],
    }
    config = {"repos": [{"repo": str(hook_repository), "rev": revision, "hooks": [entry, whole]}]}
    (folder / "rules").mkdir(parents=True)
    (folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "rules/base.yaml").write_text(GOOD, encoding="utf-8")
    (folder / "inventory.json").write_bytes((CHECKOUT / INVENTORY).read_bytes())
    commit_all(folder)
    return folder


def _pre_commit(folder: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    git(folder, "add", "--all")
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--color", "never", *arguments],
        cwd=folder,
        env={**variables, "PRE_COMMIT_HOME": str(home), "GIT_CONFIG_GLOBAL": os.devnull},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_real_pre_commit(tmp_path: Path) -> None:
    """In a repository that uses this one, a good rule file passes and a bad one fails with the message."""
    pytest.importorskip("pre_commit")
    hook_repository = copy_checkout(tmp_path / "rulequant")
    revision = commit_all(hook_repository)
    consumer, home = _consumer(tmp_path / "consumer", hook_repository, revision), tmp_path / "home"

    good = _pre_commit(consumer, home, HOOK, "--all-files")
    assert good.returncode == 0, good.stdout
    assert "Passed" in good.stdout

    (consumer / "rules/bad.yaml").write_text(BAD, encoding="utf-8")
    (consumer / "elsewhere.yaml").write_text(BAD, encoding="utf-8")  # not one of the hook's files
    bad = _pre_commit(consumer, home, HOOK)
    assert bad.returncode == 1
    assert "unknown key `skip_module`" in bad.stdout
    assert 'quote the pattern: "**.o_proj"' in bad.stdout
    assert "rules/bad.yaml:3:1" in bad.stdout
    assert "elsewhere.yaml" not in bad.stdout

    (consumer / "rules/bad.yaml").unlink()
    whole = _pre_commit(consumer, home, "whole-folder", "--hook-stage", "manual", "--all-files")
    assert whole.returncode == 0, whole.stdout
    (consumer / "rules/base.yaml").write_text(GOOD.replace("llama", "bert"), encoding="utf-8")
    missed = _pre_commit(consumer, home, "whole-folder", "--hook-stage", "manual")
    assert missed.returncode == 1
    assert "`**.o_proj` matches no module of all-MiniLM-L6-v2" in missed.stdout
