"""Quantized experts where gradients flow: equal to those of the dequantized weights, which are not kept meanwhile."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from moe_models import build_moe, moe_rules
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rulequant.torch import apply
from rulequant.torch.expert_weights import ExpertWeights

SCHEMES = {"nf4": {"method": "bnb_4bit", "double_quant": True}, "int8": {"method": "bnb_int8"}}
LAYOUTS = ["mixtral", "gpt_oss", "llama4_text"]


def _pair(name: str, scheme: str) -> tuple[nn.Module, nn.Module]:
    """Quantized experts, and the original class with the dequantized weights."""
    model = build_moe(name)
    original = next(each for each in model.modules() if type(each).__name__.endswith("Experts"))
    apply(model, moe_rules(**SCHEMES[scheme]))
    quantized = next(each for each in model.modules() if type(each).__name__.endswith("Experts"))
    reference: Any = copy.deepcopy(original)
    if name != "llama4_text":
        reference.config._experts_implementation = "eager"
    for key, weights in quantized.named_children():
        if isinstance(weights, ExpertWeights):
            decoded = torch.stack([weights[index] for index in range(weights.shape[0])])
            setattr(reference, key, nn.Parameter(decoded, requires_grad=False))
    return quantized, reference


def _routing(name: str) -> tuple[Tensor, ...]:
    if name == "llama4_text":
        return ()
    return torch.tensor([[0, 1], [2, 3]] * 4), torch.full((8, 2), 0.5, dtype=torch.bfloat16)


def _states() -> Tensor:
    states = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    return states.requires_grad_()


def _gradient(experts: nn.Module, states: Tensor, *routing: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(experts(states, *routing).square().sum(), states)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_gradients_are_those_of_the_dequantized_weights(name: str, scheme: str) -> None:
    """The gradient of the hidden states is that of the class itself with the dequantized parameters."""
    quantized, reference = _pair(name, scheme)
    found, expected = (_gradient(each, _states(), *_routing(name)) for each in (quantized, reference))
    assert expected.abs().sum() > 0
    assert found.equal(expected)


def _record(monkeypatch: pytest.MonkeyPatch, experts: nn.Module) -> list[weakref.ref[Any]]:
    """References to the storage of every weight that the experts dequantize."""
    made: list[weakref.ref[Any]] = []
    for kind in {type(each) for each in experts.children() if isinstance(each, ExpertWeights)}:
        expert = kind.expert

        def recorded(self: ExpertWeights, index: int, expert: Any = expert) -> Tensor:
            weight: Tensor = expert(self, index)
            made.append(weakref.ref(weight))
            return weight

        monkeypatch.setattr(kind, "expert", recorded)
    return made


@pytest.mark.parametrize("name", LAYOUTS)
def test_dequantized_weights_are_not_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between forward and backward no dequantized weight is alive; the backward pass makes them again."""
    quantized, _ = _pair(name, "nf4")
    made = _record(monkeypatch, quantized)
    states = _states()
    output = quantized(states, *_routing(name))
    assert len(made) == 8
    assert [each() for each in made if each() is not None] == []
    output.sum().backward()
    assert len(made) == 16
    assert states.grad is not None


@pytest.mark.parametrize("reentrant", [False, True], ids=["hooks", "reentrant"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_under_checkpointing(name: str, reentrant: bool) -> None:
    """Both kinds of torch's checkpointing give the same gradient; the one by hooks still drops activations."""
    quantized, _ = _pair(name, "nf4")
    expected = _gradient(quantized, _states(), *_routing(name))
    states = _states()
    output = checkpoint(quantized, states, *_routing(name), use_reentrant=reentrant)
    output.square().sum().backward()
    assert states.grad is not None
    assert states.grad.equal(expected)


def test_activations_stay_with_the_hooks_around() -> None:
    """What is no dequantized weight goes to the hooks of whoever is around."""
    quantized, _ = _pair("mixtral", "nf4")
    kept: list[torch.Size] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = quantized(_states(), *_routing("mixtral"))
    assert kept
    assert not {torch.Size((128, 64)), torch.Size((64, 64))} & set(kept)
    output.sum().backward()


def test_nothing_is_left_behind() -> None:
    """After a forward pass, one that failed too, indexing gives the dtype of the parameter again."""
    quantized, _ = _pair("mixtral", "nf4")
    weights: Any = quantized.get_submodule("down_proj")
    with torch.no_grad():
        assert quantized(_states().float(), *_routing("mixtral")).dtype == torch.float32
    with pytest.raises(RuntimeError, match=r"shape|size"):
        quantized(torch.ones(8, 3), *_routing("mixtral"))
    assert weights[0].dtype == torch.bfloat16
    assert weights.working is None
    copy.deepcopy(quantized)
