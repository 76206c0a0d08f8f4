"""What rulequant has to say about a rule file: one `Diagnostic` per problem, each with a stable code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from rulequant.errors import RulequantError

__all__ = [
    "Diagnostic",
    "DiagnosticsError",
    "Edit",
    "Location",
    "Severity",
    "closest",
    "did_you_mean",
    "has_errors",
    "suggestion",
]

_MARGIN = 0.08
"""What a candidate may be less like a value than the best one is, and still be named beside it."""


class Severity(str, Enum):
    """How bad a problem is: an error makes a command exit 1; a note is about what only some users do."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A span of a file. Lines and columns count from 1; the end column is the one after the last character."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def to_dict(self) -> dict[str, Any]:
        """The location as JSON-ready data."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "end_line": self.end_line,
            "end_column": self.end_column,
        }


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of the text that mends a problem: what stands at `location` becomes `text`."""

    location: Location
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem: what is wrong, where, with which value, what is allowed, and what to do."""

    code: str
    message: str
    location: Location | None = None
    severity: Severity = Severity.ERROR
    value: str | None = None
    allowed: tuple[str, ...] = ()
    remedy: str | None = None
    fix: Edit | None = None
    """The one right answer, where there is one; `validate --fix` makes it."""

    def to_dict(self) -> dict[str, Any]:
        """The diagnostic as JSON-ready data."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "message": self.message,
            "location": self.location.to_dict() if self.location else None,
            "value": self.value,
            "allowed": list(self.allowed),
            "remedy": self.remedy,
        }

    def concise(self) -> str:
        """The diagnostic on one line, as `file:line:column: RQ101 error: message. Remedy.`"""
        where = f"{self.location}: " if self.location else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{where}{self.code} {self.severity.value}: {self.message}{remedy}"


class DiagnosticsError(RulequantError):
    """One or more diagnostics with severity error stand in the way."""

    exit_code: ClassVar[int] = 1

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(each.concise() for each in self.diagnostics))

    def __reduce__(self) -> tuple[type[DiagnosticsError], tuple[tuple[Diagnostic, ...]]]:
        """Made again from the diagnostics when it comes from another process."""
        return type(self), (self.diagnostics,)


def has_errors(diagnostics: Iterable[Diagnostic]) -> bool:
    """Whether any of the diagnostics is an error."""
    return any(each.severity is Severity.ERROR for each in diagnostics)


def closest(value: str, candidates: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> list[str]:
    """The candidates most like the value, best first (difflib's ratio, case ignored).

    Only the best and those nearly as good; what differs by case alone is better than all else.
    """
    import difflib  # a run without problems does without it

    folded = value.casefold()
    by_folded: dict[str, list[str]] = {}
    for candidate in candidates:
        by_folded.setdefault(candidate.casefold(), []).append(candidate)
    same = by_folded.get(folded)
    near = [folded] if same else difflib.get_close_matches(folded, by_folded, n=count, cutoff=cutoff)
    ratios = {each: difflib.SequenceMatcher(None, each, folded).ratio() for each in near}
    good = [each for each in near if ratios[each] > max(ratios.values()) - _MARGIN]
    # Of those that differ by case, such as Conv1D and Conv1d, first the one with more of the value's letters.
    found = [sorted(by_folded[each], key=lambda word: -_alike(word, value)) for each in good]
    return [word for words in found for word in words][:count]


def _alike(first: str, second: str) -> int:
    return len(set(first) & set(second))


def did_you_mean(value: str, candidates: Iterable[str]) -> str | None:
    """A remedy that names the candidates most like the value, or None where nothing is close."""
    return suggestion(closest(value, candidates))


def suggestion(names: Sequence[str]) -> str | None:
    """A remedy that names what a value may have been meant to be, best first; None where there is nothing."""
    quoted = [f"`{each}`" for each in names]
    named = " or ".join(filter(None, (", ".join(quoted[:-1]), *quoted[-1:])))
    return f"did you mean {named}?" if named else None
