"""Making the plan: first objection, first rule, exact bytes, and decisions that know their line."""

from __future__ import annotations

from typing import Any

import inventories
import pytest
from inventories import HEAD, HIDDEN, VOCABULARY, WIDE, changed, linear, llama, norm, of, ruleset

from rulequant.inventory import Inventory, ModuleInfo, TensorInfo
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.schemes import Bnb4bit

DOWN = HIDDEN * WIDE


def planned(text: str, inventory: Inventory | None = None) -> Plan:
    """The plan of a rule file for a model, a llama of two layers by default."""
    return make_plan(ruleset(text), inventory or llama())


def schemes_of(plan: Plan, *names: str) -> list[str | None]:
    """The schemes of these modules of layer 0, or the reason why there is none."""
    found = [plan.by_name[f"model.layers.0.{name}"] for name in names]
    return [each.scheme or each.reason for each in found]


def test_every_owner_has_a_decision() -> None:
    """Modules without tensors are not in the plan; all others are, in the order of the model."""
    inventory = llama()
    plan = planned("name: x", inventory)
    assert [each.name for each in plan.decisions] == [each.name for each in inventory.owners]
    assert (plan.model, plan.model_type, plan.architecture) == ("llama", "llama", "LlamaForCausalLM")
    assert (plan.rules, plan.rules_sha256) == ("rules.yaml", ruleset("name: x").sha256)


def test_by_default_all_linears_but_the_head() -> None:
    """Linear layers get the default scheme; embeddings, norms and the head stay, each with its reason."""
    plan = planned("name: x")
    kept = {(each.name, each.reason) for each in plan.decisions if not each.quantize and "layers" not in each.name}
    assert kept == {("model.embed_tokens", "type"), ("model.norm", "type"), ("lm_head", "output_embedding")}
    assert {each.scheme for each in plan.quantized} == {"nf4"}
    assert plan.summary["quantized"] == 2 * 7


def test_the_first_rule_wins() -> None:
    """Of several rules that select a module, the first in the file decides."""
    text = """
    rules:
      - {modules: "**.q_proj", scheme: int8, reason: queries}
      - {modules: "**.self_attn", scheme: nf4}
      - {modules: "**", scheme: int8}
    """
    plan = planned(text)
    assert schemes_of(plan, "self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj") == ["int8", "nf4", "int8"]
    decision = plan.by_name["model.layers.1.self_attn.q_proj"]
    assert (decision.detail, str(decision.rule)) == ("queries", "rules.yaml:2:5")


def test_rules_of_the_default_scheme_have_its_line() -> None:
    """A module that no rule is about points at the `scheme` of the file."""
    decision = planned("scheme: int8\nschemes: {int8: {method: bnb_int8}}").by_name["model.layers.0.mlp.up_proj"]
    assert (str(decision.rule), decision.detail) == ("rules.yaml:1:9", None)


def test_a_skip_always_beats_a_rule() -> None:
    """Whatever the order and however exact the rule, a skipped module stays, and points at the skip."""
    text = """
    rules: [{modules: model.layers.0.mlp.up_proj, scheme: int8}]
    skip_modules: [{modules: "**.mlp", reason: too sensitive}]
    """
    decision = planned(text).by_name["model.layers.0.mlp.up_proj"]
    assert (decision.scheme, decision.reason, decision.detail) == (None, "skip", "too sensitive")
    assert str(decision.rule) == "rules.yaml:2:16"
    assert decision.bytes_after == decision.bytes_before


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param('"0:2"', [0, 1], id="first"),
        pytest.param('["0:1", "-1:"]', [0, 5], id="ends"),
        pytest.param('"::2"', [0, 2, 4], id="every-other"),
        pytest.param("-2", [4], id="index"),
    ],
)
def test_rules_by_layer(layers: str, expected: list[int]) -> None:
    """A rule may be about some layers only."""
    plan = planned(f'rules: [{{modules: "**.down_proj", layers: {layers}, scheme: int8}}]', llama(layers=6))
    found = [index for index in range(6) if plan.by_name[f"model.layers.{index}.mlp.down_proj"].scheme == "int8"]
    assert found == expected


def test_a_user_skip_list_keeps_the_head_protected() -> None:
    """However the rule file skips, the output embedding and what is tied to it stay."""
    for text in ("skip_modules: [model.norm]", 'skip_modules: [{modules: "**", except: [lm_head, model.layers]}]'):
        plan = planned(text, llama(tied=True))
        assert plan.by_name["lm_head"].reason == "output_embedding"


def test_quantized_output_embeddings() -> None:
    """An untied head is quantized where the rule file says so; a rule may choose its scheme."""
    plan = planned("output_embeddings: quantize\nrules: [{modules: lm_head, scheme: int8}]")
    assert plan.by_name["lm_head"].scheme == "int8"


def test_a_tied_head_stays_even_then() -> None:
    """Tied to the input embeddings, a head cannot be quantized apart from them."""
    plan = planned("output_embeddings: quantize\nquantizable_types: [Linear, Embedding]", llama(tied=True))
    assert plan.by_name["lm_head"].reason == "tied"
    assert plan.by_name["model.embed_tokens"].reason == "tied"


def _twins(**second: Any) -> Inventory:
    """Two layers with one weight, and one of its own."""
    tied = TensorInfo("weight", (64, 64), "bfloat16", tied_to="a.weight")
    return of(linear("a", 64, 64), linear("b", 64, 64, tensors=(tied,), **second), linear("c", 64, 64))


def test_twins_are_quantized_together() -> None:
    """Layers that share a weight are quantized both, and it is counted once: at the first of them."""
    plan = planned("name: x", _twins())
    assert [each.scheme for each in plan.decisions] == ["nf4", "nf4", "nf4"]
    assert [each.parameters for each in plan.decisions] == [4096, 0, 4096]
    assert plan.by_name["b"].bytes_before == plan.by_name["b"].bytes_after == 0
    assert plan.by_name["a"].bytes_after == plan.by_name["c"].bytes_after
    assert plan.summary["parameters_quantized"] == plan.summary["parameters"] == 8192


@pytest.mark.parametrize(
    ("text", "stays", "detail"),
    [
        pytest.param("skip_modules: [b]", "a", "that of `b`, which stays (skip)", id="skip-the-second"),
        pytest.param("skip_modules: [a]", "b", "that of `a`, which stays (skip)", id="skip-the-first"),
        pytest.param(
            "rules: [{modules: b, scheme: int8}]", "a", "which gets `int8`, and it would get `nf4`", id="another-scheme"
        ),
        pytest.param(
            "rules: [{modules: b, scheme: int8}]", "b", "which gets `nf4`, and it would get `int8`", id="its-own-scheme"
        ),
    ],
)
def test_twins_at_odds(text: str, stays: str, detail: str) -> None:
    """Where the rules want different things of layers that share a weight, it stays, and the plan says of which."""
    plan = planned(text, _twins())
    assert [each.name for each in plan.quantized] == ["c"]
    decision = plan.by_name[stays]
    assert decision.reason == "tied"
    assert decision.detail is not None
    assert decision.detail.startswith("its weight is the same parameter as that of `")
    assert decision.detail.endswith(detail)


def test_the_own_reason_of_a_twin_comes_first() -> None:
    """What the model itself says against one of them is its reason; the other stays for that one's sake."""
    plan = planned("name: x", _twins(weight_reader="Block.forward"))
    assert plan.by_name["b"].reason == "weight_read_directly"
    assert plan.by_name["a"].detail is not None
    assert plan.by_name["a"].detail.endswith("that of `b`, which stays (weight_read_directly)")


def test_a_method_that_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What shares a weight stays where the layers of the method cannot."""
    monkeypatch.setattr(Bnb4bit, "shares", False)
    plan = planned("name: x", _twins())
    assert [each.reason for each in plan.decisions] == ["tied", "tied", None]
    assert plan.by_name["a"].detail == "bnb_4bit has no layers that share a weight, as it does with another"


def test_no_scheme_for_some() -> None:
    """Without a default scheme, what no rule selects stays, and says why."""
    plan = planned('schemes: {nf4: {method: bnb_4bit}}\nrules: [{modules: "**.q_proj", scheme: nf4}]')
    decision = plan.by_name["model.layers.0.mlp.up_proj"]
    assert (decision.reason, decision.detail) == ("unsupported", "the rule set names no scheme for it")
    assert plan.ok


def test_what_the_method_cannot_hold_stays() -> None:
    """A module that the chosen method cannot hold is kept with the method's reason."""
    inventory = changed(llama(), "model.layers.0.mlp.up_proj", tensors=(inventories.weight(4, 4, 4),))
    decision = planned("name: x", inventory).by_name["model.layers.0.mlp.up_proj"]
    assert decision.reason == "unsupported"
    assert decision.detail == "its weight is of shape [4, 4, 4], not a plain two-dimensional parameter"


def test_bytes_are_exact() -> None:
    """Before and after, tensor by tensor, as written by hand."""
    plan = planned('rules: [{modules: "**.down_proj", scheme: int8}]')
    down, up = plan.by_name["model.layers.0.mlp.down_proj"], plan.by_name["model.layers.0.mlp.up_proj"]
    assert (down.bytes_before, down.bytes_after) == (DOWN * 2, DOWN + HIDDEN * 4 + 1)
    assert (up.bytes_before, up.bytes_after) == (DOWN * 2, DOWN // 2 + DOWN // 64 * 4 + 64)
    head = VOCABULARY * HIDDEN
    weights = 2 * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HEAD + 3 * DOWN)
    assert plan.summary["parameters"] == weights + 2 * head + 5 * HIDDEN
    assert plan.summary["bytes_before"] == plan.summary["parameters"] * 2
    kept = (2 * head + 5 * HIDDEN) * 2
    int8 = 2 * (DOWN + HIDDEN * 4 + 1)
    nf4 = sum(count // 2 + count // 16 + 64 for count in [HIDDEN * HIDDEN, HIDDEN * HEAD, DOWN] for _ in range(4))
    assert plan.summary["bytes_after"] == kept + int8 + nf4


def test_a_tied_head_is_stored_once() -> None:
    """What is tied has no bytes and no parameters of its own, and the shares are of what there is."""
    plan = planned("name: x", llama(tied=True))
    head = plan.by_name["lm_head"]
    assert (head.parameters, head.bytes_before, head.bytes_after) == (0, 0, 0)


def test_layer_coverage_leaves_out_both_ends() -> None:
    """Embeddings and heads do not count in the share of the layers."""
    plan = planned("name: x")
    weights = 2 * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HEAD + 3 * DOWN)
    assert plan.layer_coverage == weights / (weights + 5 * HIDDEN)
    assert plan.summary["coverage"] < 0.7


def test_aliases_are_decided_once() -> None:
    """A module with several names has one decision, under its first; a rule may use any of them."""
    shared = linear("encoder.fc", 64, 64, aliases=("decoder.fc",))
    plan = planned("rules: [{modules: decoder, scheme: int8}]", of(ModuleInfo("", "Net"), shared, norm("norm")))
    assert [(each.name, each.scheme) for each in plan.decisions] == [("encoder.fc", "int8"), ("norm", None)]
    assert plan.diagnostics == ()


def test_problems_are_in_the_plan() -> None:
    """What the rules get wrong about the model does not raise: it is in the plan, which is then not ok."""
    plan = planned("skip_modules: [gone]")
    assert not plan.ok
    assert [each.code for each in plan.diagnostics] == ["RQ401"]
