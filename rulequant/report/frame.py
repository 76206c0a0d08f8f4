"""The lines of a file that a diagnostic is about, with carets under the span."""

from __future__ import annotations

from collections.abc import Callable
from unicodedata import combining, east_asian_width

from rulequant.diagnostics import Location
from rulequant.escaping import printable
from rulequant.report.text import PLAIN, Style

__all__ = ["frame"]

MAX_WIDTH = 100
"""Columns of source text in a frame; a longer line is cut around the span."""
_TAB = "    "
_MARGIN = 10


def frame(
    location: Location, lines: list[str] | None, *, paint: Callable[[str], str], style: Style = PLAIN
) -> list[str]:
    """`--> file:line:column`, the line, and the carets; without the lines where the file cannot be read any more.

    A span of several lines shows the first and, where it is near, the last.
    """
    numbers = [each for each in _shown(location) if lines and 1 <= each <= len(lines)]
    gutter = len(str(numbers[-1])) if numbers else 1
    out = [f"{' ' * gutter}{style.cyan('-->')} {printable(str(location))}"]
    if not numbers or lines is None:
        return out
    bar = style.cyan("|")
    out.append(f"{' ' * gutter} {bar}")
    previous = numbers[0]
    for number in numbers:
        if number > previous + 1:
            out.append(style.cyan("..."))
        previous = number
        start, end = _span(location, number, lines[number - 1])
        text, carets = _cut(lines[number - 1], start, end)
        out.append(f"{style.cyan(str(number).rjust(gutter))} {bar} {text}".rstrip())
        out.append(f"{' ' * gutter} {bar} {_painted(carets, paint)}".rstrip())
    return out


def _shown(location: Location) -> list[int]:
    """The numbers of the lines to show: of a long span its first and its last."""
    first, last = location.line, location.end_line
    if location.end_column <= 1 and last > first:
        last -= 1
    return [first, last] if last > first else [first]


def _span(location: Location, number: int, line: str) -> tuple[int, int]:
    """Start and end offset of the span in one line; the first and last characters of the text where it goes on."""
    start = location.column - 1 if number == location.line else len(line) - len(line.lstrip())
    end = location.end_column - 1 if number == location.end_line else len(line.rstrip())
    start = min(max(start, 0), len(line))
    return start, max(end, start)


def _cut(line: str, start: int, end: int) -> tuple[str, str]:
    """The part of a line around a span, safe to print, and the line of carets below it."""
    low, high = 0, len(line)
    if len(line) > MAX_WIDTH:
        low = max(0, min(start - _MARGIN, len(line) - MAX_WIDTH))
        high = min(len(line), low + MAX_WIDTH)
    shown_end = min(end, high)
    before, span, after = (_safe(line[low:start]), _safe(line[start:shown_end]), _safe(line[shown_end:high]))
    head, tail = "…" if low else "", "…" if high < len(line) else ""
    carets = " " * _width(head + before) + "^" * max(1, _width(span))
    return f"{head}{before}{span}{after}{tail}", carets


def _safe(text: str) -> str:
    return printable(text.replace("\t", _TAB))


def _width(text: str) -> int:
    """Columns that a terminal takes for the text."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)


def _painted(carets: str, paint: Callable[[str], str]) -> str:
    stripped = carets.lstrip()
    return carets[: len(carets) - len(stripped)] + paint(stripped)
