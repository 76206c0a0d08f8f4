"""What commands write, and where: data to stdout, messages to stderr, in color only where it helps."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rulequant.diagnostics import Diagnostic, DiagnosticsError
from rulequant.errors import UsageError
from rulequant.escaping import printable
from rulequant.report.text import Style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rulequant.errors import RulequantError

__all__ = [
    "data",
    "discard",
    "error",
    "flush",
    "is_terminal",
    "message",
    "note",
    "prepare",
    "problems",
    "refusal",
    "style_of",
    "uses_color",
]


def prepare() -> None:
    """Make both streams take whatever is written to them.

    What an encoding lacks comes out as an escape: an old terminal is no reason for a traceback. Streams that the caller
    closed (`>&-`) swallow.
    """
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def flush() -> None:
    """Write out what stdout still holds.

    Raises:
        UsageError: it cannot be written; a pipe that nobody reads any more is a BrokenPipeError.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)
        raise UsageError(f"cannot write to stdout: {error.strerror}") from error


def discard(stream: TextIO) -> None:
    """Point a stream that cannot be written elsewhere, so that the interpreter does not complain on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_terminal(stream: TextIO) -> bool:
    """Whether a person watches the stream."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def uses_color(stream: TextIO) -> bool:
    """https://no-color.org and https://force-color.org: set and not empty; else on a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or is_terminal(stream)


def style_of(stream: TextIO) -> Style:
    """How to paint what goes to a stream."""
    return Style(uses_color(stream))


def data(text: str) -> None:
    """Write to stdout, with a line break at the end."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as problem:
        discard(sys.stdout)
        raise UsageError(f"cannot write to stdout: {problem.strerror}") from problem


def message(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def note(text: str) -> None:
    """Write a line to stderr, faint."""
    message(style_of(sys.stderr).dim(text))


def error(text: str, *, remedy: str | None = None) -> None:
    """Write an error and what to do about it to stderr."""
    style = style_of(sys.stderr)
    message(f"{style.red('error')}: {printable(text, keep=chr(10))}")
    if remedy:
        message(f"  {printable(remedy, keep=chr(10))}")


def problems(diagnostics: Sequence[Diagnostic], *, form: str = "full") -> None:
    """Write diagnostics as messages to stderr."""
    if not diagnostics:
        return
    from rulequant.report.findings import findings
    from rulequant.report.overview import in_order

    message(findings(in_order(diagnostics), form, style=style_of(sys.stderr)))


def refusal(refused: RulequantError) -> None:
    """Write an error that a user can do something about."""
    if isinstance(refused, DiagnosticsError):
        problems(refused.diagnostics)
    else:
        error(refused.message, remedy=refused.remedy)
