"""The JSON Schema and `validate` accept and refuse the same, but for what a schema cannot say."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from example_files import INVALID, MODEL, VALID, findings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from strategies import json_like, rule_files

from rulequant import source
from rulequant.diagnostics import Severity
from rulequant.jsonschema import schema_data
from rulequant.rulefile import RuleFile

SCHEMA = schema_data()
DRAFTS = {"2020-12": jsonschema.Draft202012Validator(SCHEMA), "7": jsonschema.Draft7Validator(SCHEMA)}
draft = pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)

# What no schema can say, with an example of it.
BEYOND = {
    "RQ001": "whether what it extends can be read",
    "RQ201": "whether a pattern's brackets, braces, dots and stars make sense together",
    "RQ202": "what `[0-12]` means",
    "RQ203": "whether a text is a regular expression",
    "RQ301": "whether a scheme is defined, here or in a parent",
    "RQ302": "whether what it extends exists",
    "RQ303": "whether files extend each other in a circle",
    "RQ316": "whether a slice is empty",
    "RQ322": "whether the rule file of a component exists",
    "RQ323": "whether the rule file of a component names components itself",
    "RQ324": "whether what it extends names components",
    "RQ326": "whether a parent has the skip that is taken back",
}
# The same for single examples of codes that the schema knows otherwise.
BEYOND_EXAMPLES = {
    "RQ101-in-a-parent": "the mistake is in another file",
    "RQ204-minutes": "a slice with the step 0",
}


@cache
def _cases() -> dict[str, tuple[Path, Any]]:
    """The examples that are YAML as rule files use it, with their data."""
    read = ((path, source.read(path)) for path in (*VALID, *INVALID, *MODEL) if path.exists())
    return {path.stem: (path, document.data) for path, (document, problems) in read if document and not problems}


@draft
@pytest.mark.parametrize("name", _cases())
def test_same_verdict(draft: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema refuses an example exactly if `validate` finds an error in it that a schema can see."""
    path, data = _cases()[name]
    monkeypatch.chdir(path.parent)
    errors = {each.code for each in findings(path) if each.severity is Severity.ERROR}
    visible = set() if name in BEYOND_EXAMPLES else errors - BEYOND.keys()
    assert draft.is_valid(data) == (not visible)


@draft
@pytest.mark.parametrize("excuse", [*BEYOND, *BEYOND_EXAMPLES])
def test_no_idle_exception(draft: Any, excuse: str) -> None:
    """Each exception has an example, which the schema accepts."""
    found = [data for name, (_, data) in _cases().items() if name == excuse or name.startswith(f"{excuse}-")]
    assert any(draft.is_valid(data) for data in found)


@st.composite
def _nearly_right(draw: st.DrawFn) -> dict[str, Any]:
    """A rule file's data with one part replaced by anything."""
    data = draw(rule_files())
    node: Any = data
    while True:
        parts = list(node if isinstance(node, dict) else range(len(node)))
        part = draw(st.sampled_from(parts)) if parts else "new"
        child = node[part] if parts else None
        if not (isinstance(child, dict | list) and child) or draw(st.booleans()):
            break
        node = child
    if isinstance(node, list):
        node[part if parts else slice(None)] = draw(json_like) if parts else [draw(json_like)]
    else:
        node[part] = draw(json_like)
    return data


@settings(deadline=None, derandomize=True, max_examples=100, suppress_health_check=list(HealthCheck))
@given(_nearly_right())
def test_same_verdict_on_any_data(data: dict[str, Any]) -> None:
    """Both accept and both refuse, but for patterns, and for numbers that JSON does not have or tell apart."""
    refused = _refused(data)
    for each in DRAFTS.values():
        assert each.is_valid(data) == (not refused), refused


def _refused(data: dict[str, Any]) -> list[str]:
    """pydantic's complaints that a schema can share."""
    try:
        RuleFile.model_validate(data)
    except ValidationError as error:
        return [f"{each['loc']}: {each['type']}" for each in error.errors() if not _is_beyond(each)]
    return []


def _is_beyond(error: Any) -> bool:
    """A pattern; 1.0 for the layer 1, or a layer of ten digits; and NaN and infinity, which JSON does not have."""
    given, kind = error["input"], error["type"]
    if kind == "layer_slice":
        return type(given) is int or (isinstance(given, float) and given.is_integer())
    return (kind == "glob" and given != "") or kind == "finite_number"
