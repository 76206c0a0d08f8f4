"""Edits spliced into a text."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rulequant.diagnostics import Diagnostic, Edit, Location
from rulequant.sourcetext import SourceText
from rulequant.splice import apply_fixes, change_of, unified_diff


def offer(line: int, start: int, end: int, text: str, *, code: str = "RQ005") -> Diagnostic:
    """A diagnostic with an edit within one line."""
    place = Location("f", line, start, line, end)
    return Diagnostic(code, "message", place, fix=Edit(place, text))


CASES = {
    "one": ("a: b\n", [offer(1, 4, 5, "c")], "a: c\n", 1),
    "last-first": ("a: b\nc: d\n", [offer(2, 1, 2, "xyz"), offer(1, 1, 2, "")], ": b\nxyz: d\n", 2),
    "same-line": ("a: b", [offer(1, 4, 5, "'b'"), offer(1, 1, 2, "'a'")], "'a': 'b'", 2),
    "beside-each-other": ("abcd", [offer(1, 1, 3, "x"), offer(1, 3, 5, "y")], "xy", 2),
    "crlf": ("a: 1\r\nb: 2\r\n", [offer(2, 4, 5, "3")], "a: 1\r\nb: 3\r\n", 1),
    "cr": ("a: 1\rb: 2", [offer(2, 4, 5, "3")], "a: 1\rb: 3", 1),
    "byte-order-mark": ("\ufeffa: 1\n", [offer(1, 4, 5, "2")], "\ufeffa: 2\n", 1),
    "beyond-the-plane": ("a: \U0001f600x\n", [offer(1, 5, 6, "y")], "a: \U0001f600y\n", 1),
    "no-line-break": ("a: \u2028b\n", [offer(1, 5, 6, "c")], "a: \u2028c\n", 1),
    "overlap": ("abcd", [offer(1, 2, 4, "Y"), offer(1, 1, 3, "X")], "Xcd", 1),
    "tie": ("abcd", [offer(1, 1, 2, "X"), offer(1, 1, 3, "Y")], "Xbcd", 1),
    "twice": ("abcd", [offer(1, 1, 2, "X"), offer(1, 1, 2, "X", code="RQ101")], "Xbcd", 2),
    "insertions": ("ab", [offer(1, 2, 2, "X"), offer(1, 2, 2, "Y")], "aXb", 1),
    "past-the-end": ("a", [offer(1, 1, 99, "b"), offer(7, 1, 2, "c")], "bc", 2),
    "none": ("a: b\n", [Diagnostic("RQ001", "message")], "a: b\n", 0),
}


@pytest.mark.parametrize(("before", "diagnostics", "after", "made"), CASES.values(), ids=CASES)
def test_apply_fixes(before: str, diagnostics: list[Diagnostic], after: str, made: int) -> None:
    """Edits go where they belong, in any order, and all else stays; of two that overlap the first is made."""
    text, applied = apply_fixes(before, diagnostics)
    assert text == after
    assert len(applied) == made


def test_the_edit_of_a_part() -> None:
    """A change knows the value that its edit is a part of."""
    value, part = Location("f", 1, 4, 1, 9), Location("f", 1, 5, 1, 7)
    change = change_of(Diagnostic("RQ202", "message", value, fix=Edit(part, "xyz")), SourceText.of("f", "a: bcdef"))
    assert (change.place, change.span, change.growth) == ((3, 8), (4, 6), 1)


def test_a_diagnostic_without_an_edit() -> None:
    """There is nothing to splice in."""
    with pytest.raises(ValueError, match="RQ001 offers no fix"):
        change_of(Diagnostic("RQ001", "message"), SourceText.of("f", ""))


def test_unified_diff() -> None:
    """The names are those that git writes."""
    expected = "--- a/r.yaml\n+++ b/r.yaml\n@@ -1,2 +1,2 @@\n-a: 1\n+a: 2\n b: 1\n"
    assert unified_diff("r.yaml", "a: 1\nb: 1\n", "a: 2\nb: 1\n") == expected
    assert unified_diff("r.yaml", "a: 1\n", "a: 1\n") == ""
    assert unified_diff("/x/r.yaml", "a", "b").startswith("--- /x/r.yaml\n+++ /x/r.yaml\n")


@pytest.mark.skipif(shutil.which("git") is None, reason="git applies the diff")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a: 1\nb: 2\n", "a: 3\nb: 2\n"),
        ("a: 1\r\nb: 2\r\n", "a: 1\r\nb: 3\r\n"),
        ("a: 1\nb: 2", "a: 1\nb: 3"),
        ("a: 1\rb: 2\r", "a: 1\rb: 3\r"),
        ("\ufeffa: 1\n", "\ufeffa: 2\n"),
        ("a: \u2028\x0c1\nb: 2\n", "a: \u2028\x0c2\nb: 2\n"),
    ],
    ids=["lf", "crlf", "no-final-break", "cr", "byte-order-mark", "odd-breaks"],
)
def test_git_applies_the_diff(before: str, after: str, tmp_path: Path) -> None:
    """A diff makes the one text of the other, to the byte."""
    path = tmp_path / "r.yaml"
    path.write_bytes(before.encode())
    diff = unified_diff("r.yaml", before, after).encode()
    subprocess.run(["git", "apply", "--whitespace=nowarn", "-"], cwd=tmp_path, input=diff, check=True)
    assert path.read_bytes().decode() == after
