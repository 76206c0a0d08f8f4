"""The source lines and carets below a diagnostic."""

from __future__ import annotations

from rulequant.diagnostics import Location
from rulequant.report.frame import frame


def _frame(text: str, line: int, column: int, end_column: int, end_line: int | None = None) -> list[str]:
    place = Location("f.yaml", line, column, end_line or line, end_column)
    return frame(place, text.split("\n"), paint=lambda carets: carets)


def test_carets_stand_under_the_span() -> None:
    """The line, and carets under the span."""
    assert _frame("a: 1\nbb: 2", 2, 1, 3) == [" --> f.yaml:2:1", "  |", "2 | bb: 2", "  | ^^"]


def test_an_empty_span_has_one_caret() -> None:
    """A place without extent, the end of the line too, is still shown."""
    assert _frame("ab", 1, 3, 3)[-1] == "  |   ^"


def test_several_lines_show_the_first_and_the_last() -> None:
    """What is in between is left out."""
    lines = _frame("skip:\n  - a\n  - b\n  - c", 1, 1, 6, end_line=4)
    assert lines[1:] == ["  |", "1 | skip:", "  | ^^^^^", "...", "4 |   - c", "  |   ^^^"]


def test_neighbouring_lines_have_nothing_between_them() -> None:
    """Two lines follow each other."""
    assert "..." not in _frame("a:\n  b", 1, 1, 4, end_line=2)


def test_a_long_line_is_cut_around_the_span() -> None:
    """The span stays visible, and the cut ends are marked."""
    shown, carets = _frame("x" * 300 + "NEEDLE" + "y" * 300, 1, 301, 307)[2:]
    start = shown.index("NEEDLE")
    assert carets.index("^") == start
    assert carets.count("^") == len("NEEDLE")
    assert "…" in shown[:6]
    assert shown.endswith("…")
    assert len(shown) < 110


def test_a_span_longer_than_the_line_is_cut() -> None:
    """Carets never run past what is shown."""
    shown, carets = _frame("x" * 500, 1, 1, 501)[2:]
    assert len(carets) <= len(shown)


def test_tabs_and_control_characters_keep_their_columns() -> None:
    """What is printed for a character is as wide as its carets."""
    shown, carets = _frame("\tk: \x1bv", 1, 5, 7)[2:]
    assert shown == r"1 |     k: \x1bv"
    assert carets[shown.index("\\x1b") : shown.index("v") + 1] == "^^^^^"


def test_wide_characters_take_two_columns() -> None:
    """Carets line up where a terminal shows a character in two columns."""
    assert _frame("名前: x", 1, 5, 6)[-1] == "  |       ^"


def test_gutter_is_as_wide_as_the_number() -> None:
    """Bars line up for numbers of any length."""
    lines = _frame("\n" * 99 + "k", 100, 1, 2)
    assert lines == ["   --> f.yaml:100:1", "    |", "100 | k", "    | ^"]


def test_without_the_file_the_place_remains() -> None:
    """A file that is gone, or has become shorter, is no reason to fail."""
    place = Location("gone.yaml", 3, 1, 3, 2)
    assert frame(place, None, paint=str) == [" --> gone.yaml:3:1"]
    assert frame(place, ["one"], paint=str) == [" --> gone.yaml:3:1"]
