"""What rulequant has to say about a rule file: one `Diagnostic` per problem, each with a stable code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from rulequant.errors import RulequantError

__all__ = ["Diagnostic", "DiagnosticsError", "Location", "Severity", "closest", "did_you_mean", "has_errors"]


class Severity(str, Enum):
    """How bad a problem is: an error makes a command exit 1, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


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
class Diagnostic:
    """One problem: what is wrong, where, with which value, what is allowed, and what to do."""

    code: str
    message: str
    location: Location | None = None
    severity: Severity = Severity.ERROR
    value: str | None = None
    allowed: tuple[str, ...] = ()
    remedy: str | None = None

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


def has_errors(diagnostics: Iterable[Diagnostic]) -> bool:
    """Whether any of the diagnostics is an error."""
    return any(each.severity is Severity.ERROR for each in diagnostics)


def closest(value: str, candidates: Iterable[str], *, count: int = 3) -> list[str]:
    """The candidates most like the value, best first (difflib's ratio, case ignored)."""
    by_folded: dict[str, str] = {}
    for candidate in candidates:
        by_folded.setdefault(candidate.casefold(), candidate)
    found = difflib.get_close_matches(value.casefold(), list(by_folded), n=count, cutoff=0.6)
    return [by_folded[each] for each in found]


def did_you_mean(value: str, candidates: Iterable[str]) -> str | None:
    """A remedy that names the candidates most like the value, or None where nothing is close."""
    found = closest(value, candidates)
    return f"did you mean {' or '.join(f'`{each}`' for each in found)}?" if found else None
