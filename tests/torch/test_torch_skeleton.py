"""Models on meta from what the user calls them, and one clear message for each way in which that fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from small_models import SMALL, small

from rulequant.errors import CheckpointError, ModelError
from rulequant.torch.skeleton import build_skeleton

BERT = {"model_type": "bert", "architectures": ["BertModel"], **SMALL["bert"][2]}


def folder_with(tmp_path: Path, config: Any = None, **changes: Any) -> str:
    """A folder whose config.json is BERT's with some keys changed (None takes one out), or a text of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    data = {key: value for key, value in {**BERT, **changes}.items() if value is not None}
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config or data))
    return str(folder)


def test_a_folder_becomes_its_class_on_meta(tmp_path: Path) -> None:
    """config.json alone suffices: the class of `architectures`, on meta, in eval mode, under the user's name for it."""
    name = folder_with(tmp_path)
    skeleton = build_skeleton(name)
    assert type(skeleton.model) is transformers.BertModel
    assert {each.device.type for each in skeleton.model.parameters()} == {"meta"}
    assert not any(module.training for module in skeleton.model.modules())
    assert (skeleton.name, skeleton.folder) == (name, Path(name))
    inventory = skeleton.inventory()
    assert (inventory.model, inventory.model_type, inventory.architecture) == (name, "bert", "BertModel")


def test_a_relative_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name is a folder where there is one, and not a Hub id."""
    folder_with(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert build_skeleton("model").folder == Path("model")


@pytest.mark.parametrize("kind", ["llama-tied", "t5", "bert-classifier", "wavlm"])
def test_a_saved_model_is_built_again(kind: str, tmp_path: Path) -> None:
    """Names, shapes and dtypes are those of the model that `from_pretrained` loads."""
    model = small(kind, dtype=torch.float16)
    model.save_pretrained(tmp_path)
    skeleton = build_skeleton(str(tmp_path))
    loaded = type(model).from_pretrained(tmp_path)
    assert skeleton.dtype == loaded.dtype
    expected = {name: (each.shape, each.dtype) for name, each in loaded.state_dict().items()}
    assert {name: (each.shape, skeleton.stored_dtype(name)) for name, each in skeleton.tensors.items()} == expected


def test_t5_stores_wo_in_float32(tmp_path: Path) -> None:
    """In float16 T5 keeps wo in float32, as transformers plans; the inventory counts four bytes for it."""
    small("t5", dtype=torch.float16).save_pretrained(tmp_path)
    info = build_skeleton(str(tmp_path)).inventory().by_name["encoder.block.0.layer.1.DenseReluDense.wo"]
    assert [each.dtype for each in info.tensors] == ["float32"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gpt2", "n_layer": 1}, "GPT2LMHeadModel"),
        ({"model_type": "vit", "num_hidden_layers": 1}, "ViTModel"),
        ({"model_type": "funnel", "architectures": []}, "FunnelModel"),
        ({"model_type": "t5", "num_layers": 1, "architectures": None}, "T5Model"),
    ],
    ids=["causal", "base", "first-of-two", "null"],
)
def test_a_config_without_architectures(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    """The causal language model of the type where there is one, else its base model."""
    assert type(build_skeleton(folder_with(tmp_path, config)).model).__name__ == expected


@pytest.mark.parametrize(
    ("declared", "stored", "expected"),
    [
        ("bfloat16", torch.float16, torch.bfloat16),
        (None, torch.float16, torch.float16),
        (None, None, torch.float32),
        ("float64", None, torch.float64),
    ],
    ids=["config", "checkpoint", "default", "config-float64"],
)
def test_the_dtype(tmp_path: Path, declared: str | None, stored: torch.dtype | None, expected: torch.dtype) -> None:
    """The config's dtype, else that of the first float tensor, else float32; torch's default is left alone."""
    name = folder_with(tmp_path, dtype=declared)
    if stored:
        tensors = {"a.ids": torch.zeros(2, dtype=torch.int64), "b.weight": torch.zeros(2, dtype=stored)}
        save_file(tensors, Path(name) / "model.safetensors", metadata={"format": "pt"})
    skeleton = build_skeleton(name)
    assert skeleton.dtype == expected
    assert {each.dtype for each in skeleton.model.parameters()} == {expected}
    assert skeleton.model.config.dtype == expected
    assert torch.get_default_dtype() == torch.float32


def test_the_old_name_of_dtype(tmp_path: Path) -> None:
    """`torch_dtype`, as older checkpoints have it."""
    assert build_skeleton(folder_with(tmp_path, torch_dtype="float16")).dtype == torch.float16


def test_damaged_weights_are_not_passed_over(tmp_path: Path) -> None:
    """Where the dtype has to come from the weights, and they cannot be read, that is said."""
    name = folder_with(tmp_path)
    (Path(name) / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        build_skeleton(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "brt"}, r"does not know the model_type 'brt'\n  did you mean `bert`"),
        ({"model_type": "qqqqqqqqq"}, r"'qqqqqqqqq'\n  transformers \S+ has \d+ types; a newer one may have it"),
        ({"model_type": None}, r"`model_type`, the name of an architecture of transformers, is missing"),
        ({"model_type": ["bert"]}, r"`model_type`, the name of an architecture of transformers, is \['bert'\]"),
        ({"architectures": ["BertModl"]}, r"has no model class 'BertModl'\n  did you mean `BertModel`"),
        ({"architectures": ["set_seed"]}, r"has no model class 'set_seed'"),
        ({"architectures": ["BertConfig"]}, r"has no model class 'BertConfig'"),
        ({"architectures": "BertModel"}, r"`architectures` in config.json is 'BertModel', not a list of class names"),
        ({"architectures": [3]}, r"`architectures` in config.json is \[3\]"),
        ({"architectures": ["LlamaForCausalLM"]}, r"the model cannot be built from its config: AttributeError"),
        ({"dtype": "int8"}, r"the config's dtype is torch.int8.*\n  one of float16, bfloat16, float32, float64"),
        ({"dtype": "float3"}, r"the config cannot be read: .*float3"),
        ({"hidden_size": "64"}, r"the config cannot be read: .*'hidden_size'.*expected int, got str"),
        ({"hidden_size": 65}, r"the model cannot be built from its config: ValueError: The hidden size \(65\)"),
        ({"hidden_size": -64}, r"the model cannot be built from its config: RuntimeError"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}, r"brings its own code\n  read it, then pass"),
    ],
    ids=[
        "unknown-type",
        "unlike-any-type",
        "no-type",
        "type-list",
        "typo",
        "no-class",
        "config-class",
        "text",
        "number",
        "other-family",
        "int8",
        "no-dtype",
        "wrong-type",
        "odd-size",
        "negative-size",
        "own-code",
    ],
)
def test_configs_that_cannot_be_built(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Each is one message that names the model and the value."""
    name = folder_with(tmp_path, **changes)
    with pytest.raises(ModelError, match=message) as raised:
        build_skeleton(name)
    assert name in raised.value.message
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read: Expecting value"),
        ("{", "cannot be read: Expecting property name"),
        ("[1]", "is not a JSON object"),
        ("[" * 200_000, "cannot be read: maximum recursion depth"),
        ('{"model_type": "bert", "hidden_size": ' + "9" * 5000 + "}", "cannot be read: Exceeds the limit"),
    ],
    ids=["empty", "cut-short", "list", "deep", "huge-number"],
)
def test_malformed_configs(tmp_path: Path, text: str, message: str) -> None:
    """A config.json that is no JSON object is named."""
    name = folder_with(tmp_path, text or " ")
    with pytest.raises(ModelError, match=rf"config\.json {message}"):
        build_skeleton(name)


def test_a_config_that_is_no_text(tmp_path: Path) -> None:
    """Neither bytes that are no UTF-8 nor a pipe, which would be waited for."""
    name = folder_with(tmp_path)
    path = Path(name) / "config.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ModelError, match=r"config\.json cannot be read: 'utf-8' codec"):
        build_skeleton(name)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ModelError, match=r"config\.json is not a file"):
        build_skeleton(name)


def test_a_composite_without_architectures(tmp_path: Path) -> None:
    """Types for which transformers has no default need the class named."""
    config = {"model_type": "encoder-decoder", "encoder": {"model_type": "bert"}, "decoder": {"model_type": "bert"}}
    with pytest.raises(ModelError, match=r"no default for encoder-decoder\n  add the class that the weights are of"):
        build_skeleton(folder_with(tmp_path, config))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./modle", r"\./modle: no such folder\n  did you mean `model`"),
        ("./nothing-like-it", r"no such folder\n  give a folder that holds config.json"),
        ("no/such/parent", r"no/such/parent: no such folder\n  no/such does not exist either\n  nor is it a component"),
        ("no/such/..", r"no/such/\.\.: no such folder\n  no/such does not exist either$"),
        ("a/b/c/d", r"a/b/c/d: no such folder\n  a/b/c does not exist either$"),
        ("model/config.json", r"model/config.json is a file, not a checkpoint folder\n  give the folder"),
        ("empty", r"empty holds no config.json\n  give the folder of a transformers checkpoint"),
        ("pipeline", r"pipeline is a pipeline of several models\n  give one of its component folders"),
        ("modle", r"modle is no folder here, and not in the Hub's cache.*\n  did you mean `model`"),
        (
            "some-org/some-model",
            r"some-org/some-model is no folder here, .*HF_HUB_OFFLINE is set.*\n  unset HF_HUB_OFFLINE",
        ),
        ("x" * 5000, r"x is no folder here, and cannot be the id of a model on the Hub"),
        (":", r": is no folder here, and cannot be the id of a model on the Hub"),
    ],
    ids=[
        "typo",
        "missing",
        "parent",
        "upwards",
        "deep",
        "file",
        "no-config",
        "pipeline",
        "bare-typo",
        "hub-offline",
        "long",
        "colon",
    ],
)
def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str) -> None:
    """What is wrong, and what may have been meant; nothing is asked of the network."""
    folder_with(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        build_skeleton(model)


def test_a_default_sized_model_is_cheap(tmp_path: Path) -> None:
    """DeepSeek-V3 from its config alone: no memory for 671 billion parameters."""
    config = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "dtype": "bfloat16"}
    inventory = build_skeleton(folder_with(tmp_path, config)).inventory()
    assert 6.7e11 < inventory.parameters < 6.8e11
