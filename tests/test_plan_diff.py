"""What a change of the rules changes."""

from __future__ import annotations

import pytest
from inventories import llama, ruleset

from rulequant.plan import Plan
from rulequant.plan_diff import compare
from rulequant.planner import make_plan

SCHEMES = "schemes: {nf4: {method: bnb_4bit}, int8: {method: bnb_int8}}\n"


def _plan(text: str) -> Plan:
    return make_plan(ruleset(text), llama())


@pytest.mark.parametrize(
    ("a", "b", "changed"),
    [
        pytest.param("scheme: nf4", "scheme: nf4", 0, id="the same"),
        pytest.param("scheme: nf4", "scheme: int8", 14, id="another scheme"),
        pytest.param("scheme: nf4", 'skip_modules: ["**.o_proj"]', 2, id="a skip"),
        pytest.param('skip_modules: ["**.o_proj"]', 'skip_modules: ["**.o_pro[j]"]', 0, id="the same in other words"),
        pytest.param("scheme: nf4", "quantizable_types: [Conv1D]", 14, id="another class"),
        pytest.param('skip_modules: ["**.o_proj"]', "quantizable_types: [Conv1D]", 14, id="another reason"),
    ],
)  # fmt: skip
def test_changes(a: str, b: str, changed: int) -> None:
    """The modules that get another scheme, or stay for another reason."""
    texts = [SCHEMES + (each if "scheme:" in each else f"scheme: nf4\n{each}") for each in (a, b)]
    found = compare(*(_plan(each) for each in texts))
    assert len([each for each in found.changes if each.before.type == "Linear" and each.name != "lm_head"]) == changed


def test_a_scheme_counts_by_its_settings() -> None:
    """A new name for the same settings changes nothing; other settings under the name do."""
    a = _plan("schemes: {x: {method: bnb_4bit}}\nscheme: x")
    b = _plan("schemes: {y: {method: bnb_4bit}}\nscheme: y")
    c = _plan("schemes: {x: {method: bnb_4bit, blocksize: 128}}\nscheme: x")
    assert compare(a, b).changes == ()
    assert len(compare(a, c).changes) == 14
    assert compare(a, c).schemes == ("x",)


def test_size() -> None:
    """The change of size is that of the plans, and has a sign."""
    small, large = _plan(SCHEMES + "scheme: nf4"), _plan(SCHEMES + "scheme: int8")
    found = compare(small, large)
    assert found.bytes_change == large.summary["bytes_after"] - small.summary["bytes_after"]
    assert found.bytes_change > 0
    assert compare(large, small).bytes_change == -found.bytes_change


def test_data() -> None:
    """The difference as data names both sides."""
    data = compare(_plan("models: [llama]"), _plan('skip_modules: ["**.layers.0.mlp.up_proj"]')).to_dict()
    assert data["format_version"] == 1
    (change,) = data["changes"]
    assert change["name"] == "model.layers.0.mlp.up_proj"
    assert change["a"]["scheme"] == "nf4"
    assert change["b"]["reason"] == "skip"
    assert change["b"]["rule"] == {"file": "rules.yaml", "line": 1}
