"""`rulequant validate --fix` and `--diff`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rulequant.cli.main import run

WRONG = "version: 1\nextends: causal_lm\nmodels: [llama]\nskip_modules:\n  - *.gate  # why\n"
RIGHT = WRONG.replace("*.gate", '"*.gate"')
HALF = WRONG + "foo: 1\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a file to mend, one to mend in part, and one that is right."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    for name, text in (("wrong", WRONG), ("half", HALF), ("right", RIGHT)):
        (tmp_path / f"{name}.yaml").write_text(text, newline="")
    return tmp_path


def give_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let stdin hold the bytes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_fix(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is mended, each fix is named on stderr, and nothing remains."""
    assert run(["validate", "wrong.yaml", "--fix"]) == 0
    assert (folder / "wrong.yaml").read_text() == RIGHT
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "wrong.yaml:5:5: fixed RQ005: `*.gate` is not quoted, and `*` starts an alias in YAML\n"
        "fixed 1 problem in 1 file\n"
        "1 file checked, no problems\n"
    )


def test_fix_what_can_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What remains is reported as ever, and is an error."""
    assert run(["validate", "--fix", "--format=json", "."]) == 1
    assert [(folder / f"{name}.yaml").read_text() for name in ("wrong", "half")] == [RIGHT, RIGHT + "foo: 1\n"]
    out, err = capsys.readouterr()
    assert [each["code"] for each in json.loads(out)["diagnostics"]] == ["RQ101"]
    assert err.endswith("fixed 2 problems in 2 files\n3 files checked, 1 error\n")


def test_fix_right_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is nothing to mend the output is that of validation."""
    assert run(["validate", "right.yaml", "--fix"]) == 0
    assert capsys.readouterr() == ("", "1 file checked, no problems\n")


def test_diff(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The change goes to stdout, and no file is written."""
    assert run(["validate", "wrong.yaml", "right.yaml", "--diff"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("--- a/wrong.yaml\n+++ b/wrong.yaml\n@@ ")
    assert '\n-  - *.gate  # why\n+  - "*.gate"  # why\n' in out
    assert err == "would fix 1 problem in 1 file\n2 files checked, no problems\n"
    assert (folder / "wrong.yaml").read_text() == WRONG


def test_diff_of_right_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No change and no error is a success."""
    assert run(["validate", "right.yaml", "--diff"]) == 0
    assert capsys.readouterr() == ("", "1 file checked, no problems\n")


def test_diff_reports_the_rest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What would remain goes to stderr, with the lines as they would be, so that stdout is a diff."""
    (folder / "half.yaml").write_text("foo: [{*.a: 1}]\n" + HALF)
    assert run(["validate", "half.yaml", "--diff", "--format=full"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("--- a/half.yaml")
    assert 'foo: [{"*.a": 1}]' in err
    assert "RQ101" in err


def test_diff_of_a_parent(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file is judged by its parent as it would be."""
    (folder / "child.yaml").write_text("version: 1\nextends: ./wrong.yaml\nscheme: int8\n")
    assert run(["validate", "child.yaml", "wrong.yaml", "--diff", "-q"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("--- a/wrong.yaml")
    assert err == ""


def test_git_applies_the_diff_of_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All changes are one patch."""
    run(["validate", ".", "--diff", "-q"])
    diff = capsys.readouterr().out
    subprocess.run(["git", "apply", "-"], input=diff.encode(), cwd=folder, check=True)
    assert (folder / "wrong.yaml").read_text() == RIGHT
    assert (folder / "half.yaml").read_text() == RIGHT + "foo: 1\n"


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        (WRONG.encode(), RIGHT.encode(), 0),
        (RIGHT.encode(), RIGHT.encode(), 0),
        (HALF.encode(), RIGHT.encode() + b"foo: 1\n", 1),
        (b"\xef\xbb\xbfversion: '1'\r\n# caf\xc3\xa9", b"\xef\xbb\xbfversion: 1\r\n# caf\xc3\xa9", 0),
        (b"version: '1' # caf\xe9", b"version: '1' # caf\xe9", 1),
        (b"", b"", 1),
    ],
    ids=["wrong", "right", "half", "byte-order-mark", "latin-1", "empty"],
)
def test_stdin(
    before: bytes, after: bytes, code: int, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """stdin goes to stdout, mended where it can be, to the byte; findings go to stderr."""
    give_stdin(monkeypatch, before)
    assert run(["validate", "-", "--fix", "-q"]) == code
    out, err = capsysbinary.readouterr()
    assert out == after
    assert (b"error" in err) == (code == 1)


def test_diff_of_stdin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The diff is about the file that stdin stands for."""
    give_stdin(monkeypatch, WRONG.encode())
    assert run(["validate", "-", "--diff", "-q", "--stdin-filename", "rules/a.yaml"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("--- a/rules/a.yaml\n")
    assert err == ""


def test_stdin_too_large(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of what is not read to its end nothing is written."""
    give_stdin(monkeypatch, b"# filler\n" * 120_000)
    assert run(["validate", "-", "--fix"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "stdin holds more than 1,048,576 bytes" in err


def test_not_both(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One writes and the other does not."""
    assert run(["validate", "wrong.yaml", "--fix", "--diff"]) == 2
    assert "--fix writes what --diff only prints" in capsys.readouterr().err
    assert (folder / "wrong.yaml").read_text() == WRONG


def test_a_file_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is reported, and the others are mended."""
    assert run(["validate", "none.yaml", "wrong.yaml", "--fix"]) == 2
    assert "RQ001" in capsys.readouterr().out
    assert (folder / "wrong.yaml").read_text() == RIGHT
