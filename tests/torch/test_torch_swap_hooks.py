"""Hooks follow a layer to its replacement: torch's own, and accelerate's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook, add_hook_to_module, remove_hook_from_module
from small_models import RULES, rules_with
from torch import Tensor, nn

import rulequant.torch

INT8 = rules_with(schemes={"nf4": {"method": "bnb_int8"}})
METHODS = pytest.mark.parametrize(("rules", "layer_class"), [(RULES, bnb.nn.Linear4bit), (INT8, bnb.nn.Linear8bitLt)],
                                  ids=["nf4", "int8"])  # fmt: skip


@METHODS
def test_hooks_follow_the_layer(rules: dict[str, Any], layer_class: type[nn.Module]) -> None:
    """Forward hooks of all sorts fire with the new layer, in their order; the handles still remove them."""
    model = nn.ModuleDict({"first": nn.Linear(64, 64)}).eval()
    calls: list[tuple[str, type[nn.Module]]] = []

    def note(label: str) -> Callable[..., None]:
        return lambda module, *_: calls.append((label, type(module)))

    handles = [
        model.first.register_forward_pre_hook(note("pre")),
        model.first.register_forward_pre_hook(note("pre-kwargs"), with_kwargs=True),
        model.first.register_forward_hook(note("post")),
        model.first.register_forward_hook(note("post-kwargs"), with_kwargs=True),
        model.first.register_forward_hook(note("always"), always_call=True),
    ]
    rulequant.torch.apply(model, rules)
    model.first(torch.randn(2, 64))
    assert [label for label, _ in calls] == ["pre", "pre-kwargs", "post", "post-kwargs", "always"]
    assert {owner for _, owner in calls} == {type(model.first)}
    assert isinstance(model.first, layer_class)
    for handle in handles:
        handle.remove()
    model.first(torch.randn(2, 64))
    assert len(calls) == 5


def test_a_hook_may_change_what_passes() -> None:
    """A pre-hook's inputs and a hook's output are taken."""
    model = nn.Sequential(nn.Linear(64, 64)).eval()
    model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0,))
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    rulequant.torch.apply(model, RULES)
    assert torch.allclose(model(torch.randn(2, 64)), model[0].bias.expand(2, 64) + 1)


def test_full_backward_hooks_follow_the_layer() -> None:
    """They are full backward hooks still, with the gradients of inputs and outputs."""
    model = nn.Sequential(nn.Linear(64, 32))
    seen: list[tuple[type[nn.Module], Any, Any]] = []
    model[0].register_full_backward_hook(
        lambda module, inputs, outputs: seen.append((type(module), inputs[0].shape, outputs[0].shape))
    )
    model[0].register_full_backward_pre_hook(lambda module, outputs: seen.append((type(module), None, None)))
    rulequant.torch.apply(model, RULES)
    model(torch.randn(3, 64, requires_grad=True)).sum().backward()
    assert seen == [(type(model[0]), None, None), (type(model[0]), (3, 64), (3, 32))]
    assert isinstance(model[0], bnb.nn.Linear4bit)


class Doubling(ModelHook):
    """An accelerate hook that shows in the output."""

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return output * 2


@METHODS
@pytest.mark.parametrize(
    "hook",
    [
        Doubling(),
        SequentialHook(AlignDevicesHook(execution_device="cpu", io_same_device=True), Doubling()),
    ],
    ids=["alone", "in-sequence"],
)
def test_accelerate_dispatch_stays(rules: dict[str, Any], layer_class: type[nn.Module], hook: ModelHook) -> None:
    """`_hf_hook` is on the new layer, runs, and can be removed."""
    model = nn.Sequential(nn.Linear(64, 32)).eval()
    add_hook_to_module(model[0], hook)
    rulequant.torch.apply(model, rules)
    assert isinstance(model[0], layer_class)
    assert model[0]._hf_hook is hook
    inputs = torch.randn(2, 64)
    doubled = model(inputs)
    remove_hook_from_module(model[0])
    assert torch.allclose(doubled, model(inputs) * 2)
