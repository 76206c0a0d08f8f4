"""How many diagnostics of which kind, and in which order: what a clean run needs too, and so imports little."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rulequant.diagnostics import Diagnostic, Severity
from rulequant.report.text import count

__all__ = ["FORMATS", "exit_code", "in_order", "summary", "tally"]

UNREADABLE = "RQ001"
FORMATS = ("full", "concise", "json", "github", "sarif")


def in_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Each diagnostic once, by file, line, column and code; those without a place come last."""
    return sorted(dict.fromkeys(diagnostics), key=_order)


def _order(each: Diagnostic) -> tuple[Any, ...]:
    where = each.location
    place = (False, where.file, where.line, where.column) if where else (True, "", 0, 0)
    return (*place, each.code, each.message)


def tally(diagnostics: Iterable[Diagnostic]) -> tuple[int, int]:
    """The number of errors and of warnings; notes do not count."""
    severities = [each.severity for each in diagnostics]
    return severities.count(Severity.ERROR), severities.count(Severity.WARNING)


def summary(files: int, diagnostics: Sequence[Diagnostic]) -> str:
    """`3 files checked, 2 errors, 1 warning`"""
    errors, warnings = tally(diagnostics)
    parts = [f"{count(files, 'file')} checked"]
    parts += [count(errors, "error")] if errors else []
    parts += [count(warnings, "warning")] if warnings else []
    return ", ".join(parts) if errors or warnings else f"{parts[0]}, no problems"


def exit_code(diagnostics: Iterable[Diagnostic]) -> int:
    """2 where a file cannot be read, 1 where there is an error, else 0."""
    errors = [each for each in diagnostics if each.severity is Severity.ERROR]
    return 2 if any(each.code == UNREADABLE for each in errors) else int(bool(errors))
