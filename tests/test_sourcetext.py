from __future__ import annotations

from dataclasses import dataclass

import pytest

from rulequant.sourcetext import SourceText, shorten


@dataclass
class Mark:
    line: int
    column: int


def test_places_count_from_one_in_code_points() -> None:
    """A character outside the basic plane is one column."""
    source = SourceText.of("f", "ab\n\U0001f600x")
    where = source.location(4, 5)
    assert (where.line, where.column, where.end_line, where.end_column) == (2, 2, 2, 3)


def test_a_place_without_an_end_is_empty() -> None:
    """One offset gives a location of no width."""
    where = SourceText.of("f", "ab").location(1)
    assert (where.column, where.end_column) == (2, 2)


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_every_line_break_of_yaml_ends_a_line(line_break: str) -> None:
    """LF, CR LF and CR, each once."""
    source = SourceText.of("f", f"a{line_break}b{line_break}")
    start = 1 + len(line_break)
    assert source.line(start) == 2
    assert source.line_start(start) == start
    assert source.line_end(start) == start + 1
    assert source.offset(Mark(1, 0)) == start


@pytest.mark.parametrize("mark", [Mark(0, 99), Mark(5, 0)], ids=["column", "line"])
def test_a_mark_past_the_end_is_the_end(mark: Mark) -> None:
    """The C loader puts the end of a text without a last line break on a line of its own."""
    assert SourceText.of("f", "abc").offset(mark) == 3


def test_shorten_keeps_the_beginning() -> None:
    """A long text ends in an ellipsis within the limit."""
    assert shorten("abc", 3) == "abc"
    assert shorten("abcd", 3) == "ab…"
