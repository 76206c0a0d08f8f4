"""Edits spliced into a text, so that all else in it stays: comments, quotes, order, line ends, a byte order mark."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rulequant.diagnostics import Diagnostic, Location
from rulequant.sourcetext import SourceText, Span

__all__ = ["BYTE_ORDER_MARK", "Change", "apart", "apply_fixes", "change_of", "span_of", "spliced", "unified_diff"]

BYTE_ORDER_MARK = "\ufeff"

_LINE = re.compile(r"[^\n]*\n|[^\n]+")


@dataclass(frozen=True, slots=True)
class Change:
    """An edit and the key or value that it is a part of, in offsets."""

    span: Span
    text: str
    place: Span

    @property
    def growth(self) -> int:
        """By how many characters the text gets longer."""
        return len(self.text) - (self.span[1] - self.span[0])


def apply_fixes(text: str, diagnostics: Iterable[Diagnostic]) -> tuple[str, list[Diagnostic]]:
    """The text with the edits of its diagnostics made, unchecked, and the diagnostics whose edits were.

    Of two edits that overlap, the one that starts first is made, and the other waits for diagnostics of the new text.
    The same edit may come from several diagnostics.
    """
    mark = BYTE_ORDER_MARK if text.startswith(BYTE_ORDER_MARK) else ""
    origin = SourceText.of("", text.removeprefix(mark))
    offered = [(change_of(each, origin), each) for each in diagnostics if each.fix]
    chosen = apart(change for change, _ in offered)
    made = {(each.span, each.text) for each in chosen}
    return mark + spliced(origin.text, chosen), [each for change, each in offered if (change.span, change.text) in made]


def unified_diff(path: Path | str, before: str, after: str) -> str:
    """The change of a file as `patch` and `git apply` take it; the empty text where there is none."""
    name = Path(path).as_posix()
    old, new = (name, name) if Path(path).is_absolute() else (f"a/{name}", f"b/{name}")
    lines = difflib.unified_diff(_LINE.findall(before), _LINE.findall(after), old, new)
    return "".join(each if each.endswith("\n") else f"{each}\n\\ No newline at end of file\n" for each in lines)


def change_of(diagnostic: Diagnostic, origin: SourceText) -> Change:
    """The edit of a diagnostic in offsets.

    Raises:
        ValueError: it offers none.
    """
    edit, about = diagnostic.fix, diagnostic.location
    if edit is None:
        raise ValueError(f"{diagnostic.code} offers no fix")
    span = span_of(edit.location, origin)
    place = span_of(about, origin) if about else span
    is_part = place[0] <= span[0] and span[1] <= place[1]
    return Change(span, edit.text, place if is_part else span)


def span_of(location: Location, origin: SourceText) -> Span:
    """A location in offsets, which never leave the text."""
    return _offset(location.line, location.column, origin), _offset(location.end_line, location.end_column, origin)


def _offset(line: int, column: int, origin: SourceText) -> int:
    start = origin.starts[line - 1] if line <= len(origin.starts) else len(origin.text)
    return min(start + column - 1, len(origin.text))


def apart(changes: Iterable[Change]) -> list[Change]:
    """The changes in the order of the text, without those that overlap an earlier one; the first offered wins a tie."""
    kept: list[Change] = []
    for each in sorted(dict.fromkeys(changes), key=lambda change: change.span[0]):
        if not kept or (each.span[0] > kept[-1].span[0] and each.span[0] >= kept[-1].span[1]):
            kept.append(each)
    return kept


def spliced(text: str, changes: Sequence[Change]) -> str:
    """The text with changes that lie apart, in its order."""
    parts, at = [], 0
    for each in changes:
        parts += [text[at : each.span[0]], each.text]
        at = each.span[1]
    return "".join([*parts, text[at:]])
