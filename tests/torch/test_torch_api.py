"""`rulequant.torch`: plan and apply for any module, the forms that rules may have, and what is imported when."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import yaml
from small_models import RULES, close, rules_with, small, small_inputs
from torch import nn

import rulequant.torch
from rulequant.diagnostics import DiagnosticsError, Severity
from rulequant.errors import UsageError
from rulequant.loader import load_rules


def plain() -> nn.Module:
    """A module that transformers has never heard of."""
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32)).eval()


@pytest.mark.parametrize("form", ["mapping", "path", "text-path", "rule-set", "bundled"])
def test_rules_come_in_any_form(form: str, tmp_path: Path) -> None:
    """The data of a rule file, a path, a bundled name or a loaded rule set mean the same."""
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(RULES))
    forms: dict[str, Any] = {
        "mapping": RULES, "path": path, "text-path": str(path), "rule-set": load_rules(RULES), "bundled": "causal_lm",
    }  # fmt: skip
    plan = rulequant.torch.plan(plain(), forms[form])
    assert [each.name for each in plan.quantized] == ["0", "2"]


@pytest.mark.parametrize("function", [rulequant.torch.plan, rulequant.torch.apply], ids=["plan", "apply"])
def test_errors_in_the_rules_are_raised(function: Any) -> None:
    """A misspelt key is told at once, and the model is unchanged."""
    model = plain()
    with pytest.raises(DiagnosticsError, match="skip_module"):
        function(model, {**RULES, "skip_module": ["0"]})
    assert type(model[0]) is nn.Linear


def test_plan_reports_what_does_not_fit() -> None:
    """What the rules get wrong about a model is in the plan; only apply raises it."""
    rules = rules_with(skip_modules=["nope"])
    plan = rulequant.torch.plan(plain(), rules)
    assert not plan.ok
    assert [each.code for each in plan.diagnostics if each.severity is Severity.ERROR] == ["RQ401"]
    with pytest.raises(DiagnosticsError, match="RQ401"):
        rulequant.torch.apply(plain(), rules)


def test_floors_are_enforced() -> None:
    """`expect` stops apply before it starts."""
    model = plain()
    with pytest.raises(DiagnosticsError, match="would be quantized"):
        rulequant.torch.apply(model, rules_with(skip_modules=["0"], expect={"min_quantized": 0.9}))
    assert type(model[2]) is nn.Linear


@pytest.mark.parametrize("model", ["a-folder", None, {"0": nn.Linear(2, 2)}], ids=["text", "none", "dict"])
@pytest.mark.parametrize("function", [rulequant.torch.plan, rulequant.torch.apply], ids=["plan", "apply"])
def test_a_model_is_a_module(function: Any, model: Any) -> None:
    """A folder's name goes to another function, which the remedy names."""
    with pytest.raises(UsageError, match=r"is a (str|NoneType|dict), not an nn.Module\n  .*apply_checkpoint"):
        function(model, RULES)


def test_apply_returns_the_plan_that_was_carried_out() -> None:
    """It is the plan that `plan` gives, with the bytes that are now there."""
    model = plain()
    expected = rulequant.torch.plan(model, RULES)
    plan = rulequant.torch.apply(model, RULES)
    assert plan == expected
    stored = {name: each.nbytes for name, each in model.state_dict().items() if ".quant_state." not in name}
    assert plan.summary["bytes_after"] == sum(stored.values())


def test_applying_twice_changes_nothing_more() -> None:
    """What is quantized is no longer of a quantizable type; rules that then match nothing say so."""
    model = plain()
    rulequant.torch.apply(model, RULES)
    layers = list(model)
    plan = rulequant.torch.apply(model, RULES)
    assert list(plan.quantized) == []
    assert list(model) == layers


def test_a_plain_module_computes_as_before() -> None:
    """Close to the original, with rows of 96 in blocks of 64."""
    model = plain()
    inputs = torch.randn(8, 64)
    with torch.no_grad():
        before = model(inputs)
        rulequant.torch.apply(model, rules_with(schemes={"nf4": {"method": "bnb_4bit", "double_quant": True}}))
        after = model(inputs)
    assert float((after - before).norm() / before.norm()) < 0.2


def test_a_transformers_model_takes_the_bundled_rules() -> None:
    """The file for its family, by name."""
    model = small("llama")
    inputs = small_inputs(model)
    with torch.no_grad():
        before = model(**inputs)[0]
    rulequant.torch.apply(model, "llama")
    assert close(model, before, inputs) < 0.4
    assert isinstance(model.model.layers[0].mlp.gate_proj, bnb.nn.Linear4bit)


def run(code: str) -> str:
    """The output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_planning_needs_neither_bitsandbytes_nor_transformers() -> None:
    """Importing `rulequant.torch` and planning for a plain module import neither; they take seconds."""
    code = """
        import sys
        import rulequant.torch
        from torch import nn
        heavy = {"bitsandbytes", "transformers", "accelerate", "safetensors", "huggingface_hub"}
        print(sorted(heavy & set(sys.modules)))
        rules = {"version": 1, "schemes": {"a": {"method": "bnb_4bit"}, "b": {"method": "bnb_int8"}}, "scheme": "a"}
        plan = rulequant.torch.plan(nn.Sequential(nn.Linear(64, 64), nn.MultiheadAttention(8, 2)), rules)
        print(sorted(heavy & set(sys.modules)), plan.summary["quantized"])
    """
    assert run(code).splitlines() == ["[]", "[] 1"]


def test_the_public_names() -> None:
    """What `rulequant.torch` offers."""
    assert sorted(rulequant.torch.__all__) == rulequant.torch.__all__
    assert {"apply", "apply_checkpoint", "plan"} <= set(rulequant.torch.__all__)
