"""The JSON Schema: generated, valid under both drafts, and of one mind with the models."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema
import pytest
import yaml

from rulequant.bundled import bundled_names, bundled_path
from rulequant.jsonschema import SCHEMA_FILE, SCHEMA_ID, schema_data, schema_text
from rulequant.loader import check_rules

DRAFTS = [jsonschema.Draft202012Validator, jsonschema.Draft7Validator]
draft = pytest.mark.parametrize("draft", DRAFTS, ids=["2020-12", "7"])

WRONG = {
    "no version": {},
    "version 2": {"version": 2},
    "version as text": {"version": "1"},
    "unknown key": {"version": 1, "skips": []},
    "unknown key of a rule": {"version": 1, "rules": [{"modules": "a", "scheme": "nf4", "when": 1}]},
    "rule without scheme": {"version": 1, "rules": [{"modules": "a"}]},
    "rule as text": {"version": 1, "rules": ["a"]},
    "skip without modules": {"version": 1, "skip_modules": [{"types": "Linear"}]},
    "no pattern": {"version": 1, "skip_modules": [{"modules": []}]},
    "empty pattern": {"version": 1, "skip_modules": [""]},
    "step 0 is for pydantic alone, but words are not layers": {
        "version": 1,
        "skip_modules": [{"modules": "a", "layers": "first"}],
    },
    "regular expression for a type": {"version": 1, "quantizable_types": ["Linear|Conv1D"]},
    "unknown quant_type": {"version": 1, "schemes": {"a": {"method": "bnb_4bit", "quant_type": "nf5"}}},
    "unknown key of a scheme": {"version": 1, "schemes": {"a": {"method": "bnb_int8", "blocksize": 64}}},
    "scheme without method": {"version": 1, "schemes": {"a": {"quant_type": "nf4"}}},
    "share above 1": {"version": 1, "expect": {"min_quantized": 95}},
}


def test_file_is_generated() -> None:
    """`schemas/` holds what the models say now; write it anew with `rulequant schema`."""
    assert resources.files("rulequant.schemas").joinpath(SCHEMA_FILE).read_text(encoding="utf-8") == schema_text()


def test_head_names_it() -> None:
    """The schema starts with its dialect and its own name."""
    assert list(schema_data())[:2] == ["$schema", "$id"]
    assert schema_data()["$id"] == SCHEMA_ID


@draft
def test_is_a_valid_schema(draft: Any) -> None:
    """The schema is one under the draft's own metaschema."""
    draft.check_schema(schema_data())


@draft
@pytest.mark.parametrize("name", bundled_names())
def test_accepts_bundled_file(draft: Any, name: str) -> None:
    """Every bundled file fits."""
    path = bundled_path(name)
    assert path is not None
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [each.message for each in draft(schema_data()).iter_errors(data)] == []


@draft
@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG.keys())
def test_refuses_what_the_models_refuse(draft: Any, data: dict[str, Any]) -> None:
    """What does not fit the schema does not fit the models either."""
    assert not draft(schema_data()).is_valid(data)
    assert check_rules(data)[0] is None


@draft
def test_accepts_short_forms(draft: Any) -> None:
    """A list of one may be written as its item, and a skip as its pattern."""
    data = {
        "version": 1,
        "extends": "causal_lm",
        "models": "llama",
        "quantizable_types": "Linear",
        "skip_modules": ["**.gate", {"modules": "a", "except": "a.b", "types": "Linear", "layers": 0}],
        "rules": [{"modules": "**", "layers": ["-2:", 3], "scheme": "int8"}],
    }
    assert draft(schema_data()).is_valid(data)
    assert check_rules(json.loads(json.dumps(data)))[1] == []
