"""The wheel: it holds every package and data file, and does the torch-free work where nothing else is installed."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from checkout import CHECKOUT, copy_checkout

from rulequant.bundled import bundled_names

pytestmark = pytest.mark.slow

INVENTORY = CHECKOUT / "examples/minilm/inventory.json"
RULES = CHECKOUT / "examples/minilm/mixed.yaml"


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def _setuptools_is_new_enough() -> bool:
    try:
        return int(metadata.version("setuptools").partition(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of what the checkout holds now."""
    source = copy_checkout(tmp_path_factory.mktemp("source") / "rulequant")
    isolation = ["--no-isolation"] if _setuptools_is_new_enough() else []
    built = _run(sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", source / "dist", source)
    assert built.returncode == 0, built.stdout + built.stderr
    return next((source / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def rulequant(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in an environment that holds the wheel and its base dependencies only."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    scripts = folder / ("Scripts" if sys.platform == "win32" else "bin")
    constraints = CHECKOUT / "constraints.txt"
    installed = _run(scripts / "python", "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel)
    assert installed.returncode == 0, installed.stderr
    return scripts / "rulequant"


def test_holds_every_package_and_data_file(wheel: Path) -> None:
    """All modules of the checkout are in the wheel, with the rules, the schema and what is read at run time."""
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {each.relative_to(CHECKOUT).as_posix() for each in (CHECKOUT / "rulequant").rglob("*.py")}
    rules = {f"rulequant/rules/{each.name}" for each in (CHECKOUT / "rules").glob("*.yaml")}
    data = {"rulequant/py.typed", "rulequant/known_types.txt", "rulequant/schemas/ruleset.v1.schema.json"}
    assert sorted((modules | rules | data) - names) == []


def test_holds_nothing_else(wheel: Path) -> None:
    """Neither tests nor examples nor benchmarks are installed."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {each.partition("/")[0].partition("-")[0] for each in names} == {"rulequant"}


def test_environment_has_no_torch(rulequant: Path) -> None:
    """The base install is what pyproject.toml says: no torch, no numpy."""
    listed = _run(rulequant.parent / "python", "-m", "pip", "list", "--format", "json")
    packages = {each["name"] for each in json.loads(listed.stdout)}
    assert {"rulequant", "pydantic", "PyYAML", "click", "fnmatch2", "bracex"} <= packages
    assert not {"torch", "numpy", "transformers", "bitsandbytes", "rich"} & packages


def test_lists_the_bundled_rules(rulequant: Path) -> None:
    """All bundled files are there."""
    listed = _run(rulequant, "rules", "--format", "json")
    assert [each["name"] for each in json.loads(listed.stdout)["rules"]] == list(bundled_names())


def test_validates(rulequant: Path, tmp_path: Path) -> None:
    """`validate` reads a file that extends bundled ones, knows class names, and finds what is wrong."""
    good = _run(rulequant, "validate", CHECKOUT / "examples", "--model", INVENTORY)
    assert (good.returncode, good.stdout) == (0, ""), good.stderr
    (tmp_path / "bad.yaml").write_text("version: 1\nextends: llama\nquantizable_types: [Liner]\nrulez: []\n")
    bad = _run(rulequant, "validate", "--format", "concise", tmp_path / "bad.yaml")
    assert bad.returncode == 1
    assert "unknown key `rulez`" in bad.stdout


def test_prints_the_schema(rulequant: Path) -> None:
    """`schema` prints the file of the checkout."""
    printed = _run(rulequant, "schema").stdout
    assert printed == (CHECKOUT / "schemas/ruleset.v1.schema.json").read_text(encoding="utf-8")


def test_plans_an_inventory(rulequant: Path) -> None:
    """`plan` and `why` on an inventory file need no torch."""
    planned = _run(rulequant, "plan", INVENTORY, RULES, "--format", "json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["summary"]["quantized"] == 36
    why = _run(rulequant, "why", INVENTORY, RULES, "pooler.dense")
    assert why.returncode == 0, why.stderr
    assert "not quantized: skip" in why.stdout


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_says_what_to_install(rulequant: Path, command: str, tmp_path: Path) -> None:
    """A checkpoint folder takes torch: the message names the extra, and the exit code is that of usage."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    output = ["-o", tmp_path / "out"] if command == "apply" else []
    refused = _run(rulequant, command, tmp_path / "model", *output)
    assert refused.returncode == 2
    assert "pip install 'rulequant[torch]'" in refused.stderr
    assert "Traceback" not in refused.stderr
