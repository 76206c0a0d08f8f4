"""CONTRIBUTING: the modules, scripts and files that it names exist, in the order in which they may import."""

from __future__ import annotations

import configparser
import re
import shlex
from itertools import pairwise

import pytest
from checkout import CHECKOUT

TEXT = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def _table(heading: str) -> list[list[str]]:
    """The names in the first column of a table, row by row."""
    rows = TEXT.partition(f"| {heading} | |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    return [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in rows]


def _modules(folder: str) -> set[str]:
    found = {each.stem for each in (CHECKOUT / folder).glob("*.py")} - {"__init__"}
    return found | {each.parent.name for each in (CHECKOUT / folder).glob("*/*.py")}


@pytest.mark.parametrize(
    ("heading", "folder"), [("module", "rulequant"), ("in `rulequant/torch/`", "rulequant/torch")], ids=["top", "torch"]
)
def test_layout_names_every_module(heading: str, folder: str) -> None:
    """The table holds each module of a folder once, and none that is gone: correct the table."""
    named = [name for row in _table(heading) for name in row]
    assert sorted(named) == sorted(_modules(folder))


def test_layout_is_in_the_order_of_imports() -> None:
    """Rows further down are layers further down in .importlinter."""
    contracts = configparser.ConfigParser()
    contracts.read(CHECKOUT / ".importlinter")
    layers = contracts["importlinter:contract:layers"]["layers"].strip().splitlines()
    depth = {name.strip(): number for number, layer in enumerate(layers) for name in layer.split("|")}
    rows = [[depth[name] for name in row if name in depth] for row in _table("module")]
    spans = [(min(row), max(row)) for row in rows if row]
    assert spans == sorted(spans)
    assert all(above <= below for (_, above), (below, _) in pairwise(spans))


def test_folders_exist() -> None:
    """What lies beside the package is there."""
    assert [name for row in _table("beside it") for name in row if not (CHECKOUT / name).is_dir()] == []


def test_generated_files_exist() -> None:
    """Each generated file, or one of its pattern, is there."""
    names = [name for row in _table_of_files() for name in row]
    assert [name for name in names if not list(CHECKOUT.glob(name))] == []


def _table_of_files() -> list[list[str]]:
    rows = TEXT.partition("| file | is written by |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    return [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in rows]


def test_commands_name_scripts_that_exist() -> None:
    """The sessions run scripts, benchmarks and tests of this checkout."""
    sessions = re.findall(r"^\$ (.*)$", TEXT, re.MULTILINE)
    words = [word for each in sessions for word in shlex.split(each, comments=True)]
    paths = [each for each in words if each.endswith((".py", ".sh"))]
    assert paths
    assert [each for each in paths if not (CHECKOUT / each).exists()] == []
