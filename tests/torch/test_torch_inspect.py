"""The inventory of a model: names, ties, output embeddings and heads, declarations, layers; nothing is changed."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from small_models import SMALL, rules_with, small
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

import rulequant.torch
from rulequant.errors import ModelError
from rulequant.inventory import Inventory, LayerIndex
from rulequant.torch.inspect import inspect_model, is_conv1d, with_dtypes


class Shared(nn.Module):
    """One layer under two names, one weight in two layers, a layer inside a container that is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.embed = nn.Embedding(7, 4)
        self.decoder = nn.ModuleDict({"out": nn.Linear(4, 7, bias=False)})
        self.decoder["out"].weight = self.embed.weight
        self.block = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.same_block = self.block


def names(inventory: Inventory, flag: str) -> list[str]:
    """The modules for which a flag is set."""
    return [info.name for info in inventory.modules if getattr(info, flag)]


def test_modules_come_in_the_order_of_named_modules() -> None:
    """Containers included, each module once, under its first name."""
    model = Shared()
    assert [info.name for info in inspect_model(model).modules] == [name for name, _ in model.named_modules()]


def test_aliases_are_all_the_other_names() -> None:
    """Every name of `named_modules(remove_duplicate=False)` is a name or an alias, and leads to the same module."""
    model = Shared()
    inventory = inspect_model(model)
    assert inventory.by_name["first"].aliases == ("again",)
    assert inventory.by_name["block.0"].aliases == ("same_block.0",)
    every = dict(model.named_modules(remove_duplicate=False))
    assert set(inventory.by_name) == set(every)
    assert all(every[info.name] is every[alias] for info in inventory.modules for alias in info.aliases)


def test_ties_point_to_the_first_owner() -> None:
    """A tied tensor says whose it is, and counts once."""
    inventory = inspect_model(Shared())
    assert inventory.by_name["decoder.out"].tensors[0].tied_to == "embed.weight"
    assert inventory.by_name["embed"].tensors[0].tied_to is None
    assert inventory.by_name["decoder.out"].nbytes == 0
    assert inventory.parameters == sum(each.numel() for each in Shared().parameters())


def test_layers_count_in_the_outermost_list() -> None:
    """Experts inside a layer have the index of the layer; what is outside of any list has none."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)])

    model = nn.ModuleDict({"embed": nn.Embedding(2, 2), "layers": nn.ModuleList([Layer(), Layer()])})
    inventory = inspect_model(model)
    assert inventory.by_name["layers.1.experts.2"].layer == LayerIndex(1, 2)
    assert inventory.by_name["layers.0.experts.2"].layer == LayerIndex(0, 2)
    assert inventory.by_name["embed"].layer is None
    assert inventory.by_name["layers"].layer is None


def test_two_stacks_count_apart() -> None:
    """Encoder and decoder have their own indices."""
    inventory = inspect_model(small("t5", meta=True, num_layers=2, num_decoder_layers=3))
    assert inventory.by_name["encoder.block.1.layer.0.SelfAttention.q"].layer == LayerIndex(1, 2)
    assert inventory.by_name["decoder.block.2.layer.0.SelfAttention.q"].layer == LayerIndex(2, 3)


def test_buffers_are_those_that_a_checkpoint_holds() -> None:
    """Persistent buffers are listed as buffers, the others not at all."""
    model = nn.BatchNorm1d(3)
    model.register_buffer("scratch", torch.zeros(2), persistent=False)
    model.register_buffer("nothing", None)
    info = inspect_model(model).by_name[""]
    assert {each.name: each.buffer for each in info.tensors} == {
        "weight": False, "bias": False, "running_mean": True, "running_var": True, "num_batches_tracked": True,
    }  # fmt: skip
    assert info.parameters == 6


def test_a_module_may_contain_itself() -> None:
    """Circular registrations are walked once."""
    model = nn.Sequential(nn.Linear(2, 2))
    model.add_module("me", model)
    model[0].add_module("parent", model)
    inventory = inspect_model(model)
    assert [info.name for info in inventory.modules] == ["", "0"]
    assert inventory.by_name[""].aliases == ("0.parent", "me")


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Linear(2, 2), "linear"),
        (nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2), "linear"),
        (nn.Embedding(2, 2), "embedding"),
        (nn.EmbeddingBag(2, 2), "embedding"),
        (nn.Conv2d(2, 2, 1), "convolution"),
        (nn.LayerNorm(2), "other"),
        (nn.Bilinear(2, 2, 2), "other"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else each,
)
def test_kinds(module: nn.Module, kind: str) -> None:
    """How a module uses its weight, subclasses included."""
    assert inspect_model(module).by_name[""].kind == kind


def test_conv1d_is_told_by_its_module() -> None:
    """transformers' class, not any other of that name."""

    class Conv1D(nn.Module): ...

    assert inspect_model(small("gpt2", meta=True)).by_name["transformer.h.0.attn.c_attn"].kind == "conv1d"
    assert not is_conv1d(Conv1D())


def test_a_linear_with_children_is_no_plain_linear() -> None:
    """An adapter or a parametrization inside would be lost by a swap."""
    adapted = nn.Linear(4, 4)
    adapted.add_module("lora", nn.Linear(4, 1))
    parametrized = nn.utils.parametrize.register_parametrization(nn.Linear(4, 4), "weight", nn.Identity())
    model = nn.ModuleDict({"adapted": adapted, "parametrized": parametrized})
    plan = rulequant.torch.plan(model, rules_with(quantizable_types=["*Linear"]))
    assert plan.by_name["adapted"].detail == "bnb_4bit has no layer for Linear"
    assert plan.by_name["parametrized"].detail == "bnb_4bit has no layer for ParametrizedLinear"
    assert plan.by_name["adapted.lora"].quantize


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_meta_and_real_models_have_the_same_inventory(kind: str) -> None:
    """No weight is read, so it does not matter whether there are any."""
    assert inspect_model(small(kind, meta=True)) == inspect_model(small(kind))


def test_nothing_is_changed() -> None:
    """Parameters, buffers, modes, hooks and the state of the random generators are what they were."""
    model = small("t5").train()
    model.encoder.block[0].eval()
    before = {name: (id(each), each._version) for name, each in model.state_dict(keep_vars=True).items()}
    modes = [module.training for module in model.modules()]
    attributes = [sorted(vars(module)) for module in model.modules()]
    random = torch.get_rng_state()
    rulequant.torch.plan(model, rules_with())
    assert {name: (id(each), each._version) for name, each in model.state_dict(keep_vars=True).items()} == before
    assert [module.training for module in model.modules()] == modes
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_default_dtype() == torch.float32


def test_a_plain_module_needs_no_config() -> None:
    """Without a config there is no model_type; the class is the architecture."""
    inventory = inspect_model(Shared(), name="mine")
    assert (inventory.model, inventory.model_type, inventory.architecture) == ("mine", None, "Shared")
    assert set(inventory.versions) == {"torch"}


@pytest.mark.parametrize(
    "config", [{"model_type": "x"}, SimpleNamespace(model_type=3), SimpleNamespace(model_type=""), None], ids=repr
)
def test_a_foreign_config_is_no_model_type(config: Any) -> None:
    """Whatever else a model calls its config is left alone."""
    model = Shared()
    model.config = config
    assert inspect_model(model).model_type is None


def test_versions_name_the_libraries() -> None:
    """The inventory says which transformers it was made with."""
    assert set(inspect_model(small("bert-base", meta=True)).versions) == {"torch", "transformers"}


def test_a_quantized_model_stays_as_it_is() -> None:
    """Layers of bitsandbytes inside are no quantizable type; listing them does not encode them twice."""
    model = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64)})
    rulequant.torch.apply(model, rules_with(skip_modules=["b"]))
    plan = rulequant.torch.plan(model, rules_with(quantizable_types=["Linear*"]))
    assert plan.by_name["a"].type == "Linear4bit"
    assert plan.by_name["a"].detail == "bnb_4bit cannot encode uint8 weights"
    assert plan.by_name["b"].quantize
    assert plan.by_name["a"].bytes_before == 64 * 64 // 2 + 64 * 4
    eight = nn.Sequential(bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False).to("cpu"))
    listed = rulequant.torch.plan(eight, rules_with(quantizable_types=["Linear8bitLt"]))
    assert listed.by_name["0"].detail == "bnb_4bit cannot encode int8 weights"


@pytest.mark.parametrize("module", [nn.LazyLinear(3), nn.LazyBatchNorm1d()], ids=["parameter", "buffer"])
def test_a_lazy_module_is_refused(module: nn.Module) -> None:
    """A tensor without a shape cannot be planned for."""
    with pytest.raises(ModelError, match=r"`0\.\w+` has no shape yet.*\n  run the model once before"):
        inspect_model(nn.Sequential(module))


def test_with_dtypes_changes_the_named_tensors() -> None:
    """The dtypes of a checkpoint replace those of the model, by full name."""
    inventory = with_dtypes(inspect_model(Shared()), {"first.weight": "bfloat16", "nobody.weight": "int8"})
    assert [each.dtype for each in inventory.by_name["again"].tensors] == ["bfloat16", "float32"]
    alone = with_dtypes(inspect_model(nn.Linear(2, 2)), {"bias": "float16"})
    assert [each.dtype for each in alone.by_name[""].tensors] == ["float32", "float16"]


def test_deepseek_v3_in_full_size() -> None:
    """671 billion parameters on meta: every module, in seconds."""
    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(DeepseekV3Config())
    started = time.perf_counter()
    inventory = inspect_model(model)
    assert time.perf_counter() - started < 10
    assert 6.7e11 < inventory.parameters < 6.8e11
    assert inventory.by_name["model.layers.60.self_attn.o_proj"].layer == LayerIndex(60, 61)
    assert names(inventory, "output_embedding") == ["lm_head"]
