"""Fused experts: found by what their forward does, quantized in every layout, dequantized one expert at a time."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from moe_models import MOE, build_moe, moe_class, moe_rules, save_moe
from safetensors.torch import load_file
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

import rulequant.torch.transformers  # noqa: F401  registers the quantizer
from rulequant.loader import load_rules
from rulequant.schemes import Bnb4bit
from rulequant.torch import apply, plan
from rulequant.torch.checkpoint.apply import apply_to_folder
from rulequant.torch.experts import ExpertWeights, expert_parameters
from rulequant.torch.factories import NotFiniteError, decoding, factory_for
from rulequant.torch.skeleton import build_skeleton

SCHEMES: dict[str, dict[str, Any]] = {
    "nf4": {"method": "bnb_4bit"},
    "nf4-double": {"method": "bnb_4bit", "double_quant": True},
    "fp4-128": {"method": "bnb_4bit", "quant_type": "fp4", "blocksize": 128},
    "int8": {"method": "bnb_int8"},
}
IDS = torch.arange(3, 19).reshape(2, 8)


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: each for name, each in model.named_modules() if type(each).__name__.endswith("Experts")}


@pytest.mark.parametrize("name", MOE)
def test_fused_parameters_are_found(name: str) -> None:
    """In every layout the fused parameters are recognised by how the forward uses them."""
    experts = experts_of(build_moe(name))
    assert experts
    assert all(expert_parameters(each) == ("gate_up_proj", "down_proj") for each in experts.values())


def test_other_three_dimensional_parameters_are_not() -> None:
    """A convolution's weight is three-dimensional too, and is no set of experts."""
    model = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64, state_size=4))
    assert not any(expert_parameters(each) for each in model.modules())


class UnevenExperts(nn.Module):
    """As LongCat's: more experts in one parameter than in the other, which may be missing altogether."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.ones(3, 64, 64))
        self.down = nn.Parameter(torch.ones(2, 64, 64))

    def forward(self, states: torch.Tensor, expert: int) -> torch.Tensor:
        if expert >= 2 or self.up is None:
            return states
        return nn.functional.linear(nn.functional.linear(states, self.up[expert]), self.down[expert])


def test_parameters_need_not_agree_in_the_number_of_experts() -> None:
    """Each parameter is quantized for itself, and the forward passes as it did."""
    model = nn.ModuleDict({"experts": UnevenExperts()})
    made = apply(model, moe_rules(method="bnb_4bit"))
    assert [each.quantize for each in made.decisions] == [True]
    states = torch.ones(1, 64)
    assert model["experts"](states, 1).equal(UnevenExperts()(states, 1))
    assert model["experts"](states, 2).equal(states)


class NamedExperts(nn.Module):
    """As JetMoe's: the fused parameter has the name of a layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 64, 64))

    def forward(self, states: torch.Tensor, expert: int) -> torch.Tensor:
        return nn.functional.linear(states, self.weight[expert])


def test_a_fused_parameter_may_be_called_weight() -> None:
    """It is quantized as any other, and not taken for the weight of a layer."""
    model = nn.ModuleDict({"experts": NamedExperts()})
    assert [each.quantize for each in apply(model, moe_rules(method="bnb_4bit")).decisions] == [True]
    states = torch.ones(1, 64)
    assert model["experts"](states, 1).equal(NamedExperts()(states, 1))


class WholeExperts(nn.Module):
    """Uses the fused parameter as a whole, which quantized experts cannot serve."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Parameter(torch.ones(2, 64, 64))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,eio->beo", states, self.fused)


def test_experts_used_as_a_whole_are_refused_with_the_reason() -> None:
    """A forward that takes the whole parameter is not swapped, and the plan says so."""
    model = nn.ModuleDict({"experts": WholeExperts()})
    (decision,) = plan(model, moe_rules(method="bnb_4bit") | {"quantizable_types": ["WholeExperts"]}).decisions
    assert (decision.reason, decision.detail) == ("unsupported", "bnb_4bit has no layer for WholeExperts")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", MOE)
def test_forward_equals_the_dequantized_reference(name: str, scheme: str) -> None:
    """Quantized experts compute what the same class computes with the dequantized parameters."""
    model = build_moe(name)
    original = next(iter(experts_of(model).values()))
    made = apply(model, moe_rules(**SCHEMES[scheme]))
    quantized = next(iter(experts_of(model).values()))
    reference = copy.deepcopy(original)
    if name != "llama4_text":
        reference.config._experts_implementation = "eager"
    for parameter in expert_parameters(original):
        weights = quantized.get_submodule(parameter)
        assert isinstance(weights, ExpertWeights)
        decoded = torch.stack([weights[index] for index in range(weights.shape[0])])
        whole = factory_for(made.schemes["it"].method).decode(dict(weights.state_dict()), "experts")
        assert decoded.equal(whole.to(decoded.dtype))
        setattr(reference, parameter, nn.Parameter(decoded))
    states = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    routing: tuple[torch.Tensor, ...] = ()
    if name != "llama4_text":
        routing = (torch.tensor([[0, 1], [2, 3]] * 4), torch.full((8, 2), 0.5, dtype=torch.bfloat16))
    with torch.no_grad():
        assert quantized(states, *routing).equal(reference(states, *routing))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", MOE)
def test_streamed_equals_in_memory_and_reloads(name: str, scheme: str, tmp_path: Path) -> None:
    """A checkpoint merged expert by expert has the bytes of the model swapped in memory, and the same logits."""
    source = save_moe(name, tmp_path / "source")
    rules = load_rules(moe_rules(**SCHEMES[scheme]))
    applied = apply_to_folder(build_skeleton(str(source)), rules, tmp_path / "out", container="rulequant")
    assert applied.payload_bytes == applied.plan.summary["bytes_after"]
    assert applied.plan.layer_coverage > 0.95

    model = moe_class(name).from_pretrained(source)
    apply(model, rules)
    reloaded, info = moe_class(name).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    expected, found = model.state_dict(), reloaded.state_dict()
    assert sorted(expected) == sorted(found)
    for key, tensor in expected.items():
        assert tensor.reshape(-1).view(torch.uint8).equal(found[key].reshape(-1).view(torch.uint8)), key
    with torch.no_grad():
        assert reloaded(input_ids=IDS).logits.equal(model(input_ids=IDS).logits)


def test_four_bit_bytes_are_those_of_the_fused_tensor_at_once() -> None:
    """Encoding expert by expert gives the bytes that bitsandbytes gives for the whole tensor."""
    weight = torch.randn(4, 96, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    factory: Any = factory_for("bnb_4bit")
    for settings in (Bnb4bit(), Bnb4bit(double_quant=True), Bnb4bit(quant_type="fp4", blocksize=32)):
        one_by_one = factory.encode_experts(weight.unbind(), weight.shape, weight.dtype, settings)
        at_once = factory.encode(weight, "experts", settings)
        assert sorted(one_by_one) == sorted(at_once)
        assert all(one_by_one[key].equal(at_once[key]) for key in at_once)


def test_misaligned_experts_are_unsupported() -> None:
    """An expert that is not whole blocks cannot be dequantized alone, and the plan says so."""
    rules = moe_rules(method="bnb_4bit") | {"quantizable_types": ["OddExperts"]}
    (decision,) = plan(nn.ModuleDict({"experts": OddExperts()}), rules).decisions
    assert decision.reason == "unsupported"
    assert decision.detail == "an expert of `fused` has 63 values, not a multiple of the blocksize 64"


class OddExperts(nn.Module):
    """Experts of 63 values."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Parameter(torch.ones(2, 7, 9))

    def forward(self, states: torch.Tensor, index: int) -> torch.Tensor:
        return states @ self.fused[index]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_large_experts_are_decoded_in_parts(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expert that is decoded into lent memory part by part is the one of the whole tensor, and two stay apart."""
    monkeypatch.setattr(decoding, "compiled_kernel", lambda *_: None)
    monkeypatch.setattr(decoding, "_LENT", 0)
    monkeypatch.setattr(decoding, "_VALUES_AT_A_TIME", 1 << 10)
    monkeypatch.setattr(decoding, "_INT8_AT_A_TIME", 1 << 10)
    model = build_moe("mixtral")
    made = apply(model, moe_rules(**SCHEMES[scheme]))
    weights: Any = model.model.layers[0].mlp.experts.gate_up_proj
    decoded = [weights[index] for index in range(weights.shape[0])]
    whole = factory_for(made.schemes["it"].method).decode(dict(weights.state_dict()), "experts")
    assert torch.stack(decoded).equal(whole.to(torch.bfloat16))


def test_not_finite_expert_is_named() -> None:
    """A damaged expert is refused with its parameter, its number and the place."""
    model = build_moe("mixtral")
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2, 3, 4] = float("nan")
    with pytest.raises(NotFiniteError, match=r"layers\.1\.mlp\.experts\.down_proj`.*at \[2, 3, 4\] is nan"):
        apply(model, moe_rules(method="bnb_4bit"))


def test_copies_and_pickles() -> None:
    """Quantized experts survive deepcopy, and pickle by the name of their original class."""
    model = build_moe("gpt_oss")
    apply(model, moe_rules(method="bnb_int8"))
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        assert copy.deepcopy(model)(input_ids=IDS).logits.equal(expected)
    experts = next(iter(experts_of(model).values()))
    again = pickle.loads(pickle.dumps(experts))
    assert type(again) is type(experts)
    assert again.gate_up_proj[0].equal(experts.gate_up_proj[0])


def test_indexing_is_checked() -> None:
    """Negative indices count from the end, and others beyond it are an error."""
    model = build_moe("mixtral")
    apply(model, moe_rules(method="bnb_4bit"))
    weights: Any = model.model.layers[0].mlp.experts.down_proj
    assert weights[-1].equal(weights[3])
    with pytest.raises(IndexError, match="expert 4 of 4"):
        weights[4]
    with pytest.raises(TypeError, match=r"can be indexed, or be the second argument of torch\.bmm"):
        torch.add(weights, 1)


def test_saved_state_of_int8_experts_is_complete(tmp_path: Path) -> None:
    """`save_pretrained` after apply_checkpoint and reload writes the same tensors again."""
    source = save_moe("qwen3_moe", tmp_path / "source")
    apply_to_folder(build_skeleton(str(source)), load_rules(moe_rules(method="bnb_int8")), tmp_path / "out")
    moe_class("qwen3_moe").from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    first, second = (load_file(tmp_path / each / "model.safetensors") for each in ("out", "again"))
    assert sorted(first) == sorted(second)
    assert all(first[key].equal(second[key]) for key in first)
