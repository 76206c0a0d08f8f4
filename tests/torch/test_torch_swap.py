"""Swapping in place: what is around a layer stays, what cannot be done is refused before anything is changed."""

from __future__ import annotations

import gc
import math
import weakref
from types import MethodType
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from accelerate import cpu_offload
from small_models import RULES, rules_with, small, small_inputs
from torch import Tensor, nn

import rulequant.torch
from rulequant.diagnostics import DiagnosticsError
from rulequant.errors import ModelError
from rulequant.torch.factories import NotFiniteError
from rulequant.torch.swap import swap_layers

INT8 = rules_with(schemes={"nf4": {"method": "bnb_int8"}})
METHODS = pytest.mark.parametrize(("rules", "layer_class"), [(RULES, bnb.nn.Linear4bit), (INT8, bnb.nn.Linear8bitLt)],
                                  ids=["nf4", "int8"])  # fmt: skip


class Pair(nn.Module):
    """Two layers, one of them under two names and in two parents."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 32)
        self.alias = self.first
        self.block = nn.ModuleList([self.first, nn.LayerNorm(32)])

    def forward(self, x: Tensor) -> Tensor:
        return self.block[1](self.second(torch.relu(self.first(x))))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that must be as before where nothing may have changed."""
    return {
        "modules": {
            name: (id(module), module.training) for name, module in model.named_modules(remove_duplicate=False)
        },
        "tensors": {name: (id(each), each._version) for name, each in model.state_dict(keep_vars=True).items()},
        "gradients": {name: each.requires_grad for name, each in model.named_parameters()},
    }


@METHODS
def test_the_structure_stays(rules: dict[str, Any], layer_class: type[nn.Module]) -> None:
    """The same names; a layer under several names is one layer under all of them; the rest are the same objects."""
    model = Pair().eval()
    before = dict(model.named_modules(remove_duplicate=False))
    bias = model.first.bias
    plan = rulequant.torch.apply(model, rules)
    after = dict(model.named_modules(remove_duplicate=False))
    assert list(after) == list(before)
    assert model.first is model.alias is model.block[0]
    assert model.first.bias is bias
    assert {each.name for each in plan.quantized} == {"first", "second"}
    assert all(isinstance(after[each], layer_class) for each in ("first", "alias", "block.0", "second"))
    assert after["block.1"] is before["block.1"]
    assert after["block"] is before["block"]


class Listed(nn.Module):
    """Calls its layers through a list and a dictionary that torch does not know of, as Mask2Former does."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [nn.Linear(64, 64), nn.ReLU()]
        for number, each in enumerate(self.steps):
            self.add_module(str(number), each)
        self.last = nn.Linear(64, 32)
        self.__dict__["by_name"] = {"last": self.last}

    def forward(self, x: Tensor) -> Tensor:
        for each in self.steps:
            x = each(x)
        return self.by_name["last"](x)


@METHODS
def test_layers_in_plain_lists_are_replaced(rules: dict[str, Any], layer_class: type[nn.Module]) -> None:
    """What a model really calls is the quantized layer, and not the one that it was registered as before."""
    model = Listed().eval()
    inputs = torch.randn(2, 64)
    before = model(inputs)
    rulequant.torch.apply(model, rules)
    assert isinstance(model.get_submodule("0"), layer_class)
    assert model.steps[0] is model.get_submodule("0")
    assert model.by_name["last"] is model.last
    assert not torch.equal(model(inputs), before)


@METHODS
def test_ties_stay(rules: dict[str, Any], layer_class: type[nn.Module]) -> None:
    """A tied head is still the input embedding's parameter, and what was quantized is not tied to anything."""
    model = small("llama-tied")
    rulequant.torch.apply(model, rules)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert type(model.lm_head) is nn.Linear
    assert isinstance(model.model.layers[0].mlp.up_proj, layer_class)


def test_the_weights_are_let_go() -> None:
    """No full-precision weight outlives the swap; each goes as its turn is over."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    weights = [weakref.ref(layer.weight) for layer in model]
    alive: list[int] = []
    plan = rulequant.torch.plan(model, RULES)
    gc.disable()  # nothing may have to wait for it
    try:
        swap_layers(model, plan, progress=lambda _: alive.append(sum(each() is not None for each in weights)))
    finally:
        gc.enable()
    assert alive == [4, 3, 2, 1]
    assert not any(each() is not None for each in weights)


@METHODS
def test_modes_and_gradients_stay(rules: dict[str, Any], layer_class: type[nn.Module]) -> None:
    """Train or eval per module, and whose gradients are wanted, are left as they were."""
    model = Pair()
    model.second.eval()
    model.second.bias.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    rulequant.torch.apply(model, rules)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.first.bias.requires_grad
    assert not model.second.bias.requires_grad
    assert model.block[1].weight.requires_grad
    assert not model.first.weight.requires_grad
    assert isinstance(model.second, layer_class)


def test_offloaded_weights_are_refused() -> None:
    """Weights that accelerate keeps elsewhere look as if on meta; the model is not a skeleton, though."""
    model = nn.Sequential(nn.Linear(64, 32)).eval()
    cpu_offload(model, execution_device=torch.device("cpu"))
    before = snapshot(model)
    with pytest.raises(ModelError, match=r"`0`: its weight is offloaded by accelerate.*\n  load the model without"):
        rulequant.torch.apply(model, RULES)
    assert snapshot(model) == before


def test_buffers_of_a_layer() -> None:
    """Buffers that no checkpoint holds stay with the layer; with others it is not swapped."""

    class Scaled(nn.Linear):
        def __init__(self, persistent: bool) -> None:
            super().__init__(64, 64)
            self.register_buffer("scale", torch.ones(1), persistent=persistent)

    model = nn.ModuleDict({"kept": Scaled(persistent=False), "not": Scaled(persistent=True)})
    scale = model["kept"].scale
    plan = rulequant.torch.apply(model, rules_with(quantizable_types=["Scaled"]))
    assert model["kept"].scale is scale
    assert "kept.scale" not in model.state_dict()
    assert plan.by_name["not"].detail == "it owns `scale` beside weight and bias"
    assert type(model["not"]) is Scaled


def test_a_model_may_contain_itself() -> None:
    """Circular registrations are no obstacle, and both places get the layer."""
    model = Pair()
    model.second.add_module("nothing", None)
    model.block.add_module("parent", model)
    rulequant.torch.apply(model, RULES)
    assert isinstance(model.first, bnb.nn.Linear4bit)
    assert model.block[0] is model.first
    assert model.block.parent is model


def test_the_root_cannot_be_replaced() -> None:
    """A bare layer has no parent to be replaced in, and is told so."""
    layer = nn.Linear(64, 64)
    with pytest.raises(ModelError, match=r"the model itself is a Linear.*\n  wrap it: nn.Sequential\(model\)"):
        rulequant.torch.apply(layer, RULES)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.ModuleDict({"first": nn.Linear(64, 64)}), "this one has no `second`"),
        (
            nn.ModuleDict({"first": nn.Linear(64, 64), "second": nn.Linear(64, 64)}),
            "`second` is a Linear of 4,160 param",
        ),
        (nn.ModuleDict({"first": nn.Conv1d(64, 64, 1), "second": nn.Linear(64, 32)}), "`first` is a Conv1d of 4,160"),
        (nn.ModuleDict({"first": nn.ReLU(), "second": nn.Linear(64, 32)}), "`first` is a ReLU of 0 parameters here"),
    ],
    ids=["missing", "size", "class", "empty"],
)
def test_a_plan_for_another_model_is_refused(other: nn.Module, message: str) -> None:
    """Names, classes and sizes must be those of the plan."""
    plan = rulequant.torch.plan(Pair(), RULES)
    before = snapshot(other)
    with pytest.raises(ModelError, match=rf"the plan is for another model: {message}"):
        swap_layers(other, plan)
    assert snapshot(other) == before


@METHODS
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_a_bad_weight_leaves_the_model_unchanged(
    rules: dict[str, Any], layer_class: type[nn.Module], value: float
) -> None:
    """The last of several weights is damaged: it is named, and none has been replaced."""
    model = Pair()
    with torch.no_grad():
        model.second.weight[3, 5] = value
    before = snapshot(model)
    with pytest.raises(NotFiniteError, match=rf"`second.weight`: the value at \[3, 5\] is {value}"):
        rulequant.torch.apply(model, rules)
    assert snapshot(model) == before
    assert not any(isinstance(module, layer_class) for module in model.modules())


def test_diagnostics_leave_the_model_unchanged() -> None:
    """A pattern that matches nothing stops apply before it starts."""
    model = Pair()
    before = snapshot(model)
    with pytest.raises(DiagnosticsError, match="`sceond` matches no module of Pair"):
        rulequant.torch.apply(model, rules_with(skip_modules=["sceond"]))
    assert snapshot(model) == before


def test_a_patched_forward_is_refused() -> None:
    """Somebody's own forward on the instance would be dropped in silence."""
    model = Pair()
    model.second.forward = MethodType(lambda self, x: x[..., :32], model.second)
    before = snapshot(model)
    with pytest.raises(ModelError, match="`second`: its `forward` was replaced on the instance"):
        rulequant.torch.apply(model, RULES)
    assert snapshot(model) == before


def test_a_weight_of_another_kind_is_refused() -> None:
    """A tensor subclass, sharded or quantized by others, is not what its shape and dtype say."""

    class Sharded(nn.Parameter): ...

    model = Pair()
    model.second.weight = Sharded(model.second.weight.data)
    with pytest.raises(ModelError, match="`second`: its weight is a Sharded, not a plain parameter"):
        rulequant.torch.apply(model, RULES)
    unquantized = nn.Sequential(bnb.nn.Linear4bit(64, 64))
    with pytest.raises(ModelError, match="`0`: its weight is a Params4bit"):
        rulequant.torch.apply(unquantized, rules_with(quantizable_types=["Linear4bit"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_compute_dtype_is_the_models(dtype: torch.dtype) -> None:
    """Layers of a half-precision model compute in its dtype, from the first forward pass on."""
    model = Pair().to(dtype).eval()
    rulequant.torch.apply(model, RULES)
    assert model.first.compute_dtype == dtype
    assert model(torch.randn(2, 64, dtype=dtype)).dtype == dtype
    assert model.first.bias.dtype == dtype


def test_mixed_schemes_in_one_model() -> None:
    """Each layer gets what its rule says; in memory 4-bit and int8 stand side by side."""
    rules = rules_with(
        schemes={"nf4": {"method": "bnb_4bit"}, "fp4": {"method": "bnb_4bit", "quant_type": "fp4", "blocksize": 128},
                 "int8": {"method": "bnb_int8", "threshold": 4.0}},
        rules=[{"modules": "**.self_attn", "scheme": "int8"},
               {"modules": "**.down_proj", "layers": -1, "scheme": "fp4"}],
    )  # fmt: skip
    model = small("llama")
    inputs = small_inputs(model)
    rulequant.torch.apply(model, rules)
    first, last = model.model.layers
    assert first.self_attn.q_proj.state.threshold == 4.0
    assert (last.mlp.down_proj.weight.quant_type, last.mlp.down_proj.weight.blocksize) == ("fp4", 128)
    assert first.mlp.down_proj.weight.quant_type == "nf4"
    assert model(**inputs)[0].isfinite().all()


def test_progress_names_every_layer() -> None:
    """In the order of the plan."""
    model = Pair()
    plan = rulequant.torch.plan(model, RULES)
    seen: list[str] = []
    swap_layers(model, plan, progress=seen.append)
    assert seen == [each.name for each in plan.quantized] == ["first", "second"]


def test_adapters_train_on_top() -> None:
    """Gradients pass through quantized layers to what is trained around them, as in QLoRA."""
    model = Pair().train()
    rulequant.torch.apply(model, RULES)
    model.requires_grad_(False)
    adapter = nn.Linear(64, 64)
    model(adapter(torch.randn(3, 64)))[:, 0].sum().backward()
    assert adapter.weight.grad is not None
    assert adapter.weight.grad.abs().sum() > 0
