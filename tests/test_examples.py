"""The rule files under tests/examples get exactly the findings beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from example_files import EXAMPLES, INVALID, MODEL, VALID, expected_texts, findings, lines

from rulequant.codes import CODES

CODE = re.compile(r"\bRQ\d{3}\b")
HINT = "`python tests/regenerate_examples.py` writes it anew"


def _ids(paths: list[Path]) -> list[str]:
    return [each.stem for each in paths]


@pytest.mark.parametrize("path", VALID, ids=_ids(VALID))
def test_valid_example(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found in a valid example."""
    monkeypatch.chdir(path.parent)
    assert lines(findings(path), path) == ""


@pytest.mark.parametrize("path", [*INVALID, *MODEL], ids=_ids([*INVALID, *MODEL]))
def test_expected_findings(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The findings of an example are those in the files beside it, among them the code that it is named after."""
    monkeypatch.chdir(path.parent)
    texts = expected_texts(path)
    for beside, text in texts.items():
        assert (beside.read_text(encoding="utf-8") if beside.exists() else "") == text, HINT
    assert set(CODE.findall(path.stem)) <= {code for text in texts.values() for code in CODE.findall(text)}


def test_every_code_about_rule_files_has_an_example() -> None:
    """Each code of reading, contents, references and models is shown by a file that is named after it."""
    shown = {code for path in (*INVALID, *MODEL) for code in CODE.findall(path.stem)}
    assert {each for each in CODES if each < "RQ5"} - shown == set()


def test_no_stale_files() -> None:
    """No file of expected findings has lost its example."""
    stems = {each.stem for each in (*VALID, *INVALID, *MODEL)}
    assert {each.name for each in EXAMPLES.glob("*/*.expected") if each.name.split(".")[0] not in stems} == set()
