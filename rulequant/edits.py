"""The edits that mend a complaint of the models, where there is one right answer; None where there may be several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rulequant.diagnostics import Edit, Location
from rulequant.scalars import NumberTooLongError, Scalar, quote, resolve
from rulequant.source import DataPath, Document
from rulequant.sourcetext import SourceText

__all__ = ["convert_value", "misspelt", "rename_key", "respell_value", "to_braces"]

_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on"), "true"),
    **dict.fromkeys(("false", "no", "off"), "false"),
}
_NUMBERS = frozenset({"a number", "an integer"})
# No leading zeros: in braces they would ask for names with as many digits.
_NUMBER_CLASS = re.compile(r"\[(0|[1-9]\d*)-(0|[1-9]\d*)\]", re.ASCII)
_SEPARATORS = str.maketrans("", "", "_- ")
_SHORTEST = 5
"""Of shorter words too many are one letter apart: nf4 and fp4."""
_MANY_KEYS = 50
"""More keys than any mapping of a rule file has; to compare all with each other takes the square of their number."""


def misspelt(word: str, allowed: Iterable[str]) -> str | None:
    """The one allowed word that differs by separators, case, or a single typing error past the first letter.

    A typing error is a letter too many, too few or another one, or two that changed places. A digit is no error but a
    different thing: `bnb_8bit` is not `bnb_4bit`.
    """
    written = _plain(word)
    spelt = {each: _plain(each) for each in allowed}
    same = [each for each, plain in spelt.items() if plain == written]
    near = same or [each for each, plain in spelt.items() if _one_typo_apart(written, plain)]
    return near[0] if len(near) == 1 else None


def _plain(word: str) -> str:
    return word.casefold().translate(_SEPARATORS)


def _one_typo_apart(written: str, meant: str) -> bool:
    if len(meant) < _SHORTEST or written[:1] != meant[:1] or abs(len(written) - len(meant)) > 1:
        return False
    start = _alike(written, meant)
    end = _alike(written[start:][::-1], meant[start:][::-1])
    written, meant = written[start : len(written) - end], meant[start : len(meant) - end]
    if any(each.isdigit() for each in written + meant):
        return False
    swapped = len(written) == 2 and written == meant[::-1]
    return swapped or max(len(written), len(meant)) == 1


def _alike(first: str, second: str) -> int:
    """How many characters two words have in common at their start."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def rename_key(document: Document, path: DataPath, allowed: Sequence[str], siblings: Sequence[str]) -> Edit | None:
    """The key that a path ends in as the allowed one that it misspells, unless that or another misspelling is there."""
    key = str(path[-1])
    meant = misspelt(key, allowed)
    if meant is None or meant in siblings or len(siblings) > _MANY_KEYS:
        return None
    if sum(misspelt(each, allowed) == meant for each in siblings) > 1:
        return None
    place = document.key(path)
    return _rewritten(_text_at(document, place), place, key, meant)


def respell_value(document: Document, path: DataPath, given: Any, allowed: Sequence[str]) -> Edit | None:
    """The value as the allowed one that it misspells; a number loses the quotes around it."""
    meant = misspelt(given, allowed) if isinstance(given, str) else None
    if meant is None:
        return None
    place, raw = document.value(path), document.raw(path)
    if isinstance(_resolved(meant), str):
        return _rewritten(raw, place, given, meant)
    return Edit(place, meant) if _spells(raw, given) else None


def convert_value(document: Document, path: DataPath, given: Any, wanted: str) -> Edit | None:
    """The value as the kind that is wanted: a number put in quotes or out of them, `yes` as `true`."""
    place, raw = document.value(path), document.raw(path)
    if wanted == "a string" and isinstance(given, bool | int | float):
        return Edit(place, quote(raw)) if raw and _resolved(raw) == given else None
    if not (isinstance(given, str) and _spells(raw, given)):
        return None
    if wanted == "true or false" and given.casefold() in _BOOLEANS:
        return Edit(place, _BOOLEANS[given.casefold()])
    if wanted in _NUMBERS and type(_resolved(given)) in (int, float):
        return Edit(place, given)
    return None


def to_braces(document: Document, path: DataPath, pattern: Any, offset: int) -> Edit | None:
    """`{0..12}` for the `[0-12]` at an offset of a pattern; in quotes, which `{` needs, where it comes first."""
    found = _NUMBER_CLASS.match(pattern, offset) if isinstance(pattern, str) else None
    place, raw = document.value(path), document.raw(path)
    if found is None or not _spells(raw, pattern):
        return None
    braces = f"{{{found[1]}..{found[2]}}}"
    if raw == pattern and offset == 0:
        return Edit(place, quote(braces + pattern[found.end() :]))
    start = place.column + offset + (raw != pattern)
    return Edit(replace(place, column=start, end_column=start + len(found[0])), braces)


def _resolved(text: str) -> Scalar:
    try:
        return resolve(text)
    except NumberTooLongError:
        return None


def _spells(raw: str | None, value: str) -> bool:
    """Whether the source text is the value itself, or the value in quotes without escapes."""
    return raw is not None and (raw == value or (raw[:1] in {'"', "'"} and raw[1:-1] == value))


def _rewritten(raw: str | None, place: Location, old: str, new: str) -> Edit | None:
    """`new` for `old`, between its quotes where it has some."""
    if not _spells(raw, old):
        return None
    margin = int(raw != old)
    return Edit(replace(place, column=place.column + margin, end_column=place.end_column - margin), new)


def _text_at(document: Document, place: Location) -> str:
    starts = SourceText.of(document.file, document.text).starts
    return document.text[starts[place.line - 1] + place.column - 1 : starts[place.end_line - 1] + place.end_column - 1]
