"""Diagnostics as a SARIF log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rulequant.codes import CODES
from rulequant.diagnostics import Diagnostic, Location, Severity
from rulequant.report.sarif import as_sarif, sarif_log

ERROR = Diagnostic("RQ101", "unknown key", Location("rules/a b.yaml", 2, 1, 2, 12), remedy="remove it")
WARNING = Diagnostic("RQ402", "decides nothing", Location("rules.yaml", 1, 1, 1, 2), Severity.WARNING)
NOWHERE = Diagnostic("RQ501", "nothing to do")

PUBLISHED = json.loads((Path(__file__).parent / "assets" / "sarif-2.1.0-rtm.5.json").read_text(encoding="utf-8"))
# What section 3 of the standard asks of the properties that the log uses, stricter where it is stricter than the text.
_TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
_POSITIVE = {"type": "integer", "minimum": 1}
_URI = {"type": "string", "pattern": r"^([a-z]+:)?[A-Za-z0-9%/._~!$&'()*+,;=:@-]*$"}
LOG: dict[str, Any] = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string"},
        "version": {"const": "2.1.0"},
        "runs": {"type": "array", "items": {"$ref": "#/$defs/run"}},
    },
    "$defs": {
        "run": {
            "type": "object",
            "required": ["tool", "results"],
            "additionalProperties": False,
            "properties": {
                "tool": {
                    "type": "object",
                    "required": ["driver"],
                    "additionalProperties": False,
                    "properties": {"driver": {"$ref": "#/$defs/driver"}},
                },
                "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                "originalUriBaseIds": {"type": "object"},
                "results": {"type": "array", "items": {"$ref": "#/$defs/result"}},
            },
        },
        "driver": {
            "type": "object",
            "required": ["name", "rules"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string"},
                "version": {"type": "string"},
                "rules": {"type": "array", "uniqueItems": True, "items": {"$ref": "#/$defs/rule"}},
            },
        },
        "rule": {
            "type": "object",
            "required": ["id"],
            "additionalProperties": False,
            "properties": {
                "id": {"type": "string"},
                "shortDescription": _TEXT,
                "fullDescription": _TEXT,
                "help": _TEXT,
                "defaultConfiguration": {
                    "type": "object",
                    "properties": {"level": {"enum": ["none", "note", "warning", "error"]}},
                },
            },
        },
        "result": {
            "type": "object",
            "required": ["message"],
            "additionalProperties": False,
            "properties": {
                "ruleId": {"type": "string"},
                "ruleIndex": {"type": "integer", "minimum": 0},
                "level": {"enum": ["none", "note", "warning", "error"]},
                "message": _TEXT,
                "locations": {"type": "array", "items": {"$ref": "#/$defs/location"}},
            },
        },
        "location": {
            "type": "object",
            "required": ["physicalLocation"],
            "additionalProperties": False,
            "properties": {
                "physicalLocation": {
                    "type": "object",
                    "required": ["artifactLocation", "region"],
                    "additionalProperties": False,
                    "properties": {
                        "artifactLocation": {
                            "type": "object",
                            "required": ["uri"],
                            "additionalProperties": False,
                            "properties": {"uri": _URI, "uriBaseId": {"type": "string"}},
                        },
                        "region": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": dict.fromkeys(
                                ("startLine", "startColumn", "endLine", "endColumn"), _POSITIVE
                            ),
                        },
                    },
                }
            },
        },
    },
}


@pytest.mark.parametrize(
    "diagnostics",
    [
        pytest.param([], id="nothing"),
        pytest.param([WARNING, ERROR, NOWHERE, ERROR], id="some"),
        pytest.param([Diagnostic(code, "text") for code in CODES], id="every code"),
    ],
)
def test_log_is_valid(diagnostics: list[Diagnostic]) -> None:
    """The log has the form that the standard asks for."""
    log = json.loads(as_sarif(diagnostics))
    jsonschema.Draft202012Validator(LOG).validate(log)
    jsonschema.Draft4Validator(PUBLISHED).validate(log)


def test_results_point_at_their_rules() -> None:
    """Each result's index is that of its code among the rules."""
    run = sarif_log([WARNING, ERROR, NOWHERE])["runs"][0]
    rules = [each["id"] for each in run["tool"]["driver"]["rules"]]
    assert rules == ["RQ101", "RQ402", "RQ501"]
    assert [rules[each["ruleIndex"]] for each in run["results"]] == [each["ruleId"] for each in run["results"]]
    assert [each["level"] for each in run["results"]] == ["warning", "error", "error"]


def _artifact(file: str) -> dict[str, str]:
    log = sarif_log([Diagnostic("RQ101", "x", Location(file, 1, 1, 1, 2))])
    found: dict[str, str] = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
    return found


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files below the working folder are relative to it, others absolute, and bundled ones keep their name."""
    monkeypatch.chdir(tmp_path)
    assert _artifact("rules/a b.yaml") == {"uri": "rules/a%20b.yaml", "uriBaseId": "ROOT"}
    assert _artifact(str(tmp_path / "x.yaml")) == {"uri": "x.yaml", "uriBaseId": "ROOT"}
    assert _artifact(str(tmp_path.parent / "x.yaml")) == {"uri": (tmp_path.parent / "x.yaml").as_uri()}
    assert _artifact("bundled:llama") == {"uri": "bundled:llama"}
    assert _artifact("<stdin>") == {"uri": "%3Cstdin%3E", "uriBaseId": "ROOT"}


def test_a_result_without_a_place_has_no_location() -> None:
    """What is about no file points at none."""
    assert "locations" not in sarif_log([NOWHERE])["runs"][0]["results"][0]
