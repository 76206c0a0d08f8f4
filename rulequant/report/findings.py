"""Diagnostics in the formats of the command line: full, concise, json and github; sarif has its own file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rulequant.bundled import PREFIX, bundled_path
from rulequant.diagnostics import Diagnostic, Severity
from rulequant.escaping import printable
from rulequant.report.frame import frame
from rulequant.report.overview import tally
from rulequant.report.text import PLAIN, Style

__all__ = ["Sources", "as_json", "concise", "findings", "full", "github"]

JSON_VERSION = 1
_GITHUB_COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


class Sources:
    """The texts that locations point into: what was read from elsewhere is given, files are read once each."""

    def __init__(self, texts: Mapping[str, str] | None = None) -> None:
        self._lines: dict[str, list[str] | None] = {name: _split(text) for name, text in (texts or {}).items()}

    def lines(self, file: str) -> list[str] | None:
        """The lines of a file as messages call it; None where it cannot be read."""
        if file not in self._lines:
            self._lines[file] = _read(file)
        return self._lines[file]


def _read(file: str) -> list[str] | None:
    path = bundled_path(file.removeprefix(PREFIX)) if file.startswith(PREFIX) else Path(file)
    try:
        if path is None or not path.is_file():
            return None
        return _split(path.read_bytes().decode("utf-8", "replace").removeprefix("\ufeff"))
    except (OSError, ValueError):
        return None


def _split(text: str) -> list[str]:
    """Lines as YAML counts them: U+2028 and form feeds do not end one."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def findings(
    diagnostics: Sequence[Diagnostic],
    form: str,
    *,
    sources: Sources | None = None,
    style: Style = PLAIN,
    files: Sequence[str] | None = None,
) -> str:
    """The diagnostics in one of FORMATS, without a final line break; the empty text where there is nothing to say."""
    if form == "json":
        return as_json(diagnostics, files=files)
    if form == "sarif":
        from rulequant.report.sarif import as_sarif

        return as_sarif(diagnostics)
    if form == "github":
        return "\n".join(github(each) for each in diagnostics)
    if form == "concise":
        return "\n".join(concise(each, style) for each in diagnostics)
    found = sources or Sources()
    return "\n\n".join(full(each, found, style) for each in diagnostics)


def concise(each: Diagnostic, style: Style = PLAIN) -> str:
    """One line: `file:line:column: RQ101 error: message; remedy`."""
    where = f"{style.bold(printable(str(each.location)))}: " if each.location else ""
    remedy = f"; {printable(each.remedy)}" if each.remedy else ""
    return f"{where}{_severity(each, style, f'{each.code} {each.severity.value}')}: {printable(each.message)}{remedy}"


def full(each: Diagnostic, sources: Sources, style: Style = PLAIN) -> str:
    """Several lines: what, where with the source line and carets, what is allowed, and the remedy."""

    def paint(text: str) -> str:
        return _severity(each, style, text)

    out = [f"{paint(f'{each.severity.value}[{each.code}]')}{style.bold(f': {printable(each.message)}')}"]
    indent = " "
    if each.location:
        lines = frame(each.location, sources.lines(each.location.file), paint=paint, style=style)
        indent = " " * (len(lines[0]) - len(lines[0].lstrip()) + 1)
        out += lines
    everything = ", ".join(each.allowed)
    is_list = each.remedy == f"allowed: {everything}"
    if each.allowed and (is_list or not (each.remedy or "").endswith(everything)):
        out.append(f"{indent}{style.cyan('=')} {style.bold('allowed')}: {_listed(each.allowed)}")
    if each.remedy and not is_list:
        out.append(f"{indent}{style.cyan('=')} {style.bold('help')}: {printable(each.remedy)}")
    return "\n".join(out)


def _listed(values: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(printable(each) for each in values[:limit])
    return f"{shown}, and {len(values) - limit} more" if len(values) > limit else shown


def _severity(each: Diagnostic, style: Style, text: str) -> str:
    paint = {Severity.ERROR: style.red, Severity.WARNING: style.yellow, Severity.NOTE: style.cyan}
    return paint[each.severity](text)


def as_json(diagnostics: Sequence[Diagnostic], *, files: Sequence[str] | None = None) -> str:
    """The diagnostics as one JSON object with a `format_version`."""
    errors, warnings = tally(diagnostics)
    document: dict[str, Any] = {"format_version": JSON_VERSION}
    if files is not None:
        document["files"] = list(files)
    document["diagnostics"] = [each.to_dict() for each in diagnostics]
    document["summary"] = {"errors": errors, "warnings": warnings}
    return json.dumps(document, indent=2)


def github(each: Diagnostic) -> str:
    """A workflow command that GitHub shows beside the line.

    https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands#setting-an-error-message
    """
    properties: dict[str, Any] = {}
    if each.location:
        properties["file"] = _posix(each.location.file)
        properties["line"] = each.location.line
        properties["endLine"] = each.location.end_line
        if each.location.line == each.location.end_line:  # GitHub ignores columns of longer spans
            properties["col"] = each.location.column
            properties["endColumn"] = each.location.end_column
    properties["title"] = each.code
    listed = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items())
    text = f"{each.message}; {each.remedy}" if each.remedy else each.message
    return f"::{_GITHUB_COMMANDS[each.severity]} {listed}::{_data(text)}"


def _posix(file: str) -> str:
    return Path(file).as_posix() if "\\" in file else file


def _data(text: str) -> str:
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return printable(escaped)


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
