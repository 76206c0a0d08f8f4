"""Words and numbers of reports."""

from __future__ import annotations

import pytest

from rulequant.escaping import printable
from rulequant.report.text import PLAIN, Style, columns, count, percent, signed_size, size


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        pytest.param(0, "0 B", id="nothing"),
        pytest.param(999, "999 B", id="bytes"),
        pytest.param(1000, "1.00 KB", id="kilobyte"),
        pytest.param(90_872_064, "90.9 MB", id="megabytes"),
        pytest.param(999_499, "999 KB", id="below the next unit"),
        pytest.param(999_600, "1.00 MB", id="rounds into the next unit"),
        pytest.param(180_388_626_432, "180 GB", id="gigabytes"),
        pytest.param(5 * 10**18, "5000 PB", id="past the last unit"),
    ],
)
def test_size(nbytes: int, text: str) -> None:
    """Sizes have three digits, in decimal units."""
    assert size(nbytes) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        pytest.param(2000, "+2.00 KB", id="more"),
        pytest.param(-2000, "-2.00 KB", id="less"),
        pytest.param(0, "0 B", id="same"),
    ],
)
def test_signed_size(nbytes: int, text: str) -> None:
    """A change of size has its sign."""
    assert signed_size(nbytes) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        pytest.param(0.0, "0.0%", id="nothing"),
        pytest.param(0.0001, "<0.1%", id="hardly anything"),
        pytest.param(0.468, "46.8%", id="some"),
        pytest.param(0.99999, "99.9%", id="nearly all"),
        pytest.param(1.0, "100.0%", id="all"),
        pytest.param(1.2, "120.0%", id="more than all"),
    ],
)
def test_percent(share: float, text: str) -> None:
    """A share is nothing or all only where it is."""
    assert percent(share) == text


def test_count() -> None:
    """Nouns follow their number."""
    assert [count(0, "file"), count(1, "file"), count(1234, "file")] == ["0 files", "1 file", "1,234 files"]
    assert count(2, "box", "boxes") == "2 boxes"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        pytest.param("model.layers", "model.layers", id="plain"),
        pytest.param("größe ×2", "größe ×2", id="letters of all kinds"),
        pytest.param("a\x1b[2Kb", r"a\x1b[2Kb", id="escape sequence"),
        pytest.param("a\nb\rc\td", r"a\nb\rc\td", id="line breaks and tabs"),
        pytest.param("a\u202eb", r"a\u202eb", id="right-to-left override"),
        pytest.param("a\ud800b", r"a\ud800b", id="half a surrogate pair"),
        pytest.param("a\x00b", r"a\x00b", id="NUL"),
    ],
)
def test_printable(text: str, safe: str) -> None:
    """What a terminal would act on comes out as an escape."""
    assert printable(text) == safe


def test_printable_keeps_what_it_is_told() -> None:
    """A message of several lines keeps its line breaks, and nothing else."""
    assert printable("a\n\x1bb", keep="\n") == "a\n\\x1bb"


def test_columns() -> None:
    """Columns are as wide as their widest cell; numbers stand right; no line ends in spaces."""
    rows = [("name", "size"), ("a", "1"), ("longer", "")]
    assert columns(rows, right=frozenset({1}), indent=" ") == [" name    size", " a          1", " longer"]
    assert columns([]) == []


def test_style() -> None:
    """Color is written only where it is wanted, and never around nothing."""
    assert PLAIN.red("x") == "x"
    assert Style(color=True).red("x") == "\x1b[1;31mx\x1b[0m"
    assert Style(color=True).bold("") == ""
