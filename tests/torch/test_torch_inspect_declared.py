"""What a model declares of itself: output embeddings by identity, heads, and what is kept in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import rules_with, small
from torch import nn
from transformers.quantizers.quantizers_utils import should_convert_module

import rulequant.torch
from rulequant.inventory import Inventory
from rulequant.torch.inspect import inspect_model


def names(inventory: Inventory, flag: str) -> list[str]:
    """The modules for which a flag is set."""
    return [info.name for info in inventory.modules if getattr(info, flag)]


class WithOutput(nn.Module):
    """Its output embedding has a name that nobody would guess, and is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.decoder = nn.ModuleDict({"out": nn.Linear(4, 7, bias=False)})
        self.decoder["out"].weight = self.embed.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder["out"]


def test_the_output_embedding_is_found_by_identity() -> None:
    """What `get_output_embeddings()` returns is kept under any name, and so is everything tied to it."""
    inventory = inspect_model(WithOutput())
    assert names(inventory, "output_embedding") == ["decoder.out"]
    assert names(inventory, "shares_output_embedding") == ["embed"]
    rules = rules_with(quantizable_types=["Linear", "Embedding"])
    plan = rulequant.torch.plan(WithOutput(), rules)
    assert plan.by_name["decoder.out"].reason == "output_embedding"
    assert plan.by_name["embed"].reason == "output_embedding"


def test_an_inner_model_keeps_its_output_embedding() -> None:
    """A model wrapped into another, of whatever class, is asked too."""
    assert names(inspect_model(nn.ModuleDict({"inner": WithOutput()})), "output_embedding") == ["inner.decoder.out"]


class NamedOutput(nn.Module):
    """A model whose `get_output_embeddings` does what the test says."""

    def __init__(self, answer: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.a, self.b, self.answer = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), answer

    def get_output_embeddings(self) -> Any:
        return self.answer(self)


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lambda model: None, []),
        (lambda model: "a", []),
        (lambda model: [model.a, model.b], ["a", "b", "b.0"]),
        (lambda model: model.b, ["b", "b.0"]),
        (lambda model: _raise(NotImplementedError()), []),
        (lambda model: _raise(AttributeError("lm_head")), []),
        (lambda model: nn.Linear(2, 2), []),
    ],
    ids=["none", "text", "list", "container", "not-implemented", "attribute-error", "of-no-model"],
)
def test_answers_of_get_output_embeddings(answer: Callable[[nn.Module], Any], found: list[str]) -> None:
    """Lists and containers count with all they hold; none, or an error for "I have none", is none."""
    assert names(inspect_model(NamedOutput(answer)), "output_embedding") == found


@pytest.mark.parametrize(
    ("kind", "outputs", "heads"),
    [
        ("llama", ["lm_head"], []),
        ("llama-tied", ["lm_head"], []),
        ("bert", ["cls.predictions.decoder"], ["cls.predictions.transform.dense"]),
        ("bert-base", [], []),
        ("bert-classifier", [], ["classifier"]),
        ("bert-qa", [], ["qa_outputs"]),
        ("llama-score", [], ["score"]),
        ("llama-qa", [], ["qa_outputs"]),
        ("roberta-classifier", [], ["classifier.dense", "classifier.out_proj"]),
        ("vit-classifier", [], ["classifier"]),
        ("t5", ["lm_head"], []),
        ("gpt2", ["lm_head"], []),
        ("wav2vec2", [], ["lm_head"]),
    ],
)
def test_outputs_of_transformers_models(kind: str, outputs: list[str], heads: list[str]) -> None:
    """Output embeddings and heads of the usual classes; base models have neither."""
    inventory = inspect_model(small(kind, meta=True))
    found = [name for name in names(inventory, "output_head") if not inventory.by_name[name].output_embedding]
    assert (names(inventory, "output_embedding"), found) == (outputs, heads)


def test_tied_input_embeddings_share_the_output() -> None:
    """In a tied llama the input embedding is the output embedding's parameter."""
    inventory = inspect_model(small("llama-tied"))
    assert names(inventory, "shares_output_embedding") == ["model.embed_tokens"]
    assert inventory.by_name["lm_head"].tensors[0].tied_to == "model.embed_tokens.weight"


def test_a_wrapped_model_keeps_its_heads_and_declarations() -> None:
    """Heads, and what is declared as float32, do not depend on the model being the root."""
    wrapper = nn.ModuleDict({"classifier": small("bert-classifier", meta=True), "t5": small("t5", meta=True)})
    inventory = inspect_model(wrapper)
    assert names(inventory, "output_head") == ["classifier.classifier"]
    assert "t5.encoder.block.0.layer.1.DenseReluDense.wo" in names(inventory, "keep_in_fp32")


def test_a_plain_module_has_no_heads() -> None:
    """Of a class that is not transformers' nothing is known but what it declares."""

    class NetForImages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

    assert names(inspect_model(NetForImages()), "output_head") == []


@pytest.mark.parametrize("kind", ["t5", "llama", "bert", "wavlm", "deepseek_v3"])
def test_keep_in_fp32_agrees_with_transformers(kind: str) -> None:
    """The modules are those that transformers' own matcher picks for what the model declares."""
    model = small(kind, meta=True)
    declared = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    inventory = inspect_model(model)
    expected = [
        info.name for info in inventory.owners if declared and not should_convert_module(info.name, list(declared))
    ]
    assert names(inventory, "keep_in_fp32") == expected
    assert bool(expected) == (kind == "t5")


def test_t5_keeps_wo() -> None:
    """The module that T5 declares stays, with that reason."""
    plan = rulequant.torch.plan(small("t5", meta=True), rules_with())
    kept = [each for each in plan.decisions if each.reason == "keep_in_fp32"]
    assert {each.name.rpartition(".")[2] for each in kept} == {"wo"}
    assert len(kept) == 4


def test_a_compiled_model_is_looked_into() -> None:
    """`torch.compile` wraps the model; heads and outputs are found inside."""
    model = torch.compile(small("bert-classifier", meta=True), backend="eager")
    assert names(inspect_model(model), "output_head") == ["_orig_mod.classifier"]
