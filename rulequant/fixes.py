"""Making the edits that diagnostics offer: spliced into the text, so that comments, quotes, order and line ends stay.

An edit is kept only if it mends more than it brings to light, and what it wrote has no error. The text never ends up
with more errors than it had.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import itertools
import os
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rulequant import source
from rulequant.bundled import bundled_path
from rulequant.diagnostics import Diagnostic, Severity
from rulequant.errors import UsageError
from rulequant.loader import Loader
from rulequant.source import MAX_BYTES, UNQUOTED_PATTERN, DataPath
from rulequant.sourcetext import SourceText, Span
from rulequant.splice import BYTE_ORDER_MARK, Change, apart, apply_fixes, change_of, span_of, spliced, unified_diff

__all__ = ["Fixed", "apply_fixes", "fix_file", "fix_text", "unified_diff"]

_MAX_CHECKS = 50
"""So often is one text checked: at most so many rounds, fewer where edits must be told apart."""
_PATTERN_CODES = frozenset({"RQ201", "RQ202", "RQ203"})
"""What is wrong with a pattern, and so confirms that it is one."""
_READING = "RQ0"
"""What the codes of errors begin with that hide those of keys and values."""
_WRONG_TYPE = "RQ104"
_AFTER_KEY = re.compile(r"\s*:\s*")


@dataclass(frozen=True, slots=True)
class Fixed:
    """A text before and after its fixes, and the problems that these mended, each at its place when it was mended."""

    before: str
    after: str
    applied: tuple[Diagnostic, ...] = ()


def fix_text(text: str, *, file: str) -> Fixed:
    """Make all fixes of a rule file's text, and those of what then comes to light, until there are none.

    `file` is the name in messages. What the text extends is not read: no edit of this one mends it.
    """
    mark = BYTE_ORDER_MARK if text.startswith(BYTE_ORDER_MARK) else ""
    fixer = _Fixer(file)
    best = state = fixer.check(text.removeprefix(mark))
    applied: list[Diagnostic] = []
    made = 0
    while offered := _offers(state):
        state, kept = fixer.improve(state, apart(offered))
        if not kept:
            break
        applied += [each for change in kept for each in offered[change]]
        if len(state.errors) <= len(best.errors):
            best, made = state, len(applied)
    return Fixed(text, mark + best.source.text, tuple(applied[:made]))


def fix_file(path: Path | str, *, file: str | None = None, write: bool = True) -> Fixed:
    """Make all fixes of a file, and write it, whole or not at all; through a link, the file that it leads to.

    What cannot be read, and a bundled file, is left as it is: to say why is the business of validation.

    Raises:
        UsageError: the file has fixes and cannot be written.
    """
    path, name = Path(path), str(path) if file is None else file
    text = _read(path)
    fixed = Fixed("", "") if text is None else fix_text(text, file=name)
    if write and fixed.applied:
        try:
            _replace(path.resolve(), fixed.after)
        except OSError as error:
            remedy = "check the file, its folder and their permissions"
            raise UsageError(f"cannot write {name}: {error.strerror}", remedy=remedy) from error
    return fixed


@dataclass(frozen=True, slots=True)
class _State:
    """A text and the errors that it has by itself, whatever it extends."""

    source: SourceText
    errors: tuple[Diagnostic, ...]

    def unfixable(self) -> Iterator[tuple[Span, str]]:
        """The places and codes of errors without a fix."""
        for each in self.errors:
            if each.location and not each.fix:
                yield span_of(each.location, self.source), each.code


@dataclass
class _Fixer:
    """Checks versions of one text, so often and no more."""

    file: str
    left: int = _MAX_CHECKS

    def check(self, text: str) -> _State:
        """The text with its errors."""
        self.left -= 1
        loader = Loader()
        # Reading takes off one byte order mark: a second one is an error, in its words too.
        loader.load_text(BYTE_ORDER_MARK + text, file=self.file)
        errors = tuple(each for each in loader.diagnostics if each.severity is Severity.ERROR)
        return _State(SourceText.of(self.file, text), errors)

    def improve(self, state: _State, changes: Sequence[Change]) -> tuple[_State, list[Change]]:
        """Make those changes, in the order of the text, that are for the better; all at once, or else by halves."""
        if not changes or self.left <= 0:
            return state, []
        better = self.check(spliced(state.source.text, changes))
        if _is_better(state, better, changes):
            return better, list(changes)
        if len(changes) == 1:
            return state, []
        middle = len(changes) // 2
        # The later half first: offsets before it stay what they are.
        state, later = self.improve(state, changes[middle:])
        state, earlier = self.improve(state, changes[:middle])
        return state, earlier + later


def _offers(state: _State) -> dict[Change, list[Diagnostic]]:
    """The changes that the errors offer, each with the errors that it mends, where nothing speaks against it."""
    wrong = _by_place(state.unfixable())
    unquotable = _unquotable(state)
    offered: dict[Change, list[Diagnostic]] = {}
    for each in state.errors:
        if each.fix is None:
            continue
        change = change_of(each, state.source)
        if wrong.get(change.place, set()) <= _PATTERN_CODES and change.place not in unquotable:
            offered.setdefault(change, []).append(each)
    return offered


def _unquotable(state: _State) -> set[Span]:
    """The places of texts that need quotes as patterns do, and may have been meant as something else.

    Where a name is wanted, `models: {llama,opt}` was meant as a list, and `scheme: *nf4` as an alias: quotes would hide
    it. In a file that cannot be read to its end nobody knows what a text is for, and only the dots of module names
    speak for a pattern.
    """
    unquoted = [each.location for each in state.errors if each.code == UNQUOTED_PATTERN and each.location]
    if not unquoted:
        return set()
    document, _ = source.parse(BYTE_ORDER_MARK + state.source.text, file=state.source.file)
    if document is None:
        spans = [span_of(each, state.source) for each in unquoted]
        return {each for each in spans if "." not in state.source.text[slice(*each)]}
    return {span_of(document.value(each), state.source) for each in _names(document.data)}


def _names(data: Any) -> Iterator[DataPath]:
    """Where names stand, of model types, rule files and schemes."""
    content: Mapping[str, Any] = data if isinstance(data, dict) else {}
    yield from ((key,) for key in ("models", "extends", "scheme") if key in content)
    for key in ("models", "extends"):
        yield from ((key, index) for index, _ in enumerate(_items(content.get(key))))
    for index, rule in enumerate(_items(content.get("rules"))):
        if isinstance(rule, dict) and "scheme" in rule:
            yield "rules", index, "scheme"


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_better(before: _State, after: _State, changes: Sequence[Change]) -> bool:
    """Whether there are no more errors than before, or only more that can be mended.

    And no new one that hides others, or that is at what was written.
    """
    is_worse = len(after.errors) > len(before.errors) and _left(after) > _left(before)
    if is_worse or _hiding(after) - _hiding(before):
        return False
    old, new = _Wrong.of(before), _Wrong.of(after)
    starts = [each.span[0] for each in changes]
    shifts = [0, *itertools.accumulate(each.growth for each in changes)]

    def moved(offset: int) -> int:
        return offset + shifts[bisect.bisect_left(starts, offset)]

    return all(new.at((moved(each.place[0]), moved(each.place[1]))) <= old.at(each.place) for each in changes)


def _left(state: _State) -> int:
    return sum(each.fix is None for each in state.errors)


def _hiding(state: _State) -> Counter[str]:
    return Counter(each.code for each in state.errors if each.code.startswith(_READING))


@dataclass(frozen=True, slots=True)
class _Wrong:
    """What is wrong without a fix, by its place."""

    text: str
    places: dict[Span, set[str]]
    misfits: frozenset[int]
    """Where values start that are of the wrong kind."""

    @classmethod
    def of(cls, state: _State) -> _Wrong:
        """The errors of a text, sorted for look-up."""
        misfits = frozenset(span[0] for span, code in state.unfixable() if code == _WRONG_TYPE)
        return cls(state.source.text, _by_place(state.unfixable()), misfits)

    def at(self, place: Span) -> set[str]:
        """What is wrong with a value, or with a key, whose own value must also be of a kind that it takes."""
        value = _AFTER_KEY.match(self.text, place[1])
        misfit = {_WRONG_TYPE} if value and value.end() in self.misfits else set()
        return self.places.get(place, set()) | misfit


def _by_place(errors: Iterable[tuple[Span, str]]) -> dict[Span, set[str]]:
    places: dict[Span, set[str]] = {}
    for span, code in errors:
        places.setdefault(span, set()).add(code)
    return places


def _read(path: Path) -> str | None:
    """The text of a file; None where it is no rule file that may be written."""
    if not os.path.isfile(path) or _is_bundled(path):  # noqa: PTH113  pathlib raises for a name that cannot be one
        return None
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        return content.decode() if len(content) <= MAX_BYTES else None
    except (OSError, UnicodeDecodeError):
        return None


def _is_bundled(path: Path) -> bool:
    real = path.resolve()
    bundled = bundled_path(real.stem)
    return bundled is not None and bundled.resolve() == real


def _replace(path: Path, text: str) -> None:
    """Write a file anew, by way of one beside it, for the owner and with the mode that it has."""
    before = path.stat()
    if not os.access(path, os.W_OK):  # to replace it takes no more than a writable folder
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(OSError, AttributeError):
            os.chown(temporary, before.st_uid, before.st_gid)
        Path(temporary).chmod(stat.S_IMODE(before.st_mode))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
