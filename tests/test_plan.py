"""The plan: what the decisions come to, the stable JSON, and a hash of what a plan makes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rulequant.diagnostics import Diagnostic, Location, Severity
from rulequant.plan import Decision, Plan, TypeMass
from rulequant.schemes import Bnb4bit, BnbInt8

RULE = Location("rules.yaml", 7, 3, 7, 20)
DECISIONS = (
    Decision("embed", "Embedding", 1000, 2000, 2000, reason="type", detail="Embedding is not one of it"),
    Decision("fc1", "Linear", 4096, 8192, 2368, scheme="nf4", rule=RULE),
    Decision("fc2", "Linear", 2048, 4096, 2177, scheme="int8", detail="better so"),
    Decision("norm", "Norm", 64, 128, 128, reason="type"),
    Decision("gate", "Linear", 128, 256, 256, reason="skip", detail="routers stay", rule=RULE),
    Decision("head", "Linear", 1000, 2000, 2000, reason="output_embedding"),
    Decision("stats", "BatchStats", 0, 32, 32, reason="type"),
)
PLAN = Plan(
    model="tiny",
    rules="rules.yaml",
    rules_sha256="abc",
    decisions=DECISIONS,
    schemes={"nf4": Bnb4bit(), "int8": BnbInt8()},
    diagnostics=(Diagnostic("RQ408", "heavy", RULE, Severity.WARNING, value="x"),),
    model_type="llama",
    architecture="Tiny",
    layer_coverage=0.97,
)


def test_summary() -> None:
    """Counts, bytes, bits per weight, and the shares that are quantized."""
    assert PLAN.summary == {
        "modules": 7,
        "quantized": 2,
        "parameters": 8336,
        "parameters_quantized": 6144,
        "coverage": 6144 / 8336,
        "layer_coverage": 0.97,
        "bytes_before": 16704,
        "bytes_after": 8961,
        "bits_per_weight": 8961 * 8 / 8336,
    }


def test_summary_of_nothing() -> None:
    """A model without modules has no shares to divide."""
    summary = replace(PLAN, decisions=(), layer_coverage=0.0).summary
    assert set(summary.values()) == {0}


def test_unquantized_by_type() -> None:
    """What stays, by class and reason, heaviest first; equal masses by name, so that the order is stable."""
    assert PLAN.unquantized_by_type == (
        TypeMass("Embedding", "type", 1, 1000, 2000),
        TypeMass("Linear", "output_embedding", 1, 1000, 2000),
        TypeMass("Linear", "skip", 1, 128, 256),
        TypeMass("Norm", "type", 1, 64, 128),
        TypeMass("BatchStats", "type", 1, 0, 32),
    )


def test_decisions_by_name() -> None:
    """A decision is found by the module's name, and says whether it quantizes."""
    assert PLAN.by_name["fc1"].quantize
    assert not PLAN.by_name["head"].quantize
    assert [each.name for each in PLAN.quantized] == ["fc1", "fc2"]


def test_only_errors_stand_in_the_way() -> None:
    """Warnings do not keep a plan from being applied."""
    assert PLAN.ok
    assert not replace(PLAN, diagnostics=(*PLAN.diagnostics, Diagnostic("RQ401", "no match"))).ok


def test_to_dict_has_the_documented_keys() -> None:
    """The plan JSON has every key of format version 1."""
    data = PLAN.to_dict()
    documented = {
        "format_version", "model", "rules", "rules_sha256", "modules", "unquantized_by_type", "summary", "diagnostics",
    }  # fmt: skip
    assert documented <= set(data)
    assert data["format_version"] == 1
    assert set(data["modules"][0]) == {
        "name", "type", "parameters", "quantize", "scheme", "reason", "detail", "rule", "bytes_before", "bytes_after",
    }  # fmt: skip
    assert {"modules", "quantized", "parameters", "parameters_quantized", "bytes_before", "bytes_after"} < set(
        data["summary"]
    )


def test_to_dict() -> None:
    """Each decision is an entry in the order of the model, and the heaviest unquantized types follow."""
    data = PLAN.to_dict()
    assert [each["name"] for each in data["modules"]] == [each.name for each in DECISIONS]
    assert data["modules"][1] == {
        "name": "fc1",
        "type": "Linear",
        "parameters": 4096,
        "quantize": True,
        "scheme": "nf4",
        "reason": None,
        "detail": None,
        "rule": {"file": "rules.yaml", "line": 7},
        "bytes_before": 8192,
        "bytes_after": 2368,
    }
    assert data["unquantized_by_type"][0] == {
        "type": "Embedding",
        "reason": "type",
        "modules": 1,
        "parameters": 1000,
        "bytes": 2000,
    }
    assert data["diagnostics"][0]["severity"] == "warning"
    assert data["schemes"]["int8"] == {"method": "bnb_int8", "threshold": 6.0}
    assert (data["model_type"], data["architecture"], data["plan_sha256"]) == ("llama", "Tiny", PLAN.sha256)


def test_to_dict_is_json() -> None:
    """The data survive a round trip through JSON text."""
    assert json.loads(json.dumps(PLAN.to_dict())) == PLAN.to_dict()


def changed(index: int, **changes: object) -> Plan:
    """The plan with other facts in one decision."""
    decisions = list(DECISIONS)
    decisions[index] = replace(decisions[index], **changes)  # type: ignore[arg-type]
    return replace(PLAN, decisions=tuple(decisions))


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(changed(1, scheme="int8"), id="scheme"),
        pytest.param(changed(1, scheme=None, reason="skip"), id="not-quantized"),
        pytest.param(changed(1, name="fc3"), id="name"),
        pytest.param(changed(1, bytes_before=4), id="bytes"),
        pytest.param(replace(PLAN, decisions=DECISIONS[1:]), id="one-less"),
        pytest.param(replace(PLAN, schemes={"nf4": Bnb4bit(blocksize=128), "int8": BnbInt8()}), id="setting"),
    ],
)
def test_hash_follows_what_is_made(plan: Plan) -> None:
    """Other modules, schemes or settings make another checkpoint, and another hash."""
    assert plan.sha256 != PLAN.sha256


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(changed(4, detail="another reason"), id="words"),
        pytest.param(changed(1, rule=None), id="line"),
        pytest.param(replace(PLAN, model="elsewhere", rules="other.yaml"), id="names"),
        pytest.param(replace(PLAN, diagnostics=()), id="diagnostics"),
    ],
)
def test_hash_ignores_words(plan: Plan) -> None:
    """Paths, reasons in words and warnings do not change what is made."""
    assert plan.sha256 == PLAN.sha256
