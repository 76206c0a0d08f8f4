"""Diagnostics as SARIF 2.1.0, for code scanning: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rulequant.bundled import PREFIX
from rulequant.codes import CODES, Code
from rulequant.diagnostics import Diagnostic, Location

__all__ = ["SCHEMA", "as_sarif", "sarif_log"]

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
ROOT = "ROOT"
"""The base of relative addresses: the folder that the command ran in, which a checkout gives a place of its own."""


def as_sarif(diagnostics: Sequence[Diagnostic]) -> str:
    """The log as text."""
    return json.dumps(sarif_log(diagnostics), indent=2)


def sarif_log(diagnostics: Sequence[Diagnostic]) -> dict[str, Any]:
    """The log as data: one run, one result for each diagnostic, the codes in use as its rules."""
    from rulequant import __version__

    used = sorted({each.code for each in diagnostics})
    driver = {
        "name": "rulequant",
        "version": __version__,
        "rules": [_rule(CODES[code]) for code in used],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {ROOT: {"description": {"text": "The folder that rulequant ran in."}}},
        "results": [_result(each, used.index(each.code)) for each in diagnostics],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(code: Code) -> dict[str, Any]:
    return {
        "id": code.code,
        "shortDescription": {"text": code.title},
        "fullDescription": {"text": f"{code.what} {code.why}"},
        "help": {"text": _help(code, fence=False), "markdown": _help(code, fence=True)},
        "defaultConfiguration": {"level": code.severity.value},
    }


def _help(code: Code, *, fence: bool) -> str:
    parts = [code.what, code.why]
    for word, example in (("Wrong", code.wrong), ("Right", code.right)):
        if example:
            parts.append(f"{word}:\n\n```yaml\n{example}\n```" if fence else f"{word}:\n\n{example}")
    return "\n\n".join(parts)


def _result(diagnostic: Diagnostic, index: int) -> dict[str, Any]:
    text = f"{diagnostic.message}; {diagnostic.remedy}" if diagnostic.remedy else diagnostic.message
    result: dict[str, Any] = {
        "ruleId": diagnostic.code,
        "ruleIndex": index,
        "level": diagnostic.severity.value,
        "message": {"text": text},
    }
    if diagnostic.location:
        result["locations"] = [{"physicalLocation": _place(diagnostic.location)}]
    return result


def _place(location: Location) -> dict[str, Any]:
    return {
        "artifactLocation": _artifact(location.file),
        "region": {
            "startLine": location.line,
            "startColumn": location.column,
            "endLine": location.end_line,
            "endColumn": location.end_column,
        },
    }


def _artifact(file: str) -> dict[str, str]:
    """A relative address where the file is below the current folder; code scanning shows no other."""
    if file.startswith(PREFIX):
        return {"uri": f"{PREFIX}{quote(file.removeprefix(PREFIX))}"}
    path = Path(file)
    if path.is_absolute():
        try:
            path = path.relative_to(Path.cwd())
        except ValueError:
            return {"uri": path.as_uri()}
    return {"uri": quote(path.as_posix(), errors="replace"), "uriBaseId": ROOT}
