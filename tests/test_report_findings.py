"""Diagnostics in each format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rulequant.diagnostics import Diagnostic, Location, Severity
from rulequant.report.findings import Sources, concise, findings, full, github
from rulequant.report.overview import in_order, summary, tally
from rulequant.report.text import Style

TEXT = "version: 1\nskip_module: []\n"
ERROR = Diagnostic(
    "RQ101",
    "unknown key `skip_module`",
    Location("rules.yaml", 2, 1, 2, 12),
    value="skip_module",
    allowed=("version", "skip_modules"),
    remedy="did you mean `skip_modules`?",
)
WARNING = Diagnostic("RQ402", "decides nothing", Location("rules.yaml", 1, 1, 1, 2), Severity.WARNING)
NOWHERE = Diagnostic("RQ501", "nothing to do")


def test_full() -> None:
    """What, where with carets, what is allowed, and what to do."""
    assert full(ERROR, Sources({"rules.yaml": TEXT})) == "\n".join(
        [
            "error[RQ101]: unknown key `skip_module`",
            " --> rules.yaml:2:1",
            "  |",
            "2 | skip_module: []",
            "  | ^^^^^^^^^^^",
            "  = allowed: version, skip_modules",
            "  = help: did you mean `skip_modules`?",
        ]
    )


def test_full_does_not_say_what_is_allowed_twice() -> None:
    """A remedy that is the list of what is allowed is left out."""
    same = Diagnostic("RQ103", "no", allowed=("a", "b"), remedy="allowed: a, b")
    assert full(same, Sources()) == "error[RQ103]: no\n = allowed: a, b"
    longer = Diagnostic("RQ101", "no", allowed=("a", "b"), remedy="it belongs under `expect`; here: a, b")
    assert full(longer, Sources()) == "error[RQ101]: no\n = help: it belongs under `expect`; here: a, b"


def test_full_cuts_a_long_list() -> None:
    """Of many allowed values a dozen is named."""
    many = Diagnostic("RQ103", "no", allowed=tuple(str(number) for number in range(40)))
    assert full(many, Sources()).endswith("10, 11, and 28 more")


def test_full_in_color() -> None:
    """Errors are red and warnings yellow."""
    style = Style(color=True)
    assert full(NOWHERE, Sources(), style).startswith("\x1b[1;31merror[RQ501]")
    assert full(WARNING, Sources({"rules.yaml": TEXT}), style).startswith("\x1b[1;33mwarning[RQ402]")


def test_concise() -> None:
    """One line each."""
    assert concise(ERROR) == ("rules.yaml:2:1: RQ101 error: unknown key `skip_module`; did you mean `skip_modules`?")
    assert concise(NOWHERE) == "RQ501 error: nothing to do"


@pytest.mark.parametrize("form", ["full", "concise", "github"])
def test_control_characters_are_escaped(form: str) -> None:
    """Neither a message nor a file's name nor its text reaches the terminal raw."""
    place = Location("a\x1b[2K.yaml", 1, 1, 1, 2)
    text = findings(
        [Diagnostic("RQ101", "b\x1b[31m", place, remedy="c\rd")], form, sources=Sources({place.file: "\x1b[0m"})
    )
    assert "\x1b" not in text
    assert "\r" not in text


def test_json() -> None:
    """One object, with a version and the counts."""
    found = json.loads(findings([ERROR, WARNING], "json", files=["rules.yaml"]))
    assert found["format_version"] == 1
    assert found["files"] == ["rules.yaml"]
    assert found["diagnostics"] == [ERROR.to_dict(), WARNING.to_dict()]
    assert found["summary"] == {"errors": 1, "warnings": 1}


def test_json_of_nothing() -> None:
    """There is an object even where there is nothing to say."""
    assert json.loads(findings([], "json"))["diagnostics"] == []


def test_github() -> None:
    """A workflow command with the span."""
    assert github(ERROR) == (
        "::error file=rules.yaml,line=2,endLine=2,col=1,endColumn=12,title=RQ101"
        "::unknown key `skip_module`; did you mean `skip_modules`?"
    )


def test_github_escapes() -> None:
    """Percent signs, line breaks, and in properties colons and commas, are escaped as the runner wants them."""
    odd = Diagnostic("RQ101", "100%\nof it", Location("a,b:c%.yaml", 1, 1, 1, 2), Severity.WARNING)
    assert (
        github(odd) == "::warning file=a%2Cb%3Ac%25.yaml,line=1,endLine=1,col=1,endColumn=2,title=RQ101::100%25%0Aof it"
    )


def test_github_without_a_place() -> None:
    """A problem of no file has a title alone."""
    assert github(NOWHERE) == "::error title=RQ501::nothing to do"


def test_github_over_several_lines_has_no_columns() -> None:
    """GitHub refuses columns of a span of several lines."""
    assert "col" not in github(Diagnostic("RQ101", "x", Location("f", 1, 3, 2, 4))).split("::")[1]


def test_in_order() -> None:
    """By file, line and column; each once; what has no place comes last."""
    assert in_order([NOWHERE, ERROR, WARNING, ERROR]) == [WARNING, ERROR, NOWHERE]


@pytest.mark.parametrize(
    ("files", "found", "text"),
    [
        pytest.param(1, [], "1 file checked, no problems", id="clean"),
        pytest.param(3, [ERROR, ERROR, WARNING], "3 files checked, 2 errors, 1 warning", id="both"),
        pytest.param(2, [WARNING], "2 files checked, 1 warning", id="warning"),
    ],
)
def test_summary(files: int, found: list[Diagnostic], text: str) -> None:
    """The summary counts."""
    assert summary(files, found) == text


def test_tally() -> None:
    """Errors, then warnings."""
    assert tally([ERROR, WARNING, WARNING]) == (1, 2)


def test_sources_reads_bundled_files() -> None:
    """A place in a bundled file shows its line."""
    lines = Sources().lines("bundled:llama")
    assert lines is not None
    assert lines[1] == "version: 1"


def test_sources_counts_lines_as_yaml_does(tmp_path: Path) -> None:
    """CR LF and CR end a line; a byte order mark is no character; other separators end none."""
    path = tmp_path / "f.yaml"
    path.write_bytes("\ufeffa\r\nb\rc\u2028d\n".encode())
    assert Sources().lines(str(path)) == ["a", "b", "c\u2028d", ""]


@pytest.mark.parametrize(
    "name", ["gone.yaml", "bundled:none", "\0", "x" * 5000], ids=["gone", "bundled", "nul", "long"]
)
def test_sources_without_the_file(name: str) -> None:
    """What cannot be read has no lines."""
    assert Sources().lines(name) is None
