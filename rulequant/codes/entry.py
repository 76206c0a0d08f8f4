"""One diagnostic code in long form."""

from __future__ import annotations

from dataclasses import dataclass

from rulequant.diagnostics import Severity

__all__ = ["Code", "error", "note", "warning"]


@dataclass(frozen=True, slots=True)
class Code:
    """What a code means, why it matters, and an example; the texts are Markdown."""

    code: str
    title: str
    severity: Severity
    what: str
    why: str
    wrong: str | None = None
    """A rule file that gets the code, without `version: 1` where that does not matter."""
    right: str | None = None
    """The same, put right."""


def error(code: str, title: str, *, what: str, why: str, wrong: str | None = None, right: str | None = None) -> Code:
    """A code that makes a command exit 1."""
    return Code(code, title, Severity.ERROR, what, why, _trim(wrong), _trim(right))


def warning(code: str, title: str, *, what: str, why: str, wrong: str | None = None, right: str | None = None) -> Code:
    """A code that does not."""
    return Code(code, title, Severity.WARNING, what, why, _trim(wrong), _trim(right))


def note(code: str, title: str, *, what: str, why: str, wrong: str | None = None, right: str | None = None) -> Code:
    """A code that concerns only some users, and makes no command exit 1."""
    return Code(code, title, Severity.NOTE, what, why, _trim(wrong), _trim(right))


def _trim(example: str | None) -> str | None:
    return example.strip("\n") if example else None
