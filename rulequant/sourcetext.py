"""The text of a file, and the places in it."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from typing import Protocol

from rulequant.diagnostics import Location

__all__ = ["Mark", "SourceText", "Span", "shorten"]

Span = tuple[int, int]

_LINE_BREAK = re.compile(r"\r\n?|\n")


class Mark(Protocol):
    """A place as both of PyYAML's loaders give it: line and column count from 0, in code points."""

    line: int
    column: int


@dataclass(frozen=True)
class SourceText:
    """The text of a file and where its lines start; offsets count code points from 0."""

    file: str
    text: str
    starts: list[int]

    @classmethod
    def of(cls, file: str, text: str) -> SourceText:
        """The text with its lines found."""
        return cls(file, text, [0, *(match.end() for match in _LINE_BREAK.finditer(text))])

    def offset(self, mark: Mark) -> int:
        """The offset of a mark, by its line and column: the C loader's index counts some CR LF once."""
        if mark.line >= len(self.starts):
            return len(self.text)
        return min(self.starts[mark.line] + mark.column, len(self.text))

    def location(self, start: int, end: int | None = None) -> Location:
        """The location from one offset to another, or of one place."""
        line, column = self._place(start)
        end_line, end_column = (line, column) if end is None else self._place(end)
        return Location(self.file, line, column, end_line, end_column)

    def line(self, offset: int) -> int:
        """The line of an offset, from 1."""
        return bisect.bisect_right(self.starts, offset)

    def line_start(self, offset: int) -> int:
        """The offset at which the line of an offset starts."""
        return self.starts[self.line(offset) - 1]

    def line_end(self, offset: int) -> int:
        """The offset of the line break, or of the end of the text."""
        match = _LINE_BREAK.search(self.text, offset)
        return match.start() if match else len(self.text)

    def _place(self, offset: int) -> tuple[int, int]:
        line = self.line(offset)
        return line, offset - self.starts[line - 1] + 1


def shorten(text: str, limit: int = 80) -> str:
    """The text, or its beginning where it is long: a message quotes what a person can read."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
