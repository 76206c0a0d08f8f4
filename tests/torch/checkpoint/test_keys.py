"""Source keys are mapped as transformers maps them; what it would pass over in silence is an error."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from tiny_models import ARCHITECTURES

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.keys import map_keys
from rulequant.torch.skeleton import Skeleton


def skeleton_of(name: str, model_class: str | None = None, **changes: Any) -> Skeleton:
    """A tiny architecture on meta, in its own class or in another one for the same config."""
    usual, config_class, settings = ARCHITECTURES[name]
    config = getattr(transformers, config_class)(**(settings | changes))
    with torch.device("meta"):
        model = getattr(transformers, model_class or usual)(copy.deepcopy(config))
    return Skeleton(name, model, torch.bfloat16)


def saved_keys(name: str, model_class: str | None = None, **changes: Any) -> list[str]:
    """The keys of a saved checkpoint: no tied copies."""
    skeleton = skeleton_of(name, model_class, **changes)
    tied = getattr(skeleton.model, "all_tied_weights_keys", {})
    return [key for key in skeleton.tensors if key not in tied]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_checkpoint_maps_onto_itself(name: str) -> None:
    """Every key of the model's own checkpoint is kept under its name."""
    keys = saved_keys(name)
    mapped = map_keys(skeleton_of(name), keys)
    assert mapped.targets == {key: key for key in keys}
    assert (mapped.dropped, mapped.converted, mapped.copies) == ({}, {}, {})


@pytest.mark.parametrize(
    ("model_class", "saved", "target"),
    [
        (
            "BertModel",
            "bert.encoder.layer.0.attention.self.query.weight",
            "encoder.layer.0.attention.self.query.weight",
        ),
        ("BertForMaskedLM", "encoder.layer.0.output.dense.bias", "bert.encoder.layer.0.output.dense.bias"),
    ],
    ids=["prefix of the checkpoint is dropped", "prefix of the model is added"],
)
def test_base_prefix(model_class: str, saved: str, target: str) -> None:
    """A base model's prefix is dropped or added, as transformers does it; the rest of the checkpoint fits as it is."""
    skeleton = skeleton_of("bert", model_class)
    keys = [key for key in skeleton.tensors if key != target and key not in skeleton.model.all_tied_weights_keys]
    assert map_keys(skeleton, [*keys, saved]).targets[saved] == target


def test_whole_checkpoint_with_the_prefix() -> None:
    """All keys of a bare model saved as a part of a larger one map; nothing is missing."""
    skeleton = skeleton_of("bert", "BertModel")
    mapped = map_keys(skeleton, [f"bert.{key}" for key in skeleton.tensors])
    assert set(mapped.targets.values()) == set(skeleton.tensors)


@pytest.mark.parametrize("norm", ["gamma", "beta"])
def test_old_names_of_layer_norm(norm: str) -> None:
    """transformers still renames TensorFlow's gamma and beta; the key itself stays as it is."""
    new = {"gamma": "weight", "beta": "bias"}[norm]
    keys = [key.replace(f"LayerNorm.{new}", f"LayerNorm.{norm}") for key in saved_keys("bert")]
    mapped = map_keys(skeleton_of("bert"), keys)
    old = f"bert.embeddings.LayerNorm.{norm}"
    assert mapped.targets[old] == f"bert.embeddings.LayerNorm.{new}"


@pytest.mark.parametrize(
    ("name", "leftover"),
    [
        ("bert", "bert.embeddings.position_ids"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("llama", "model.rotary_emb.inv_freq"),
        ("t5", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"),
    ],
    ids=["position_ids", "inv_freq of a layer", "inv_freq of the model", "what the class declares"],
)
def test_leftovers_of_old_versions_are_dropped(name: str, leftover: str) -> None:
    """What the model class ignores while loading is not written, and the reason says so."""
    mapped = map_keys(skeleton_of(name), [*saved_keys(name), leftover])
    assert mapped.dropped == {leftover: f"{ARCHITECTURES[name][0]} ignores it"}
    assert leftover not in mapped.targets


def test_tied_copy_is_dropped_once() -> None:
    """Of two keys for one tied weight the first is written; the other is a copy, to be compared."""
    mapped = map_keys(skeleton_of("llama-tied"), [*saved_keys("llama-tied"), "lm_head.weight"])
    assert mapped.copies == {"lm_head.weight": "model.embed_tokens.weight"}
    assert mapped.dropped == {"lm_head.weight": "tied to model.embed_tokens.weight"}
    assert "lm_head.weight" not in mapped.targets


def test_three_tied_copies() -> None:
    """Of more than two tied weights one is written too."""
    keys = [*saved_keys("t5"), "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
    mapped = map_keys(skeleton_of("t5"), keys)
    assert set(mapped.copies.values()) == {"shared.weight"}
    assert len(mapped.copies) == 3


def test_only_the_tied_target() -> None:
    """A checkpoint that holds lm_head and no embed_tokens is complete where the two are tied."""
    keys = [key for key in saved_keys("llama-tied") if key != "model.embed_tokens.weight"]
    mapped = map_keys(skeleton_of("llama-tied"), [*keys, "lm_head.weight"])
    assert mapped.targets["lm_head.weight"] == "lm_head.weight"
    assert mapped.dropped == {}


def test_neither_of_the_tied() -> None:
    """With both gone the embedding is missing."""
    keys = [key for key in saved_keys("llama-tied") if key != "model.embed_tokens.weight"]
    with pytest.raises(CheckpointError, match=r"`lm_head\.weight`, `model\.embed_tokens\.weight` of LlamaForCausalLM"):
        map_keys(skeleton_of("llama-tied"), keys)


def test_missing_weight_is_named() -> None:
    """A weight in no shard would be left random."""
    gone = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=r"llama: `model\.layers\.1\.mlp\.up_proj\.weight` of LlamaFor") as raised:
        map_keys(skeleton_of("llama"), [key for key in saved_keys("llama") if key != gone])
    assert "is in no shard" in raised.value.message
    assert "incomplete" in str(raised.value.remedy)


def test_many_missing_are_counted() -> None:
    """Three are named, the rest is a number."""
    with pytest.raises(CheckpointError, match=r"`lm_head\.weight`, .* and 18 more tensors of .* are in no shard"):
        map_keys(skeleton_of("llama"), [])


def test_extra_tensors_are_named() -> None:
    """A tensor that the model has no place for is an error, with control characters escaped."""
    with pytest.raises(
        CheckpointError, match=r"LlamaForCausalLM does not have `evil\\x1b\[2J\.weight`, but the shards"
    ):
        map_keys(skeleton_of("llama"), [*saved_keys("llama"), "evil\x1b[2J.weight"])


@pytest.mark.parametrize(
    ("declared", "saved_as", "expected"),
    [
        ("BertModel", "BertForMaskedLM", r"`pooler.*in no shard; BertModel does not have `cls\."),
        ("BertForMaskedLM", "BertModel", r"`cls\..* are in no shard; .* does not have `pooler"),
    ],
    ids=["bare model, weights with a head", "head, weights of the bare model"],
)
def test_weights_of_another_class(declared: str, saved_as: str, expected: str) -> None:
    """Both sides of the misfit are told, and the class that the weights are of."""
    with pytest.raises(CheckpointError, match=expected) as raised:
        map_keys(skeleton_of("bert", declared), saved_keys("bert", saved_as))
    assert raised.value.remedy == f"all of it fits {saved_as}: make that the `architectures` of config.json"


def test_weights_of_the_pretraining_class() -> None:
    """The best-known BERT checkpoint names BertForMaskedLM, and holds what BertForPreTraining has."""
    with pytest.raises(CheckpointError, match=r"does not have .*seq_relationship") as raised:
        map_keys(skeleton_of("bert"), saved_keys("bert", "BertForPreTraining"))
    assert "fits BertForPreTraining" in str(raised.value.remedy)


@pytest.mark.parametrize(
    "second",
    ["encoder.layer.0.output.dense.weight", "bert.encoder.layer.0.output.LayerNorm.gamma"],
    ids=["with and without prefix", "old and new name"],
)
def test_two_keys_for_one_tensor(second: str) -> None:
    """A loader would take either of them, and not say which."""
    with pytest.raises(CheckpointError, match=r"` and `.*` are both `bert\.encoder\.layer\.0\.output") as raised:
        map_keys(skeleton_of("bert"), [*saved_keys("bert"), second])
    assert "remove one" in str(raised.value.remedy)
