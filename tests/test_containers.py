"""Which container a plan gets, the bytes there, and what stands in the way of a plain one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from inventories import changed, linear, llama, of, ruleset

from rulequant.containers import in_container
from rulequant.diagnostics import Severity
from rulequant.inventory import Inventory, ModuleInfo, TensorInfo
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.report.plantext import plan_text
from rulequant.unfused import LAYOUT, expert_linear, expert_linears

EXPERTS, HIDDEN, INNER = 4, 64, 96
FLOAT32 = "schemes: {a: {method: bnb_4bit}, b: {method: bnb_4bit, compute_dtype: float32}}"
Q_PROJ = "model.layers.0.self_attn.q_proj"


def _experts(*, apart: bool) -> ModuleInfo:
    gate_up = TensorInfo("gate_up_proj", (EXPERTS, HIDDEN, 2 * INNER), "bfloat16")
    down = TensorInfo("down_proj", (EXPERTS, INNER, HIDDEN), "bfloat16")
    return ModuleInfo("layers.0.experts", "Llama4TextExperts", "experts", (gate_up, down), stock_linears=apart)


def _moe(*, apart: bool = True) -> Inventory:
    return of(linear("layers.0.q_proj", 64, 64), _experts(apart=apart), model_type="llama4_text")


def _plan(text: str, inventory: Inventory, container: Any = "auto") -> Plan:
    return make_plan(ruleset(f'quantizable_types: [Linear, "*Experts", OwnLinear]\n{text}'), inventory, container)


def _int8(text: str = "") -> str:
    return f"schemes: {{int8: {{method: bnb_int8}}, nf4: {{method: bnb_4bit}}}}\nscheme: int8\n{text}"


def test_plain_where_it_can_be() -> None:
    """A llama in one method is a plain checkpoint; in memory there is no container."""
    assert _plan("name: x", llama()).container == "bitsandbytes"
    assert _plan("name: x", llama(), "rulequant").container == "rulequant"
    assert _plan("name: x", llama(), None).container is None
    assert _plan("skip_modules: [model]", llama()).container is None
    assert _plan("name: x", llama(model_type=None)).container is None


@pytest.mark.parametrize("model_type", ["llama", None])
def test_a_called_model_is_rulequant_s(model_type: str | None) -> None:
    """What a callable returns has no config.json, so transformers cannot load what becomes of it."""
    model = llama(model_type=model_type, called=True)
    plan = _plan("name: x", model)
    assert (plan.container, plan.ok) == ("rulequant", True)
    assert "container        rulequant, which `rulequant.torch.load_quantized` loads\n" in plan_text(plan)
    forced = _plan("name: x", model, "bitsandbytes")
    assert [each.code for each in forced.diagnostics] == ["RQ541"]
    assert in_container(forced, model) == plan


@pytest.mark.parametrize("scheme", ["bnb_4bit", "bnb_4bit, double_quant: true, blocksize: 32", "bnb_int8"])
def test_bytes_of_experts_that_are_taken_apart(scheme: str) -> None:
    """In a plain checkpoint each matrix of each expert has its own records; the fused ones have one."""
    text = f"schemes: {{it: {{method: {scheme}}}}}\nscheme: it"
    plain, own, memory = (_plan(text, _moe(), each) for each in ("auto", "rulequant", None))
    assert (plain.container, own.container) == ("bitsandbytes", "rulequant")
    it, info = plain.schemes["it"], _experts(apart=True)
    linears = list(expert_linears(info))
    assert len(linears) == 3 * EXPERTS
    assert {each.tensors[0].shape for each in linears} == {(INNER, HIDDEN), (HIDDEN, INNER)}
    assert plain.by_name[info.name].bytes_after == sum(it.bytes_after(each) for each in linears)
    assert own.by_name[info.name].bytes_after == it.bytes_after(info) == memory.by_name[info.name].bytes_after
    assert in_container(plain, _moe(), "rulequant") == own
    assert in_container(own, _moe(), "auto") == plain


def test_experts_that_stay() -> None:
    """Unquantized experts take the same bytes apart as fused."""
    plan = _plan("skip_modules: [layers.0.experts]", _moe())
    assert plan.container == "bitsandbytes"
    assert plan.by_name["layers.0.experts"].bytes_after == _experts(apart=True).nbytes


def test_other_experts_need_the_own_container() -> None:
    """Fused experts that transformers does not take apart are told when a plain checkpoint is asked for."""
    assert _plan("name: x", _moe(apart=False)).container == "rulequant"
    plan = _plan("name: x", _moe(apart=False), "bitsandbytes")
    (found,) = (each for each in plan.diagnostics if each.code.startswith("RQ5"))
    assert found.code == "RQ551"
    assert found.message.endswith("makes no quantized layer of the class Llama4TextExperts: layers.0.experts")
    assert not plan.ok


def _typed(inventory: Inventory) -> Inventory:
    return changed(inventory, Q_PROJ, type="OwnLinear")


def _aliased(inventory: Inventory) -> Inventory:
    return changed(inventory, Q_PROJ, aliases=("shared",))


@pytest.mark.parametrize(
    ("text", "change", "code", "named"),
    [
        pytest.param(
            _int8('rules: [{modules: "**.mlp", scheme: nf4}]'),
            None,
            "RQ503",
            "`nf4` on model.layers.0.mlp.gate_proj and 5 more",
            id="two methods",
        ),
        pytest.param(
            f"{FLOAT32}\nscheme: a\nrules: [{{modules: '**.mlp', scheme: b}}]",
            None,
            "RQ504",
            "float32 for `b` on model.layers.0.mlp.gate_proj",
            id="compute_dtype",
        ),
        pytest.param("name: x", _typed, "RQ551", f"no quantized layer of the class OwnLinear: {Q_PROJ}", id="subclass"),
        pytest.param("name: x", _aliased, "RQ551", f"replaces {Q_PROJ} only there, and not as shared", id="alias"),
    ],
)
def test_obstacles(text: str, change: Callable[[Inventory], Inventory] | None, code: str, named: str) -> None:
    """What a plain checkpoint cannot hold is told with the modules, and else needs the own container."""
    inventory = change(llama()) if change else llama()
    assert _plan(text, inventory).container == "rulequant"
    plan = _plan(text, inventory, "bitsandbytes")
    (found,) = (each for each in plan.diagnostics if each.code == code)
    assert named in found.message
    assert "`rulequant`" in str(found.remedy)


def test_all_obstacles_at_once() -> None:
    """Two methods and a subclass are both told."""
    plan = _plan(_int8('rules: [{modules: "**.mlp", scheme: nf4}]'), _typed(llama()), "bitsandbytes")
    assert [each.code for each in plan.diagnostics] == ["RQ503", "RQ551"]


def test_auto_is_the_dtype_of_the_model() -> None:
    """`compute_dtype: auto` and the model's own dtype by name do not conflict."""
    schemes = "schemes: {a: {method: bnb_4bit}, b: {method: bnb_4bit, compute_dtype: bfloat16}}"
    assert (
        _plan(f"{schemes}\nscheme: a\nrules: [{{modules: '**.mlp', scheme: b}}]", llama()).container == "bitsandbytes"
    )


def test_the_last_word_on_containers() -> None:
    """What was said about one container is not said about another."""
    forced = _plan(_int8('rules: [{modules: "**.mlp", scheme: nf4}]'), llama(), "bitsandbytes")
    again = in_container(forced, llama(), "rulequant")
    assert again.ok
    assert [each.code for each in again.diagnostics] == ["RQ451"]
    assert again.sha256 != forced.sha256


ODD = (linear("a.rows", 40, 64), linear("a.more", 40, 64), linear("a.columns", 64, 80), linear("a.even", 64, 64))


@pytest.mark.parametrize(
    ("wanted", "facts", "told"),
    [
        pytest.param("auto", {"model_type": "llama"}, True, id="plain"),
        pytest.param("rulequant", {"model_type": "llama"}, False, id="own"),
        pytest.param(None, {"model_type": "llama"}, False, id="in memory"),
        pytest.param("auto", {}, False, id="no config"),
        pytest.param("auto", {"model_type": "llama", "called": True}, False, id="called"),
        pytest.param("auto", {"versions": {"diffusers": "1"}, "model_type": "Flux"}, True, id="diffusers"),
    ],
)
def test_shapes_that_stock_layers_get_wrong(wanted: Any, facts: dict[str, Any], told: bool) -> None:
    """Where bitsandbytes' own layers run, what they may compute wrongly is a warning, what they refuse a note."""
    plan = _plan("name: x", of(*ODD, **facts), wanted)
    found = {each.code: each for each in plan.diagnostics if each.code in {"RQ411", "RQ413"}}
    assert set(found) == ({"RQ411", "RQ413"} if told else set())
    if told:
        assert found["RQ411"].severity is Severity.WARNING
        assert found["RQ411"].message.startswith("`a.columns`: in_features 80 is no multiple of the blocksize 64: ")
        assert found["RQ411"].location == plan.by_name["a.columns"].rule
        assert found["RQ413"].severity is Severity.NOTE
        assert found["RQ413"].message.startswith("`a.rows` and 1 other module: out_features 40 is no multiple of 32: ")
    assert plan.by_name["a.columns"].quantize


def test_reservation_about_the_rows_of_an_expert() -> None:
    """A Linear of an expert whose rows are no whole blocks is told, in a plain checkpoint alone."""
    gate_up = TensorInfo("gate_up_proj", (EXPERTS, 96, 128), "bfloat16")
    down = TensorInfo("down_proj", (EXPERTS, 64, 96), "bfloat16")
    odd = replace(_experts(apart=True), tensors=(gate_up, down))
    inventory = of(odd, model_type="llama4_text")
    codes = {each.code for each in _plan("name: x", inventory).diagnostics}
    assert "RQ552" in codes
    assert "RQ552" not in {each.code for each in _plan("name: x", inventory, "rulequant").diagnostics}
    assert expert_linear(odd, 2, LAYOUT[0]).name == "layers.0.experts.2.gate_proj"


def _twins(*, bias: bool) -> Inventory:
    tied = TensorInfo("weight", (64, 64), "bfloat16", tied_to="a.weight")
    second = (tied, TensorInfo("bias", (64,), "bfloat16")) if bias else (tied,)
    modules = (linear("a", 64, 64, bias=bias), linear("b", 64, 64, tensors=second), linear("c", 64, 64, bias=True))
    return of(*modules, model_type="zamba2")


@pytest.mark.parametrize(
    ("text", "bias", "what"),
    [
        pytest.param(_int8(), False, "the scales of an int8 weight only to one of the layers that share it", id="int8"),
        pytest.param("name: x", True, "a wrong bias to layers that share a 4-bit weight", id="biases"),
    ],
)
def test_shared_weights(text: str, bias: bool, what: str) -> None:
    """What the stock loader spoils of layers that share a weight is left to rulequant's, and named."""
    assert _plan(text, _twins(bias=bias)).container == "rulequant"
    forced = _plan(text, _twins(bias=bias), "bitsandbytes")
    said = [(each.code, each.message) for each in forced.diagnostics]
    assert said == [("RQ551", f"transformers' bitsandbytes loader gives {what}: a = b")]


def test_shared_weights_that_are_plain() -> None:
    """4-bit layers without a bias share a weight in a plain checkpoint; where they stay they are in nobody's way."""
    assert _plan("name: x", _twins(bias=False)).container == "bitsandbytes"
    assert _plan(_int8("skip_modules: [a]"), _twins(bias=False)).container == "bitsandbytes"
