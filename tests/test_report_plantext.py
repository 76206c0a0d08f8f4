"""Plans, and differences of plans, as text."""

from __future__ import annotations

import pytest
from inventories import llama, of, ruleset

from rulequant.inventory import Inventory, ModuleInfo, TensorInfo
from rulequant.plan import Plan
from rulequant.plan_diff import compare
from rulequant.planner import make_plan
from rulequant.report.difftext import diff_text
from rulequant.report.plantext import decision_rows, heaviest, plan_summary, plan_text, verdict

MIXED = """
    skip_modules:
      - modules: "**.o_proj"
        reason: it adds up over the layers
    rules:
      - modules: "**.down_proj"
        layers: 0
        scheme: int8
"""


def _plan(text: str = "", inventory: Inventory | None = None) -> Plan:
    return make_plan(ruleset(text), inventory or llama())


def _row(plan: Plan, start: str) -> tuple[str, ...]:
    return next(row for row in decision_rows(plan.decisions) if row[0].startswith(start))


def test_equal_layers_are_one_row() -> None:
    """A kind of layer that is decided alike everywhere is one line with the sums."""
    plan = _plan(MIXED)
    row = _row(plan, "model.layers.*.self_attn.q_proj")
    assert row == ("model.layers.*.self_attn.q_proj ×2", "Linear", "nf4", "8,192", "16.4 KB", "4.74 KB")


def test_layers_that_differ_are_two_rows() -> None:
    """An exception for one layer is a line of its own."""
    plan = _plan(MIXED)
    assert _row(plan, "model.layers.0.mlp.down_proj")[2] == "int8"
    assert _row(plan, "model.layers.1.mlp.down_proj")[2] == "nf4"


def test_reasons_name_the_line() -> None:
    """A skip is given with its reason and its line; a class that is not listed needs no words."""
    plan = _plan(MIXED)
    assert verdict(plan.by_name["model.layers.0.self_attn.o_proj"]) == (
        "skip: it adds up over the layers (rules.yaml:2)"
    )
    assert verdict(plan.by_name["model.norm"]) == "type"
    assert verdict(plan.by_name["lm_head"]) == "output_embedding: it is the model's output embedding"


def test_a_skip_without_a_reason_gives_its_patterns() -> None:
    """The patterns stand for the reason that nobody gave."""
    plan = _plan('skip_modules: ["**.o_proj"]')
    assert verdict(plan.by_name["model.layers.0.self_attn.o_proj"]) == "skip: **.o_proj (rules.yaml:1)"


def test_every_module() -> None:
    """Unfolded, there is a row for each decision."""
    plan = _plan()
    assert [row[0] for row in decision_rows(plan.decisions, every=True)] == [each.name for each in plan.decisions]


def test_summary() -> None:
    """Model, rules, sizes, bits per weight, coverage, and the schemes in use with their settings."""
    text = "\n".join(plan_summary(_plan(MIXED)))
    facts = make_plan(ruleset(MIXED), llama()).summary
    assert "llama (LlamaForCausalLM, llama)" in text
    assert f"{facts['bits_per_weight']:.2f}" in text
    assert f"{facts['quantized']} of {facts['modules']} quantized" in text
    assert "scheme nf4" in text
    assert "scheme int8" in text
    assert "bnb_int8: threshold 6.0" in text


def test_heaviest_are_sorted_and_cut() -> None:
    """The heaviest classes come first; the rest is one line."""
    modules = [
        ModuleInfo(f"m{size}", f"Class{size}", tensors=(TensorInfo("weight", (size,), "float32"),))
        for size in range(1, 9)
    ]
    lines = heaviest(_plan(inventory=of(*modules)))
    assert [line.split()[0] for line in lines] == ["Class8", "Class7", "Class6", "Class5", "Class4", "3"]
    assert "more" in lines[-1]


def test_a_model_without_parameters() -> None:
    """Nothing is divided by zero."""
    text = plan_text(_plan(inventory=of(ModuleInfo("", "Empty"))))
    assert "the model has no parameters" in text


def test_names_are_escaped() -> None:
    """A module's name cannot act on the terminal."""
    odd = ModuleInfo("a\x1b[2K", "B\r", tensors=(TensorInfo("weight", (4,), "float32"),))
    text = plan_text(_plan(inventory=of(odd, model="m\x1b")))
    assert "\x1b" not in text
    assert "\r" not in text


def test_diff_names_what_changes() -> None:
    """Both decisions, layers folded, and what they do to the size."""
    text = diff_text(compare(_plan(), _plan(MIXED)))
    assert "model.layers.{0..1}.self_attn.o_proj ×2" in text
    assert "  - nf4\n  + skip: it adds up over the layers (rules.yaml:2)" in text
    assert "model.layers.0.mlp.down_proj  (Linear" in text
    assert "3 modules changed" in text


def test_diff_of_the_same() -> None:
    """Two rule sets that decide alike are said to."""
    assert diff_text(compare(_plan(), _plan())).endswith("every module is decided alike")


def test_diff_names_schemes_that_changed_under_one_name() -> None:
    """A name that stands for other settings is pointed out."""
    other = "schemes:\n  nf4: {method: bnb_4bit, double_quant: true}\nscheme: nf4\n"
    text = diff_text(compare(_plan(), _plan(other)))
    assert "same name, other settings: nf4" in text


@pytest.mark.parametrize("every", [False, True])
def test_diff_every(every: bool) -> None:
    """Unfolded, each module has its entry."""
    text = diff_text(compare(_plan(), _plan(MIXED)), every=every)
    assert ("model.layers.1.self_attn.o_proj" in text) is every
