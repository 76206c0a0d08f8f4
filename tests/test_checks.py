"""What a plan's diagnostics say: patterns without match or effect, families, floors, missing schemes, heavy types."""

from __future__ import annotations

from dataclasses import replace

import inventories
import pytest
from inventories import changed, linear, llama, norm, of, ruleset

from rulequant.checks import in_layers, quantized_share
from rulequant.diagnostics import Severity
from rulequant.inventory import Inventory, ModuleInfo
from rulequant.plan import Decision
from rulequant.planner import make_plan


def findings(text: str, inventory: Inventory | None = None) -> list[str]:
    """The diagnostics of the plan of a rule file, one line each, without the file's name."""
    plan = make_plan(ruleset(text), inventory or llama(), None)
    return [each.concise().removeprefix("rules.yaml:") for each in plan.diagnostics]


def test_nothing_to_say() -> None:
    """Rules that fit a model give no diagnostics."""
    text = """
    models: llama
    skip_modules:
      - {modules: model.layers.0, except: "**.mlp"}
      - {modules: ["**.q_proj", "**.k_proj"], layers: -1}
    rules: [{modules: "**.v_proj", scheme: int8}]
    expect: {min_quantized: 0.3, min_quantized_layers: 0.5}
    """
    assert findings(text, llama(layers=3)) == []


# RQ401: patterns that select nothing.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "skip_modules: [lm_haed]",
            "1:16: RQ401 error: `lm_haed` matches no module of llama; did you mean `lm_head`?",
            id="skip",
        ),
        pytest.param(
            'rules:\n- {modules: "**.self_atn.q_proj", scheme: int8}',
            "2:13: RQ401 error: `**.self_atn.q_proj` matches no module of llama; did you mean `**.self_attn.q_proj`?",
            id="rule",
        ),
        pytest.param(
            "skip_modules: [{modules: [lm_head, embed_tokens]}]",
            "1:36: RQ401 error: `embed_tokens` matches no module of llama; did you mean `**.embed_tokens`?",
            id="one-of-two-patterns",
        ),
        pytest.param(
            "skip_modules: [vision_tower]",
            "1:16: RQ401 error: `vision_tower` matches no module of llama; "
            "correct it, or mark it `optional: true`; `rulequant inventory` lists the names",
            id="nothing-alike",
        ),
        pytest.param(
            'skip_modules: [{modules: "**.mlp", types: LlamaMLPs}]',
            "1:26: RQ401 error: `**.mlp` names 10 modules, but none passes types; "
            "they are of type LlamaMLP or Linear or SiLUActivation; widen them, or mark it `optional: true`",
            id="types",
        ),
        pytest.param(
            'skip_modules: [{modules: "**.q_proj", layers: "32:"}]',
            "1:26: RQ401 error: `**.q_proj` names 2 modules, but none passes layers; "
            "they are in a stack of 2 layers; widen them, or mark it `optional: true`",
            id="layers",
        ),
        pytest.param(
            "skip_modules: [{modules: lm_head, layers: 0, types: Conv1D}]",
            "1:26: RQ401 error: `lm_head` names 1 module, but none passes types or layers; they are of type Linear; "
            "they are in no stack of layers; widen them, or mark it `optional: true`",
            id="types-and-layers",
        ),
        pytest.param(
            'skip_modules: [{modules: lm_head, except: "**"}]',
            "1:26: RQ401 error: `lm_head` names 1 module, but none passes except; "
            "widen them, or mark it `optional: true`",
            id="except",
        ),
    ],
)
def test_unmatched_pattern(text: str, expected: str) -> None:
    """A pattern that selects nothing is an error at the pattern, with the nearest names or what it did name."""
    assert findings(text) == [expected]


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param("{modules: vision_tower, optional: true}", id="no-name"),
        pytest.param('{modules: "**.q_proj", layers: "32:", optional: true}', id="no-layer"),
        pytest.param('{modules: "**.mlp", except: "**.gone", optional: true}', id="no-exception"),
        pytest.param("{modules: model.norm, optional: true}", id="no-quantizable-type"),
    ],
)
def test_optional_silences(entry: str) -> None:
    """What is marked optional may come to nothing."""
    assert findings(f"skip_modules: [{entry}]") == []


def test_matches_count_before_precedence() -> None:
    """A rule whose modules are all skipped has matched: that is a warning, not an error."""
    (found,) = findings('skip_modules: ["**.mlp"]\nrules: [{modules: "**.up_proj", scheme: int8}]')
    assert found.startswith("2:19: RQ402 warning")


# RQ402, RQ403: patterns without effect.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            'rules:\n- {modules: "**.mlp", scheme: int8}\n- {modules: "**.up_proj", scheme: nf4}',
            "3:13: RQ402 warning: `**.up_proj` in this rule selects only modules that the rule at rules.yaml:2 "
            "already took; remove it, or move it up",
            id="rule-behind-a-rule",
        ),
        pytest.param(
            'skip_modules: ["**.mlp"]\nrules: [{modules: "**.up_proj", scheme: int8}]',
            "2:19: RQ402 warning: `**.up_proj` in this rule selects only modules that the skip at rules.yaml:1 "
            "already took; remove it, or give the skip an `except`: a skip always beats a rule",
            id="rule-behind-a-skip",
        ),
        pytest.param(
            'skip_modules:\n- "**.mlp"\n- "**.up_proj"',
            "3:3: RQ402 warning: `**.up_proj` in this skip selects only modules that the skip at rules.yaml:2 "
            "already took; remove it",
            id="skip-behind-a-skip",
        ),
        pytest.param(
            'rules:\n- {modules: "**.0.mlp", scheme: int8}\n- {modules: "**.1.mlp", scheme: int8}\n'
            '- {modules: ["**.up_proj", "**.q_proj"], scheme: nf4}',
            "4:14: RQ402 warning: `**.up_proj` in this rule selects only modules that the rule at rules.yaml:2 "
            "and the rule at rules.yaml:3 already took; remove it, or move it up",
            id="one-pattern-behind-two-rules",
        ),
        pytest.param(
            "skip_modules: [model.norm]",
            "1:16: RQ403 warning: `model.norm` in this skip selects only LlamaRMSNorm, no quantizable type (Linear); "
            "remove it: they stay as they are anyway",
            id="skip-of-a-norm",
        ),
        pytest.param(
            'rules: [{modules: ["**.mlp", "**.input_layernorm"], scheme: int8}]',
            "1:30: RQ403 warning: `**.input_layernorm` in this rule selects only LlamaRMSNorm, no quantizable type "
            "(Linear); remove it, or list the type in quantizable_types",
            id="one-pattern-of-a-rule",
        ),
        pytest.param(
            'skip_modules: ["**.act_fn"]',
            "1:16: RQ403 warning: `**.act_fn` in this skip selects only modules without weights, no quantizable type "
            "(Linear); remove it: they stay as they are anyway",
            id="no-weights",
        ),
        pytest.param(
            "rules: [{modules: lm_head, scheme: int8}]",
            "1:19: RQ403 warning: `lm_head` in this rule selects only modules that stay as they are: lm_head, since it "
            "is the model's output embedding; remove it, or set `output_embeddings: quantize`",
            id="rule-for-the-head",
        ),
    ],
)
def test_pattern_without_effect(text: str, expected: str) -> None:
    """A pattern that decides about nothing is a warning at the pattern, which says who decided instead."""
    assert findings(text) == [expected]


def test_a_rule_for_what_the_model_keeps() -> None:
    """A rule whose modules all stay for reasons of the model says one of them."""
    inventory = changed(llama(layers=1), "model.layers.0.mlp.up_proj", weight_reader="Mixer.forward")
    assert findings('rules: [{modules: "**.up_proj", scheme: int8}]', inventory) == [
        (
            "1:19: RQ403 warning: `**.up_proj` in this rule selects only modules that stay as they are: "
            "model.layers.0.mlp.up_proj, since Mixer.forward reads its weight directly; "
            "remove it; `rulequant why` tells the reason of each"
        )
    ]


def test_a_pattern_with_some_effect() -> None:
    """One module that an entry decides about is enough."""
    text = """
    skip_modules: ["**.0.mlp", "**.mlp"]
    rules: [{modules: "**.self_attn", layers: 0, scheme: int8}, {modules: "**.q_proj", scheme: int8}]
    """
    assert findings(text) == []


def test_patterns_of_one_entry_do_not_compete() -> None:
    """Two patterns of one list that overlap both have an effect on a model; their overlap is no matter of the model."""
    assert findings('skip_modules: [{modules: ["**.mlp", "**.up_proj"]}]') == []


def test_a_reason_speaks_for_a_skip() -> None:
    """A skip of a type that is not quantized anyway may document why, and silences the heavy type."""
    inventory = of(linear("fc", 64, 64), ModuleInfo("experts", "MoeExperts", tensors=(inventories.weight(4, 64, 64),)))
    assert [each.partition(" warning")[0] for each in findings("name: x", inventory)] == ["1:1: RQ408"]
    assert findings("skip_modules: [{modules: experts, reason: not yet}]", inventory) == []


# RQ404: exceptions.


def test_exception_that_matches_nothing() -> None:
    """A misspelt exception is a warning at the exception, with the nearest names."""
    assert findings('skip_modules: [{modules: "**.mlp", except: ["**.up_proj", "**.dwn_proj"]}]') == [
        "1:59: RQ404 warning: the exception `**.dwn_proj` matches no module; did you mean `**.down_proj`?"
    ]


def test_exception_that_leaves_nothing_out() -> None:
    """An exception about other modules than the patterns does nothing."""
    assert findings('skip_modules: [{modules: "**.mlp", except: "**.q_proj"}]') == [
        (
            "1:44: RQ404 warning: the exception `**.q_proj` leaves out nothing that the patterns select; "
            "correct or remove it"
        )
    ]


# RQ405: families.


def test_another_family() -> None:
    """A rule file for other model types is an error at `models`."""
    assert findings("models: [mistral, qwen2]") == [
        (
            "1:1: RQ405 error: rules.yaml is for mistral or qwen2, but the model is a llama; "
            "choose the rule file of its family, or add llama to `models`"
        )
    ]


@pytest.mark.parametrize(
    ("text", "model_type"),
    [
        pytest.param("models: [mistral, llama]", "llama", id="one-of-them"),
        pytest.param("name: any", "llama", id="for-any"),
        pytest.param("models: mistral", None, id="model-without-a-type"),
    ],
)
def test_the_family_fits(text: str, model_type: str | None) -> None:
    """A file for any model, or for this one, is fine; so is a model that is of no known type."""
    assert findings(text, llama(model_type=model_type)) == []


# RQ406: floors.


def test_floors() -> None:
    """Both floors say what was reached, and which module would help most."""
    text = """
    skip_modules: ["**.down_proj"]
    expect:
      min_quantized: 0.9
      min_quantized_layers: 0.95
    """
    assert findings(text) == [
        (
            "3:3: RQ406 error: 53.68% of the parameters would be quantized, `expect.min_quantized` is 90.00%; "
            "heaviest module left out: model.embed_tokens "
            "(Embedding, 16,384 parameters: Embedding is not one of quantizable_types (Linear))"
        ),
        (
            "4:3: RQ406 error: 77.44% of the parameters outside embeddings and heads would be quantized, "
            "`expect.min_quantized_layers` is 95.00%; heaviest module left out: model.layers.0.mlp.down_proj "
            "(Linear, 8,192 parameters: skip_modules: **.down_proj)"
        ),
    ]


def test_floors_that_hold() -> None:
    """A floor that is reached exactly holds; a model without layers has no share of them."""
    inventory = of(linear("a", 64, 64), linear("b", 64, 64))
    assert findings("skip_modules: [a]\nexpect: {min_quantized: 0.5, min_quantized_layers: 0.5}", inventory) == []
    head = of(linear("head", 4, 2, output_head=True))
    assert findings("expect: {min_quantized_layers: 1.0}", head) == []


def test_floor_of_a_model_without_parameters() -> None:
    """Where there is nothing, no share of it is reached."""
    inventory = of(linear("fc", 0, 2))
    (found,) = findings("expect: {min_quantized: 0.5}", inventory)
    assert "0.00% of the parameters would be quantized" in found


def test_in_layers() -> None:
    """Embeddings, heads and what shares with them are a model's ends, all else is its layers."""
    assert in_layers(linear("fc", 4, 2))
    assert in_layers(norm("n"))
    assert not in_layers(ModuleInfo("e", "Embedding", "embedding"))
    assert not in_layers(linear("x", 4, 2, output_embedding=True))
    assert not in_layers(linear("x", 4, 2, output_head=True))
    assert not in_layers(linear("x", 4, 2, shares_output_embedding=True))


def test_quantized_share() -> None:
    """The share is of parameters; of nothing it is 0."""
    decision = Decision("a", "Linear", 30, 60, 20, scheme="nf4")
    assert quantized_share([decision, replace(decision, parameters=10, scheme=None, reason="skip")]) == 0.75
    assert quantized_share([]) == 0.0


# RQ407: no scheme.


def test_no_scheme() -> None:
    """A rule file that names no scheme at all cannot quantize."""
    plan = make_plan(ruleset("schemes: {nf4: {method: bnb_4bit}}"), llama())
    assert [each.concise() for each in plan.diagnostics] == [
        (
            "rules.yaml:1:1: RQ407 error: rules.yaml names no `scheme` and has no `rules`, so nothing says how "
            "to quantize; add `scheme: NAME`, or `extends: causal_lm` for the bundled ones"
        )
    ]


# RQ408: heavy types.


def test_heavy_types() -> None:
    """Unlisted classes with 1% of the parameters or more are reported by mass; embeddings and norms are not."""
    inventory = of(
        linear("fc", 64, 64),
        ModuleInfo("experts.0", "MoeExperts", tensors=(inventories.weight(8, 64, 64),)),
        ModuleInfo("experts.1", "MoeExperts", tensors=(inventories.weight(8, 64, 64),)),
        ModuleInfo("conv", "Conv2d", "convolution", (inventories.weight(64, 64, 1, 1),)),
        ModuleInfo("small", "Conv1d", "convolution", (inventories.weight(4, 4, 4),)),
        ModuleInfo("embed", "Embedding", "embedding", (inventories.weight(256, 64),)),
        ModuleInfo("stats", "BigNorm", tensors=(inventories.weight(8192),)),
    )
    assert findings("quantizable_types: [Linear]", inventory) == [
        (
            "1:1: RQ408 warning: MoeExperts holds 66.6% of the parameters and is not one of quantizable_types; "
            "list it, or say why not with a skip and a reason"
        ),
        (
            "1:1: RQ408 warning: Conv2d holds 4.2% of the parameters and is not one of quantizable_types; "
            "list it, or say why not with a skip and a reason"
        ),
    ]
    assert findings('quantizable_types: [Linear, "*Experts", Conv2d]', inventory) == []


def test_errors_come_first() -> None:
    """Errors are listed before warnings, and warnings do not make a plan fail."""
    text = """
    models: mistral
    skip_modules: [model.norm, gone, {modules: "**.mlp", except: lm_head}]
    expect: {min_quantized: 0.99}
    """
    plan = make_plan(ruleset(text), llama())
    assert [each.code for each in plan.diagnostics] == ["RQ405", "RQ401", "RQ406", "RQ403", "RQ404"]
    severities = [each.severity for each in plan.diagnostics]
    assert severities == [Severity.ERROR] * 3 + [Severity.WARNING] * 2
