"""transformers, given the skip list, quantizes what the plan quantizes: asked of its own code, not of a copy."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit
from tiny_models import ARCHITECTURES, DECODER
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import HfQuantizer

from rulequant.errors import ModelError
from rulequant.torch.checkpoint import skiplist
from rulequant.torch.checkpoint.siblings import sibling_models
from rulequant.torch.checkpoint.skiplist import stock_skip_list, vllm_dispute
from rulequant.vllm import skipped_by_vllm

AWKWARD = (
    "proj",
    "q_proj",
    "o_proj",
    "1",
    "11",
    "fc1",
    "a+b",
    "x*",
    "[0]",
    "(",
    "^a",
    "a$",
    "{2}",
    "a|b",
    "\\d",
    "mlp",
)


def tree(names: list[str]) -> nn.Module:
    """A model with a Linear layer under each of the dotted names."""
    root = nn.Module()
    for name in names:
        parent = root
        *parts, last = name.split(".")
        for part in parts:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        with torch.device("meta"):
            parent.add_module(last, nn.Linear(2, 2))
    return root


def stock(model: nn.Module, skip: list[str]) -> set[str]:
    """The modules that transformers replaces, given a list."""
    keep = getattr(model, "_keep_in_fp32_modules", None)
    patterns = HfQuantizer.get_modules_to_not_convert(model, skip, keep)
    config = BitsAndBytesConfig(load_in_4bit=True)
    replaced = replace_with_bnb_linear(copy.deepcopy(model), patterns, config, pre_quantized=True)
    return {name for name, module in replaced.named_modules() if isinstance(module, Linear4bit)}


def built(name: str, model_class: str | None = None, **changes: Any) -> Any:
    usual, config_class, settings = ARCHITECTURES[name]
    with torch.device("meta"):
        return getattr(transformers, model_class or usual)(getattr(transformers, config_class)(**(settings | changes)))


def layers_of(model: nn.Module, *endings: str) -> set[str]:
    """The Linear layers whose names end in one of these."""
    return {name for name, each in model.named_modules() if type(each) is nn.Linear and name.endswith(endings)}


@pytest.mark.parametrize(
    ("quantized", "kept"),
    [
        (["a.q_proj", "a.k_proj"], ["proj"]),
        (["layers.11.fc"], ["layers.1.fc"]),
        (["layers.13.fc1"], ["layers.3.fc1"]),
        (["layers.0.fc", "xlayers.1.fc"], ["layers.1.fc"]),
        (["aXb.fc"], ["a.fc", "a.b"]),
        (["blocks.a.fc"], ["blocks.a+b.fc", "blocks.c+d"]),
        (["blocks.a.fc"], ["blocks.(.fc", "blocks.*x"]),
        (["blocks.[0].fc"], ["blocks.0.fc"]),
        (["encoder.head"], ["head"]),
        (["head.x"], ["encoder.head"]),
    ],
    ids=[
        "end of another name", "start of another name", "end with a number", "end of a path", "dot as any character",
        "plus", "no regular expression", "character class", "head inside", "start inside",
    ],
)  # fmt: skip
def test_awkward_names(quantized: list[str], kept: list[str]) -> None:
    """Names that are parts of other names, or mean something to a regular expression."""
    model = tree([*quantized, *kept])
    assert stock(model, stock_skip_list(model, set(quantized))) == set(quantized)


def test_random_names() -> None:
    """Any choice among any names can be told."""
    chance = random.Random(0)
    for _ in range(150):
        parents = [".".join(chance.choices(AWKWARD, k=chance.randint(0, 2))) for _ in range(4)]
        names = {f"{parent}.{last}".lstrip(".") for parent in parents for last in chance.sample(AWKWARD, 3)}
        leaves = sorted(each for each in names if not any(other.startswith(f"{each}.") for other in names))
        model, quantized = tree(leaves), set(chance.sample(leaves, chance.randint(1, len(leaves))))
        assert stock(model, stock_skip_list(model, quantized)) == quantized, (leaves, quantized)


def test_subtree_is_one_entry() -> None:
    """A tower that stays as it is is told by its root."""
    model = tree(["visual.blocks.0.fc1", "visual.blocks.1.fc1", "visual.merger", "model.fc1"])
    assert stock_skip_list(model, {"model.fc1"}) == ["visual"]


def test_recurring_layers_are_one_entry() -> None:
    """A layer that stays as it is everywhere is told by its last component, which vLLM compares too."""
    model = built("llama", num_hidden_layers=4)
    quantized = layers_of(model, "_proj") - layers_of(model, "down_proj")
    assert stock_skip_list(model, quantized) == ["down_proj", "lm_head", "score"]


def test_recurring_subtrees_are_few_entries() -> None:
    """A module that stays as it is in every layer is told by what is in it, and by vLLM's name for the merged ones."""
    model = built("llama", num_hidden_layers=8)
    entries = stock_skip_list(model, layers_of(model, "gate_proj", "up_proj", "down_proj"))
    assert sorted(entries) == ["k_proj", "lm_head", "o_proj", "q_proj", "qkv_proj", "score", "v_proj"]


@pytest.mark.parametrize(
    ("kept", "whole", "told"),
    [
        (("q_proj", "k_proj", "v_proj"), "qkv_proj", True),
        (("q_proj", "k_proj"), "qkv_proj", False),
        (("gate_proj", "up_proj"), "gate_up_proj", True),
        (("gate_proj",), "gate_up_proj", False),
    ],
    ids=["q, k and v", "q and k", "gate and up", "gate"],
)
def test_merged_layers_of_vllm(kept: tuple[str, ...], whole: str, told: bool) -> None:
    """vLLM looks up merged layers by the name of the whole, in full or as a component."""
    model = built("llama")
    first = layers_of(model, *(f"layers.0.{each}" for each in ("self_attn", "mlp"))) | {
        name for name in layers_of(model, *kept) if ".layers.0." in name
    }
    entries = stock_skip_list(model, layers_of(model, "_proj") - first)
    parent = "mlp" if whole == "gate_up_proj" else "self_attn"
    assert (f"model.layers.0.{parent}.{whole}" in entries) is told
    assert (f"layers.0.{parent}.{whole}" in entries) is told


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "opt", "phi3", "gpt_neox"])
def test_vllm_decides_alike(name: str) -> None:
    """Read literally, the list says the same of every module, of one layer that stays as of a kind that does."""
    model = built(name)
    linear = {each for each, module in model.named_modules() if type(module) is nn.Linear}
    heads = ("lm_head", "embed_out", "wo", "score", "decoder", "seq_relationship")
    last = sorted(each.rpartition(".")[2] for each in linear)[0]
    for kept in (set(), layers_of(model, last), {each for each in linear if ".0." in each}):
        quantized = {each for each in linear - kept if not each.endswith(heads) and "cls." not in each}
        skip = stock_skip_list(model, quantized)
        assert stock(model, skip) == quantized
        assert vllm_dispute(model, quantized, skip) is None, skip


def with_images() -> nn.Module:
    """A tiny LLaVA on meta."""
    text = transformers.LlamaConfig(**DECODER)
    vision = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4
    )
    with torch.device("meta"):
        return transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(vision_config=vision, text_config=text)
        )


def test_names_of_models_with_images() -> None:
    """vLLM calls the parts of such a model otherwise, its merged layers too, and finds those names in the list."""
    model = with_images()
    language_model = {name for name in layers_of(model, "_proj") if name.startswith("model.language_model.")}
    quantized = {name for name in language_model if ".layers.0.self_attn." not in name}
    assert 0 < len(quantized) < len(language_model)
    skip = stock_skip_list(model, quantized)
    assert stock(model, skip) == quantized
    assert vllm_dispute(model, quantized, skip) is None
    attention = "language_model.model.layers.0.self_attn"
    assert all(skipped_by_vllm(f"{attention}.{each}", skip) for each in ("qkv_proj", "o_proj"))
    assert skipped_by_vllm("vision_tower.vision_model.encoder.layers.0.mlp.fc1", skip)
    assert skipped_by_vllm("multi_modal_projector.linear_1", skip)
    assert skipped_by_vllm("language_model.lm_head", skip)
    assert not any(skipped_by_vllm(f"language_model.model.layers.1.{each}.x", skip) for each in ("self_attn", "mlp"))


def test_plain_names_beside_expressions() -> None:
    """Where transformers needs a regular expression, vLLM finds the plain names, as far as they do no harm."""
    model = tree(["a.proj", "a.x_proj", "b.q_proj"])
    skip = stock_skip_list(model, {"a.x_proj", "b.q_proj"})
    assert vllm_dispute(model, {"a.x_proj", "b.q_proj"}, skip) is None
    awkward = tree(["head", "encoder.head"])
    skip = stock_skip_list(awkward, {"encoder.head"})
    assert skip == ["^head"]
    assert vllm_dispute(awkward, {"encoder.head"}, skip) == "head"


def test_many_layers_are_few_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what Python keeps compiled, layers are alternatives of one regular expression; it says the same."""
    model = built("llama", num_hidden_layers=12)
    odd = {name for name in layers_of(model, "_proj") if int(name.split(".")[2]) % 2}
    quantized = odd | layers_of(model, "down_proj", "k_proj")
    plain = stock_skip_list(model, quantized)
    monkeypatch.setattr(skiplist, "_MAX_ENTRIES", 20)
    short = stock_skip_list(model, quantized)
    assert stock(model, plain) == stock(model, short) == quantized
    assert len(plain) > 40
    assert len(short) < 20
    assert r"^model\.layers\.(?:0|2|4|6|8|10)\.mlp\.up_proj" in short
    assert {type(each) for each in short} == {str}


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "t5", "opt", "phi3", "gpt_neox"])
def test_other_classes_decide_alike(name: str) -> None:
    """The bare model and those with other heads quantize the same layers, and none that the checkpoint lacks."""
    model = built(name)
    linear = {each for each, module in model.named_modules() if type(module).__name__ in {"Linear", "Conv1D"}}
    quantized = {each for each in linear if not each.endswith(("lm_head", "embed_out", "wo")) and "cls." not in each}
    quantized -= {each for each in linear if ".0." in each and each.endswith(("down_proj", "fc2", "output.dense"))}
    skip = stock_skip_list(model, quantized)
    assert stock(model, skip) == quantized
    prefix = f"{model.base_model_prefix}."
    for sibling in sibling_models(model):
        if type(sibling).__name__ == "LlamaForQuestionAnswering":
            continue  # it calls its base model `transformer`, and so finds none of the keys
        theirs = {each.removeprefix(f"{sibling.base_model_prefix}.") for each in stock(sibling, skip)}
        missing = {name for name, each in sibling.named_modules() if type(each).__name__ in {"Linear", "Conv1D"}}
        present = {each.removeprefix(f"{sibling.base_model_prefix}.") for each in missing}
        assert theirs == {each.removeprefix(prefix) for each in quantized} & present, type(sibling).__name__


def test_base_model_told_to_the_classes_on_top() -> None:
    """From the bare model's checkpoint the prefix is added."""
    model = built("bert", "BertModel")
    quantized = layers_of(model, "query", "key", "value")
    skip = stock_skip_list(model, quantized)
    assert stock(model, skip) == quantized
    assert stock(built("bert", "BertForSequenceClassification"), skip) == {f"bert.{each}" for each in quantized}


def test_kept_in_float32_is_no_dispute() -> None:
    """What transformers keeps in float32 anyway cannot be quantized."""
    model = built("t5")
    with pytest.raises(ModelError, match=r"decide differently about encoder\.block\.0\.layer\.1\.DenseReluDense\.wo"):
        stock_skip_list(model, layers_of(model, ".wo"))


def test_other_type_is_refused() -> None:
    """A subclass of Linear is none of stock's business."""

    class Own(nn.Linear):
        pass

    model = tree(["a"])
    model.b = Own(2, 2)
    with pytest.raises(ModelError, match=r"does not make a quantized layer of b \(Own\)"):
        stock_skip_list(model, {"a", "b"})


def test_alias_is_refused() -> None:
    """transformers replaces a shared module only under its first name."""
    model = tree(["a"])
    model.b = model.a
    with pytest.raises(ModelError, match="replaces a only there, and not as b"):
        stock_skip_list(model, {"a"})
    assert stock_skip_list(model, set()) == ["a"]
