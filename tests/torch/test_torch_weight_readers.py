"""Reads of `.weight` by a parent's code are found, the harmless ones are not; quantized models of many kinds run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from small_models import SMALL, close, rules_with, small, small_inputs
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForMaskedLM, RwkvConfig, RwkvModel

import rulequant.torch
from rulequant.torch.weight_readers import weight_reads


def readers(kind: str, **changes: Any) -> dict[str, str]:
    """{last part of the name: reader} of all modules of a small model that a plan keeps for this reason."""
    model = small(kind, meta=True, **changes)
    plan = rulequant.torch.plan(model, rules_with())
    kept = [each for each in plan.decisions if each.reason == "weight_read_directly"]
    return {each.name.rpartition(".")[2]: (each.detail or "").partition(" ")[0] for each in kept}


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("mamba", {"dt_proj": "MambaMixer.forward"}),
        ("falcon_mamba", {"dt_proj": "FalconMambaMixer.forward"}),
        ("jamba", {"dt_proj": "JambaMambaMixer.forward"}),
        (
            "wavlm",
            dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), "WavLMAttention.torch_multi_head_self_attention"),
        ),
        ("llama", {}),
        ("bert-classifier", {}),
        ("nllb_moe", {}),
        ("bloom", {}),
    ],
)
def test_readers_in_transformers(kind: str, found: dict[str, str]) -> None:
    """The reads that crash a quantized model are found; NLLB-MoE knows of packed weights, Bloom's are switched off."""
    assert readers(kind) == found


@pytest.mark.parametrize(
    ("slow_but_exact", "pretraining_tp", "found"),
    [
        (True, 2, {"dense": "BloomAttention.forward", "dense_4h_to_h": "BloomMLP.forward"}),
        (True, 1, {}),
        (False, 2, {}),
    ],
)
def test_bloom_reads_only_where_it_is_told_to(slow_but_exact: bool, pretraining_tp: int, found: dict[str, str]) -> None:
    """The condition around a read is evaluated with the module's own settings."""
    assert readers("bloom", slow_but_exact=slow_but_exact, pretraining_tp=pretraining_tp) == found


def test_t5_reads_wo() -> None:
    """T5 asks for int8, but casts its input to the dtype of a packed 4-bit weight."""
    found = weight_reads(small("t5", meta=True).encoder.block[0].layer[1].DenseReluDense)
    assert found == {"wo": "T5DenseActDense.forward"}


def test_torch_modules_read_too() -> None:
    """`nn.MultiheadAttention` and the fast path of `nn.TransformerEncoderLayer` hand weights to a kernel."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    assert weight_reads(layer.self_attn) == {"out_proj": "MultiheadAttention.forward"}
    model = nn.ModuleDict(
        {"encoder": nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), "head": nn.Linear(32, 32)}
    )
    inputs = torch.randn(2, 5, 32)
    before = model.eval()["encoder"](inputs)
    plan = rulequant.torch.apply(model, rules_with(quantizable_types=["*Linear"]))
    assert [each.name for each in plan.quantized] == ["head"]
    with torch.no_grad():
        assert torch.allclose(model["encoder"](inputs), before, atol=1e-5)


class Reader(nn.Module):
    """Reads in all the ways that count."""

    def __init__(self, *, scale: Any = 1.0, mode: str = "on", flag: bool = True) -> None:
        super().__init__()
        self.scale, self.mode, self.flag = scale, mode, flag
        self.always = nn.Linear(2, 2)
        self.when_scaled = nn.Linear(2, 2)
        self.when_on = nn.Linear(2, 2)
        self.when_flag = nn.Linear(2, 2)
        self.otherwise = nn.Linear(2, 2)
        self.in_training = nn.Linear(2, 2)
        self.in_expression = nn.Linear(2, 2)
        self.by_input = nn.Linear(2, 2)
        self.bias_only = nn.Linear(2, 2)
        self.device_only = nn.Linear(2, 2)
        self.knows = nn.Linear(2, 2)
        self.knows_input = nn.Linear(2, 2)
        self.set_up = nn.Linear(2, 2)
        self.assigned = nn.Linear(2, 2)
        self.called = nn.Linear(2, 2)
        self.stack = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.inner = nn.ModuleDict({"deep": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})

    def reset_parameters(self) -> None:
        self.set_up.weight.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.always.weight
        if self.scale is not None and self.scale > 1:
            x = x @ self.when_scaled.weight
        if self.mode == "on":
            x = x @ self.when_on.weight
        if self.flag:  # noqa: SIM108
            x = x @ self.when_flag.weight
        else:
            x = x @ self.otherwise.weight
        if self.training:
            x = x @ self.in_training.weight
        x = x @ (self.in_expression.weight if not self.flag else x.T)
        if x.shape[0] > 3:
            x = x @ self.by_input.weight
        x = x.to(self.device_only.weight.device) + self.bias_only.bias
        if self.knows.weight.dtype != torch.uint8:
            x = x.to(self.knows.weight.dtype)
        if x.dtype == torch.uint8:
            x = x.to(self.knows_input.weight.dtype)
        self.assigned.weight = None
        return self.called(x) @ self.stack[1].weight @ self.inner["deep"][len(x)].weight


def read_by(module: nn.Module) -> set[str]:
    """The paths that are read."""
    return set(weight_reads(module))


ALWAYS = {"always", "by_input", "knows_input", "stack.1", "inner.deep.*"}


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({}, {"when_on", "when_flag"}),
        ({"scale": 2.0}, {"when_scaled", "when_on", "when_flag"}),
        ({"scale": None, "mode": "off", "flag": False}, {"otherwise", "in_expression"}),
        ({"scale": "large"}, {"when_scaled", "when_on", "when_flag"}),
    ],
    ids=["default", "scaled", "off", "not-comparable"],
)
def test_conditions_are_evaluated(settings: Mapping[str, Any], more: set[str]) -> None:
    """A read under a condition that is false for this module does not count; one that depends on the input does."""
    assert read_by(Reader(**settings)) == ALWAYS | more


def test_paths_lead_to_modules() -> None:
    """An index is followed; where it is not known, all children are meant."""
    plan = rulequant.torch.plan(nn.Sequential(Reader()), rules_with())
    kept = {each.name for each in plan.decisions if each.reason == "weight_read_directly"}
    assert {"0.stack.1", "0.inner.deep.0", "0.inner.deep.1"} <= kept
    assert plan.by_name["0.stack.0"].quantize


class Aliases(nn.Module):
    """Reads through local variables."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("plain", "walrus", "first", "second", "called", "shown", "either", "other", "knows"):
            setattr(self, name, nn.Linear(2, 2))
        self.inner = nn.Sequential(nn.Linear(2, 2))
        self.stack, self.pairs = nn.ModuleList([nn.Linear(2, 2)]), nn.ModuleList([nn.Linear(2, 2)])
        self.numbered = nn.ModuleList([nn.Linear(2, 2)])
        self.tree = nn.Module()
        self.next = self.tree

    def forward(self, x: Tensor) -> Tensor:
        layer = self.plain
        inner = self.inner
        again: nn.Module = layer
        x = x @ again.weight @ inner[0].weight
        if (found := self.walrus) is not None:
            x = x @ found.weight
        first, second = self.first, self.second
        x = second(x @ first.weight)
        called = self.called
        x = called(x).to(called.weight.device)
        shown = self.shown.bias
        choice = self.either
        if len(x) > 1:
            choice = self.other
        x = x @ choice.weight + shown
        for each, (_, scale) in zip(self.pairs, enumerate(x), strict=True):
            x = x @ each.weight * scale
        for number, one in enumerate(self.numbered):
            x = x + number * one.weight
        packed = self.knows
        if hasattr(packed.weight, "quant_state"):
            x = x @ packed.weight
        node = self.tree
        while node is not None:
            node = node.next
        return x + sum(one.weight.sum() for one in self.stack)


def test_local_variables_are_followed() -> None:
    """A variable is what it was assigned, or any of that; a call of it reads nothing, and neither does a question."""
    found = read_by(Aliases())
    assert found == {"plain", "inner.0", "walrus", "first", "either", "other", "pairs.*", "numbered.*", "stack.*"}


class Reads(nn.Module):
    """Reads the weight of what it is handed, at the second place or by name, unless it is told not to."""

    def __init__(self, *, switch: bool = True) -> None:
        super().__init__()
        self.switch = switch

    def forward(self, x: Tensor, layer: nn.Module, *, other: nn.Module | None = None) -> Tensor:
        if self.switch:
            x = x @ layer.weight
        return x if other is None else x @ other.weight


class Passes(nn.Module):
    """Passes on what it is handed, and calls the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Reads()

    def forward(self, x: Tensor, layer: nn.Module, called: nn.Module) -> Tensor:
        handed = layer
        return called(self.inner(x, handed))


class Hands(nn.Module):
    """Hands layers of its own to its children and to its methods."""

    def __init__(self, *, switch: bool = True) -> None:
        super().__init__()
        for name in ("placed", "named", "passed", "called", "own", "switched", "unknown", "starred"):
            setattr(self, name, nn.Linear(2, 2))
        self.reads, self.maybe, self.passes = Reads(), Reads(switch=switch), Passes()
        self.many = nn.ModuleList([Reads()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.reads(x, self.placed, other=self.named)
        x = self.maybe(x, self.switched)
        x = self.passes(x, self.passed, self.called)
        x = sum(each(x, self.starred) for each in self.many)
        return self.multiply(self.elsewhere(x, self.unknown), self.own)

    def resize_token_embeddings(self) -> Any:
        return self.multiply(torch.ones(2), self.called)

    def multiply(self, x: Tensor, layer: nn.Module) -> Tensor:
        return x @ layer.weight

    def elsewhere(self, *things: Any) -> Tensor:
        return things[0]


def test_handed_modules_are_followed() -> None:
    """Into the forward of a child and into a method, by place and by name, through calls; where a setting forbids the
    read, or nobody knows the parameter, it does not count."""
    module = Hands()
    assert weight_reads(module) == {
        "placed": "Reads.forward",
        "named": "Reads.forward",
        "passed": "Reads.forward",
        "switched": "Reads.forward",
        "starred": "Reads.forward",
        "own": "Hands.multiply",
    }
    assert "switched" not in weight_reads(Hands(switch=False))


def test_endless_handing_ends() -> None:
    """A method that hands a module to itself is followed only so far."""

    class Endless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.turn(x, self.layer)

        def turn(self, x: Tensor, layer: nn.Module) -> Tensor:
            return self.turn(x, layer)

    assert weight_reads(Endless()) == {}


def test_deberta_hands_its_embeddings_to_its_head() -> None:
    """Listed in quantizable_types, they stay: the head multiplies by their weight."""
    config = DebertaV2Config(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64, legacy=False
    )
    model = DebertaV2ForMaskedLM(config).eval()
    rules = rules_with(quantizable_types=["Linear", "Embedding"], output_embeddings="quantize")
    plan = rulequant.torch.apply(model, rules)
    found = plan.by_name["deberta.embeddings.word_embeddings"]
    assert (found.reason, found.detail) == (
        "weight_read_directly",
        "DebertaV2LMPredictionHead.forward reads its weight directly",
    )
    assert plan.by_name["deberta.embeddings.position_embeddings"].quantize
    assert model(input_ids=torch.arange(8).reshape(1, 8)).logits.isfinite().all()


def test_rwkv_rescales_packed_weights() -> None:
    """It asks whether a weight is one of bitsandbytes before it divides it."""
    assert weight_reads(RwkvModel(RwkvConfig(vocab_size=16, hidden_size=8, num_hidden_layers=2))) == {}


class AsksTheFirst(nn.Module):
    """Takes the dtype and the device of whatever parameter comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.ReLU(), nn.Linear(2, 8), nn.Linear(8, 2))
        self.normed = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2))
        self.placed = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(next(self.mlp.parameters()).dtype).to(next(self.normed.parameters()).dtype)
        x = x.to(next(iter(self.absent.parameters())).dtype) if x.numel() > 9 else x.to(next(self.absent.parameters()))
        return x.to(next(self.placed.parameters()).device).to(next(self.parameters()).dtype)


def test_first_parameter_is_read() -> None:
    """`next(self.mlp.parameters())` is the weight of the first layer that has one, and no other; Swin v2 asks so."""
    assert weight_reads(AsksTheFirst()) == {
        "mlp.1": "AsksTheFirst.forward",
        "normed.0": "AsksTheFirst.forward",
        "absent": "AsksTheFirst.forward",  # there is no such module as it is configured
    }


class Base(nn.Module):
    """Reads in `forward`, and in a helper."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.helper(x @ self.a.weight)

    def helper(self, x: Tensor) -> Tensor:
        return x @ self.b.weight


class Inherits(Base):
    """Nothing of its own."""


class Overrides(Base):
    """Another forward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.helper(self.a(x))


class Extends(Base):
    """Calls the inherited forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class OverridesAgain(Extends):
    """Neither forward nor helper of `Base` is left."""

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)

    def helper(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("owner", "found"),
    [
        (Base, {"a": "Base.forward", "b": "Base.helper"}),
        (Inherits, {"a": "Base.forward", "b": "Base.helper"}),
        (Overrides, {"b": "Base.helper"}),
        (Extends, {"a": "Base.forward", "b": "Base.helper"}),
        (OverridesAgain, {}),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else "",
)
def test_inheritance(owner: type[nn.Module], found: dict[str, str]) -> None:
    """Inherited methods count unless they are replaced; a method that calls `super()` does not replace."""
    assert weight_reads(owner()) == found


def test_a_class_inside_a_function_has_a_source() -> None:
    """Where a class is defined does not matter."""

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.proj.weight

    assert weight_reads(Local()) == {"proj": "Local.forward"}


def test_a_class_without_source_has_no_reads() -> None:
    """What was defined by `exec` cannot be read, and that is no error."""
    namespace: dict[str, Any] = {"nn": nn, "__name__": "nowhere"}
    exec("class Made(nn.Module):\n    def forward(self, x):\n        return x @ self.proj.weight\n", namespace)
    assert weight_reads(namespace["Made"]()) == {}


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_quantized_models_run(kind: str) -> None:
    """Everything that may be quantized in nf4, a small model still runs, and close to what it was."""
    model = small(kind)
    inputs = small_inputs(model)
    with torch.no_grad():
        before = model(**inputs)[0]
    plan = rulequant.torch.apply(model, rules_with())
    assert plan.summary["quantized"] >= 6
    assert close(model, before, inputs) < 0.4


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "t5", "mamba", "wavlm", "vit-classifier"])
def test_models_in_int8_run(kind: str) -> None:
    """The same in int8, which is closer."""
    model = small(kind)
    inputs = small_inputs(model)
    with torch.no_grad():
        before = model(**inputs)[0]
    rulequant.torch.apply(model, rules_with(schemes={"nf4": {"method": "bnb_int8"}}))
    assert close(model, before, inputs) < 0.05


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "falcon"])
def test_models_in_bfloat16_run(kind: str) -> None:
    """Double quantization in a bfloat16 model computes in bfloat16."""
    model = small(kind, dtype=torch.bfloat16)
    inputs = small_inputs(model)
    with torch.no_grad():
        before = model(**inputs)[0]
    rulequant.torch.apply(model, rules_with(schemes={"nf4": {"method": "bnb_4bit", "double_quant": True}}))
    assert close(model, before, inputs) < 0.4
    assert model(**inputs)[0].dtype == torch.bfloat16
