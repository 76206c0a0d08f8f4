"""The JSON Schema of rule files, generated from the models that read them."""

from __future__ import annotations

import json
from typing import Any

from rulequant.rulefile import PIPELINE_KEYS, RuleFile

__all__ = ["SCHEMA_FILE", "SCHEMA_ID", "schema_data", "schema_text"]

SCHEMA_ID = "urn:rulequant:ruleset:v1"
SCHEMA_FILE = "ruleset.v1.schema.json"
"""The name of the schema in the package `rulequant.schemas`, where editors and checkers find it."""


def schema_data() -> dict[str, Any]:
    """The schema as data; it reads the same under JSON Schema 2020-12 and draft 7."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID}
    generated: dict[str, Any] = _untitled(RuleFile.model_json_schema(by_alias=True))
    return head | generated | _pipeline_keys(generated)


def _pipeline_keys(schema: dict[str, Any]) -> dict[str, Any]:
    """A file that names components has no rules of its own; what one key asks of others pydantic does not tell."""
    others = dict.fromkeys((key for key in schema["properties"] if key not in PIPELINE_KEYS), False)
    named = {"properties": {"components": {"minProperties": 1}}, "required": ["components"]}
    return {"if": named, "then": {"properties": others}}


def schema_text() -> str:
    """The schema as it stands in `schemas/ruleset.v1.schema.json`."""
    return json.dumps(schema_data(), indent=2, ensure_ascii=False) + "\n"


def _untitled(schema: Any) -> Any:
    """Without the titles that pydantic derives from the keys: an editor would show `Min Quantized` for a key."""
    if isinstance(schema, list):
        return [_untitled(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _untitled(each) for key, each in schema.items()}
    for each in found.get("properties", {}).values():
        each.pop("title", None)
    return found
