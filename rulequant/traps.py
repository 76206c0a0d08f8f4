"""Globs without quotes: to YAML `*.mlp` is an alias, `[0-9]` a list, `{a,b}` a mapping and `!x` a tag."""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from rulequant.diagnostics import Diagnostic, Edit
from rulequant.scalars import quote
from rulequant.sourcetext import SourceText, shorten

__all__ = ["UNQUOTED_PATTERN", "Trap", "find_trap", "pattern_end"]

UNQUOTED_PATTERN = "RQ005"

_OPENERS = {"]": "[", "}": "{"}
_MEANINGS = {
    "*": "starts an alias in YAML",
    "&": "starts an anchor in YAML",
    "!": "starts a tag in YAML",
    "[": "starts a list in YAML",
    "{": "starts a mapping in YAML",
    "?": "marks a key in YAML",
    "|": "starts a block of text in YAML",
    ">": "starts a block of text in YAML",
    "%": "is reserved in YAML",
    "@": "is reserved in YAML",
    "`": "is reserved in YAML",
}
_SIGNS = frozenset("*&!|>%@`?")
_PROPERTY_CONTEXTS = (
    "while scanning an a",  # an alias, an anchor
    "while scanning a tag",
    "while parsing a tag",
    "while scanning a block scalar",
)
# What may stand between the last event and an error, where a bracket does not open a collection.
_BRACKET_OR_OPAQUE = re.compile(r""""(?:\\.|[^"\\])*"|'[^']*'|(?<!\S)#[^\r\n]*|[\[\]{}]""", re.DOTALL)


@dataclass
class Trap(Exception):  # noqa: N818  it stops one pass over the text, and is no error to its reader
    """A text within one line that was meant as a string and that YAML, without quotes, reads otherwise."""

    start: int
    end: int
    sign: str

    @property
    def placeholder(self) -> str:
        """What the parser reads in its place: a string of the same length, in quotes if they fit in."""
        length = self.end - self.start
        return f'"{"x" * (length - 2)}"' if length >= 2 else "x"

    def diagnostic(self, source: SourceText) -> Diagnostic:
        """The trap as a problem whose location is exactly what to put in quotes."""
        pattern, place = source.text[self.start : self.end], source.location(self.start, self.end)
        return Diagnostic(
            UNQUOTED_PATTERN,
            f"`{shorten(pattern)}` is not quoted, and `{self.sign}` {_MEANINGS[self.sign]}",
            place,
            value=shorten(pattern),
            remedy=f"quote the pattern: {shorten(quote(pattern))}",
            fix=None if _holds_quote(pattern) else Edit(place, quote(pattern)),
        )


def _holds_quote(pattern: str) -> bool:
    """Whether a quote is perhaps not missing but in the wrong place, as in `*"*.mlp"`."""
    return '"' in pattern or pattern.endswith("'")


def pattern_end(source: SourceText, start: int, *, in_flow: bool) -> int:
    """Where the text at an offset would end, were it a plain scalar that may hold balanced brackets."""
    text, end, depth = source.text, source.line_end(start), 0
    for at in range(start, end):
        char = text[at]
        if char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
            if in_flow and depth < 0:
                end = at
                break
        elif (char == "," and in_flow and depth <= 0) or _ends_scalar(text, at, end):
            end = at
            break
    return start + len(text[start:end].rstrip())


def _ends_scalar(text: str, at: int, end: int) -> bool:
    """Whether a `: ` or a ` #` stands here."""
    if text[at] == ":":
        return at + 1 == end or text[at + 1] in " \t"
    return text[at] == "#" and at > 0 and text[at - 1] in " \t"


def find_trap(error: yaml.MarkedYAMLError, source: SourceText, *, seen: int, flow: int) -> Trap | None:
    """The unquoted pattern behind a syntax error, if that is what it is.

    `seen` is the offset up to which events have come, `flow` the number of flow collections open there.
    """
    found = _scanner_trap(error, source) or _bracket_trap(error, source)
    if found is None:
        return None
    start, sign = found
    in_flow = flow + _unclosed(source.text, seen, start) > 0
    end = pattern_end(source, start, in_flow=in_flow)
    return Trap(start, end, sign) if end > start else None


def _scanner_trap(error: yaml.MarkedYAMLError, source: SourceText) -> tuple[int, str] | None:
    """The start and the sign of a text that begins with an indicator."""
    context = error.context or ""
    mark = error.context_mark if context.startswith(_PROPERTY_CONTEXTS) else error.problem_mark
    if mark is None or (error.problem_mark and error.problem_mark.line != mark.line):
        return None  # on a later line: the text of a block, not its `|`
    at = source.offset(mark)
    sign = source.text[at : at + 1]
    if sign == "" or sign not in _SIGNS:
        return None
    if sign == "%" and context != "while scanning for the next token":
        return None  # a line that starts with `%` is a directive
    if sign == "?" and not _is_key_mark(error, source.text[at + 1 : at + 2]):
        return None
    return _glued(source, at) or (at, sign)


def _is_key_mark(error: yaml.MarkedYAMLError, after: str) -> bool:
    """Whether the error is that a `?` marks a key: in `a: ?`, and in `{a: ?.mlp}`."""
    is_glued = after not in ("", " ", "\t", "\r", "\n")
    return "mapping keys are not allowed" in (error.problem or "") or ("flow" in (error.context or "") and is_glued)


def _bracket_trap(error: yaml.MarkedYAMLError, source: SourceText) -> tuple[int, str] | None:
    """The start and the sign of a text with brackets: `[0-9].x`, `{q,k}_proj`, `a.{q,k}` in a flow list."""
    if error.problem_mark is None:
        return None
    at = source.offset(error.problem_mark)
    after = source.text[at : at + 1]
    if after == "" or after in " \t\r\n:,]}":
        return None
    found = _glued(source, at)
    if found is None and after in "[{" and "flow" in (error.context or ""):
        start = _word_start(source.text, at)
        is_whole = source.text[:start].rstrip()[-1:] in ("[", "{", ",", ":")
        return (start, after) if start < at and is_whole else None
    return found


def _glued(source: SourceText, at: int) -> tuple[int, str] | None:
    """The start of the text with brackets that ends right before an offset, and the first of its brackets."""
    start, sign = at, ""
    while (opener := _opener(source, start)) is not None:
        sign = source.text[opener]
        start = _word_start(source.text, opener)
    return (start, sign) if sign else None


def _opener(source: SourceText, at: int) -> int | None:
    """The opener, on the same line, of the bracket that closes right before an offset."""
    text = source.text
    if at == 0 or text[at - 1] not in _OPENERS:
        return None
    closer, depth = text[at - 1], 0
    for start in range(at - 1, source.line_start(at - 1) - 1, -1):
        if text[start] == closer:
            depth += 1
        elif text[start] == _OPENERS[closer]:
            depth -= 1
            if depth == 0:
                return start
    return None


def _word_start(text: str, at: int) -> int:
    """The start of the plain text that ends right before an offset; the offset itself where there is none."""
    start = at
    while start > 0 and text[start - 1] not in " \t\r\n,[]{}\"'":
        start -= 1
    return at if start > 0 and text[start - 1] in "\"'" else start


def _unclosed(text: str, start: int, end: int) -> int:
    """How many brackets open between two offsets and do not close there."""
    depth = 0
    for match in _BRACKET_OR_OPAQUE.finditer(text, start, end):
        if match[0] in "[{":
            depth += 1
        elif match[0] in "]}":
            depth = max(0, depth - 1)
    return depth
