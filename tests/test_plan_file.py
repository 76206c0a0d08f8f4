"""Saved plans: read back they decide the same, and what was edited or is no plan is refused."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from inventories import llama, ruleset

from rulequant import schemes
from rulequant.errors import UsageError
from rulequant.plan import Plan
from rulequant.plan_file import load_plan
from rulequant.planner import make_plan

TEXT = """
skip_modules: [{modules: "**.o_proj", reason: too sensitive}, model.norm]
rules: [{modules: "**.down_proj", layers: 0, scheme: int8, reason: int8 there}]
"""


def plan() -> Plan:
    """A plan with both schemes, several reasons and a warning."""
    return make_plan(ruleset(TEXT), llama(tied=True))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test saves its plan."""
    return tmp_path / "plan.json"


def saved(path: Path, data: Any) -> Path:
    """The file, with these data."""
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")
    return path


def test_round_trip(path: Path) -> None:
    """A saved plan decides the same, and says the same."""
    made = plan()
    assert [each.code for each in made.diagnostics] == ["RQ403", "RQ451"]
    again = load_plan(saved(path, made.to_dict()))
    assert again.to_dict() == made.to_dict()
    assert again.sha256 == made.sha256
    assert again.schemes == made.schemes
    decisions = [(each.name, each.scheme, each.reason, each.detail, each.bytes_after) for each in again.decisions]
    assert decisions == [
        (each.name, each.scheme, each.reason, each.detail, each.bytes_after) for each in made.decisions
    ]
    assert str(again.by_name["model.layers.0.mlp.down_proj"].rule) == "rules.yaml:2:1"
    assert again.diagnostics == made.diagnostics


def test_round_trip_of_nothing(path: Path) -> None:
    """A plan of an empty model is a plan."""
    made = make_plan(ruleset("name: x"), llama(layers=0))
    assert load_plan(saved(path, made.to_dict())).sha256 == made.sha256


def test_later_keys_are_let_pass(path: Path) -> None:
    """Keys that a later version adds within the same format are no reason to refuse a plan."""
    data = plan().to_dict()
    data["made_by"] = "rulequant 9"
    data["modules"][0]["color"] = "red"
    assert load_plan(saved(path, data)).sha256 == plan().sha256


def edited(*keys: Any, value: Any) -> dict[str, Any]:
    """A saved plan with another value in one place."""
    data = plan().to_dict()
    place: Any = data
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return data


def without(*keys: Any) -> dict[str, Any]:
    """A saved plan that lacks one key."""
    data = plan().to_dict()
    place: Any = data
    for key in keys[:-1]:
        place = place[key]
    del place[keys[-1]]
    return data


def twice() -> dict[str, Any]:
    """A saved plan in which one module comes twice."""
    data = plan().to_dict()
    data["modules"].append(data["modules"][0])
    return data


def with_error() -> dict[str, Any]:
    """The plan of rules that do not fit."""
    return make_plan(ruleset("skip_modules: [gone, vision]"), llama()).to_dict()


NAMES = [each.name for each in plan().decisions]
QUERY, OUT, NORM = (
    NAMES.index(f"model.layers.0.{each}") for each in ("self_attn.q_proj", "self_attn.o_proj", "input_layernorm")
)

REFUSED: dict[str, tuple[Any, str]] = {
    "a-list": ([], "is not a plan: it has no `format_version`"),
    "an-inventory": ({"rulequant_inventory": 1}, "is not a plan: it has no `format_version`"),
    "another-version": (edited("format_version", value=2), "plan format 2; this rulequant reads 1"),
    "version-text": (edited("format_version", value="1"), "plan format '1'; this rulequant reads 1"),
    "no-modules": (without("modules"), "is not a valid plan: `modules`: field required"),
    "modules-mapping": (edited("modules", value={}), "`modules`: input should be a valid list"),
    "bytes-text": (
        edited("modules", 3, "bytes_after", value="12"),
        "is not a valid plan: `modules.3.bytes_after`: input should be a valid integer",
    ),
    "bytes-negative": (
        edited("modules", 3, "bytes_after", value=-1),
        "`modules.3.bytes_after`: input should be greater",
    ),
    "two-mistakes": (edited("modules", 3, value={"name": "x"}), r"`modules.3.type`: field required \(and 8 more\)"),
    "unknown-reason": (edited("modules", NORM, "reason", value="because"), r"reason`: input should be 'type', 'skip'"),
    "unknown-scheme": (
        edited("modules", QUERY, "scheme", value="int4"),
        "q_proj' has the scheme 'int4', which the plan does not",
    ),
    "quantize-flipped": (
        edited("modules", QUERY, "quantize", value=False),
        "q_proj' contradicts itself: a scheme if it is",
    ),
    "scheme-removed": (edited("modules", QUERY, "scheme", value=None), "q_proj' contradicts itself"),
    "reason-removed": (edited("modules", OUT, "reason", value=None), "o_proj' contradicts itself"),
    "reason-added": (edited("modules", QUERY, "reason", value="skip"), "q_proj' contradicts itself"),
    "twice": (twice(), "is not a valid plan: a module comes twice"),
    "module-removed": (without("modules", QUERY), "it was edited: `summary.modules` is 21, its modules come to 20"),
    "bytes-changed": (edited("modules", QUERY, "bytes_after", value=1), "it was edited: `summary.bytes_after` is"),
    "summary-changed": (
        edited("summary", "quantized", value=3),
        "it was edited: `summary.quantized` is 3, its modules",
    ),
    "scheme-exchanged": (edited("modules", QUERY, "scheme", value="int8"), "it was edited, or another version made it"),
    "setting-changed": (edited("schemes", "nf4", "blocksize", value=128), "it was edited, or another version made it"),
    "name-changed": (edited("modules", QUERY, "name", value="other"), "it was edited, or another version made it"),
    "setting-unknown": (
        edited("schemes", "nf4", "block", value=1),
        "the scheme 'nf4': `block`: extra inputs are not permitted",
    ),
    "setting-invalid": (
        edited("schemes", "nf4", "blocksize", value="64"),
        "the scheme 'nf4': `blocksize`: input should be 32",
    ),
    "method-unknown": (
        edited("schemes", "nf4", "method", value="gptq"),
        "the scheme 'nf4': no installed method is called 'gptq'",
    ),
    "method-missing": (without("schemes", "nf4", "method"), "the scheme 'nf4': no installed method is called None"),
    "coverage": (edited("summary", "layer_coverage", value=float("nan")), "`summary.layer_coverage`: input should be"),
    "rule-text": (
        edited("modules", QUERY, "rule", value="rules.yaml:1"),
        "`modules.1.rule`: input should be a valid dictionary\n",
    ),
    "findings": (with_error(), r"it was saved with findings that stand in its way: rules\.yaml:1:16: RQ401"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(path: Path, name: str) -> None:
    """A file that is no plan, or not the one that was made, is one error that names the file and what is wrong."""
    data, message = REFUSED[name]
    with pytest.raises(UsageError, match=message) as caught:
        load_plan(saved(path, data))
    assert caught.value.message.startswith(str(path))
    assert caught.value.remedy == "make it anew with `rulequant plan MODEL RULES -o FILE`"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is not a plan: it is no JSON: Expecting value", id="empty"),
        pytest.param(b'{"format_version": 1', "is not a plan: it is no JSON", id="truncated"),
        pytest.param(b"[" * 100_000, "is not a plan: it is no JSON", id="deep"),
        pytest.param(b"9" * 10_000, "is not a plan: it is no JSON", id="digits"),
        pytest.param(b"\xff\xfe", "is not a plan: it is no JSON: 'utf-8' codec", id="binary"),
    ],
)
def test_not_json(path: Path, content: bytes, message: str) -> None:
    """Bytes that are no JSON text are refused too."""
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_plan(path)


def test_unreadable(path: Path, tmp_path: Path) -> None:
    """A missing file and a folder cannot be read."""
    with pytest.raises(UsageError, match=r"cannot read the plan .*plan\.json: No such file or directory"):
        load_plan(path)
    with pytest.raises(UsageError, match=r"cannot read the plan .*: Is a directory"):
        load_plan(tmp_path)


def test_a_method_of_a_package_that_is_gone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan with a method that can no longer be loaded says which."""
    data = edited("schemes", "nf4", "method", value="broken")
    entries = metadata.EntryPoints([metadata.EntryPoint("broken", "math:pi", schemes.ENTRY_POINTS)])
    monkeypatch.setattr(metadata, "entry_points", lambda **_: entries)
    with pytest.raises(UsageError, match="the method `broken`"):
        load_plan(saved(path, data))
