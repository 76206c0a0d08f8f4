"""What lies beside the weights comes along; weights of other formats, and what is written anew, do not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.sidefiles import copy_side_files, side_files, source_config, without_code, write_config


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def found(folder: Path) -> list[str]:
    return [each.as_posix() for each in side_files(folder)]


COPIED = [
    "1_Pooling/config.json",
    "LICENSE",
    "chat_template.jinja",
    "config_sentence_transformers.json",
    "generation_config.json",
    "images/architecture.png",
    "merges.txt",
    "modeling_own.py",
    "preprocessor_config.json",
    "spk_dict.pt",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.txt",
]


def test_side_files_are_copied(tmp_path: Path) -> None:
    """Tokenizer, generation config, own code, pictures and sub-folders, byte for byte."""
    source, output = tmp_path / "in", tmp_path / "out"
    fill(source, *COPIED)
    assert found(source) == COPIED
    assert [each.as_posix() for each in copy_side_files(source, output)] == COPIED
    assert {each: (output / each).read_text() for each in COPIED} == {each: each for each in COPIED}


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
        "flax_model.msgpack",
        "rust_model.ot",
        "model.gguf",
        "original/consolidated.00.pth",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "openvino/openvino_model.bin",
        "openvino/openvino_model.xml",
        "coreml/model.mlpackage/Manifest.json",
        "bert_model.ckpt.index",
        "bert_model.ckpt.data-00000-of-00001",
        "training_args.bin",
        "optimizer.pt",
        "MODEL.SAFETENSORS",
        ".gitattributes",
        ".git/config",
        ".cache/huggingface/x.json",
        "config.json",
        "README.md",
        "rulequant-plan.json",
        "rulequant-manifest.json",
        "a/b/c/too_deep.json",
    ],
)
def test_others_are_not(name: str, tmp_path: Path) -> None:
    """Weights of any format, hidden files, and what apply writes itself stay behind."""
    fill(tmp_path, name)
    assert found(tmp_path) == []


def test_modules_of_sentence_transformers_keep_their_weights(tmp_path: Path) -> None:
    """A Dense module has weights that are in no shard of the model; other folders lose theirs."""
    fill(tmp_path, "2_Dense/model.safetensors", "2_Dense/config.json", "3_Other/model.safetensors")
    modules = [{"path": "", "type": "Transformer"}, {"path": "1_Pooling"}, {"path": "2_Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert found(tmp_path) == ["2_Dense/config.json", "2_Dense/model.safetensors", "modules.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '{"a": 1}', '[{"path": 1}]', "[" * 100_000],
    ids=["empty", "cut off", "numbers", "an object", "a number for a path", "too deep"],
)
def test_modules_that_make_no_sense(text: str, tmp_path: Path) -> None:
    """A broken modules.json is copied, and means nothing."""
    fill(tmp_path, "2_Dense/model.safetensors")
    (tmp_path / "modules.json").write_text(text)
    assert found(tmp_path) == ["modules.json"]


def test_links_and_pipes(tmp_path: Path) -> None:
    """A linked folder is not followed, a pipe not opened; a link to a file elsewhere is refused by name."""
    source = tmp_path / "in"
    fill(tmp_path, "elsewhere/secret.txt")
    source.mkdir()
    (source / "folder").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(source / "pipe")
    (source / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert found(source) == []
    (source / "vocab.txt").symlink_to(tmp_path / "elsewhere" / "secret.txt")
    with pytest.raises(CheckpointError, match=r"in/vocab\.txt"):
        copy_side_files(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, r"\(gptq, by `quantization_config` in"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, r"\(fp8, by `text_config\.quantization_"),
        ({"a": {"b": {"quantization_config": {"bits": 4}}}}, r"\(an unnamed method, by `a\.b\.quantization_config`"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, r"\(compressed-tensors, by `compression"),
        ({"quantization_config": "awq"}, r"\(awq, by"),
        ({"quantization_config": {"quant_method": "\x1b[2J"}}, r"\(\\x1b\[2J, by"),
    ],
    ids=["at the top", "in the text config", "two levels down", "compressed-tensors", "a string", "control characters"],
)
def test_quantized_source_is_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Wherever config.json says so, and by which method."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"is already quantized {message}") as raised:
        source_config(tmp_path)
    assert raised.value.remedy == "give the checkpoint it was made from"


@pytest.mark.parametrize(
    "config",
    [{}, {"quantization_config": None}, {"text_config": {"quantization_config": {}}}],
    ids=["absent", "null", "empty"],
)
def test_source_that_is_not_quantized(config: dict[str, Any], tmp_path: Path) -> None:
    """An empty or absent setting means nothing."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert source_config(tmp_path) == config


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", "\xff", "[" * 100_000],
    ids=["empty", "a list", "null", "cut off", "no UTF-8", "too deep"],
)
def test_config_that_is_none(text: str, tmp_path: Path) -> None:
    """A config.json that cannot be read is named."""
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json (cannot be read|is not a JSON object)"):
        source_config(tmp_path)


def test_config_keeps_what_it_says(tmp_path: Path) -> None:
    """Keys and their order stay; dtype and quantization_config are added, and the old name of dtype goes."""
    config = {"model_type": "llama", "torch_dtype": "float32", "name": "é", "text_config": {"torch_dtype": "float32"}}
    write_config(config, {"quant_method": "bitsandbytes"}, "bfloat16", tmp_path)
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert json.loads(text) == {
        "model_type": "llama",
        "name": "é",
        "text_config": {"torch_dtype": "float32"},
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "bitsandbytes"},
    }
    assert "é" in text
    assert list(json.loads(text))[:2] == ["model_type", "name"]


@pytest.mark.parametrize(
    ("known", "kept"),
    [
        ({"AutoConfig": "a--m.C", "AutoModel": "a--m.M", "AutoModelForMaskedLM": "a--m.L"}, {}),
        ({"AutoModel": "m.M", "AutoTokenizer": ["t.T", None]}, {"auto_map": {"AutoTokenizer": ["t.T", None]}}),
        (None, {"auto_map": None}),
    ],
    ids=["models", "a tokenizer beside", "none"],
)
def test_config_without_code_of_a_model(known: Any, kept: dict[str, Any]) -> None:
    """What names other classes than the one that it was quantized as goes; all else stays."""
    assert without_code({"model_type": "nomic_bert", "auto_map": known}) == {"model_type": "nomic_bert"} | kept
    assert without_code({"model_type": "bert"}) == {"model_type": "bert"}
