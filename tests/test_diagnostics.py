"""What a diagnostic says on one line, and what a misspelt word may have meant."""

from __future__ import annotations

import pytest

from rulequant.diagnostics import (
    Diagnostic,
    DiagnosticsError,
    Location,
    Severity,
    closest,
    did_you_mean,
    has_errors,
    suggestion,
)

PLACE = Location("a.yaml", 3, 5, 3, 9)


def test_one_line() -> None:
    """Place, code, severity, message and remedy, as far as there are any."""
    assert Diagnostic("RQ101", "m", PLACE, remedy="r").concise() == "a.yaml:3:5: RQ101 error: m; r"
    assert Diagnostic("RQ310", "m", severity=Severity.WARNING).concise() == "RQ310 warning: m"


def test_as_data() -> None:
    """All that a program may want, JSON-ready."""
    data = Diagnostic("RQ103", "m", PLACE, value="x", allowed=("a", "b"), remedy="r").to_dict()
    assert data == {
        "code": "RQ103", "severity": "error", "message": "m", "value": "x", "allowed": ["a", "b"], "remedy": "r",
        "location": {"file": "a.yaml", "line": 3, "column": 5, "end_line": 3, "end_column": 9},
    }  # fmt: skip
    assert Diagnostic("RQ103", "m").to_dict()["location"] is None


def test_errors_stand_in_the_way() -> None:
    """Warnings are no errors; the exception says one diagnostic a line."""
    warning, error = Diagnostic("RQ310", "w", severity=Severity.WARNING), Diagnostic("RQ101", "e")
    assert not has_errors([warning])
    assert has_errors([warning, error])
    assert str(DiagnosticsError([warning, error])) == "RQ310 warning: w\nRQ101 error: e"


@pytest.mark.parametrize(
    ("value", "candidates", "expected"),
    [
        ("modles", ["skip_modules", "models", "rules"], ["models"]),
        ("nf", ["nf4", "fp4"], ["nf4"]),
        ("NF4", ["nf4", "fp4"], ["nf4"]),
        ("float64", ["auto", "float16", "bfloat16", "float32"], ["float16", "bfloat16"]),
        ("Cov1D", ["Conv1d", "Conv1D", "Conv2d"], ["Conv1D", "Conv1d"]),
        ("gptq", ["bnb_4bit", "bnb_int8"], []),
        ("", ["a"], []),
        ("a", [], []),
        ("aa", ["aa1", "aa2", "aa3", "aa4"], ["aa4", "aa3", "aa2"]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_closest(value: str, candidates: list[str], expected: list[str]) -> None:
    """The best and those nearly as good, three at most; what differs by case alone beats all else."""
    assert closest(value, candidates) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], None),
        (["a"], "did you mean `a`?"),
        (["a", "b"], "did you mean `a` or `b`?"),
        (["a", "b", "c"], "did you mean `a`, `b` or `c`?"),
    ],
    ids=["none", "one", "two", "three"],
)
def test_suggestion(names: list[str], expected: str | None) -> None:
    """The suggestion reads as a question."""
    assert suggestion(names) == expected


def test_did_you_mean() -> None:
    """The remedy names what is close, and there is none where nothing is."""
    assert did_you_mean("extend", ["extends", "expect"]) == "did you mean `extends`?"
    assert did_you_mean("zzz", ["extends", "expect"]) is None
