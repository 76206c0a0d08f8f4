"""Models with quantized embeddings and convolutions: in memory, streamed, on the fly and reloaded are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from small_models import close, small, small_inputs
from torch import Tensor

from rulequant.diagnostics import DiagnosticsError
from rulequant.errors import UsageError
from rulequant.loader import load_rules
from rulequant.ruleset import RuleSet
from rulequant.torch import apply, apply_checkpoint
from rulequant.torch.standins import StandIn
from rulequant.torch.transformers import RuleQuantConfig

SCHEMES: dict[str, dict[str, Any]] = {
    "nf4-double": {"method": "bnb_4bit", "double_quant": True},
    "fp4-256": {"method": "bnb_4bit", "quant_type": "fp4", "blocksize": 256},
    "int8": {"method": "bnb_int8"},
}
LISTED: dict[str, list[str]] = {
    "llama": ["model.embed_tokens"],
    "whisper": ["model.encoder.conv1", "model.encoder.conv2"],
    "wav2vec2": ["wav2vec2.feature_extractor.conv_layers.0.conv", "wav2vec2.feature_extractor.conv_layers.1.conv"],
    "gemma3": ["model.embed_tokens"],
    "opt": ["model.decoder.embed_positions"],
}
"""The embeddings and convolutions that are quantized; the others are tied, measured or parametrized."""


def rules(scheme: str) -> RuleSet:
    return load_rules(
        {
            "version": 1,
            "quantizable_types": ["Linear", "Conv1d", "ParametrizedConv1d", "*Embedding"],
            "schemes": {"it": SCHEMES[scheme], "nf4": {"method": "bnb_4bit"}},
            "scheme": "nf4",
            "rules": [{"modules": "**", "types": ["*Conv1d", "*Embedding"], "scheme": "it"}],
        }
    )


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert sorted(first) == sorted(second)
    for key, tensor in first.items():
        assert tensor.reshape(-1).view(torch.uint8).equal(second[key].reshape(-1).view(torch.uint8)), key


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", LISTED)
def test_every_path_gives_the_same_model(name: str, scheme: str, tmp_path: Path) -> None:
    """State, logits, saved bytes and sizes agree, and dequantized the model computes what it stands for."""
    source, out = tmp_path / "source", tmp_path / "out"
    model_class = type(model := small(name, dtype=torch.bfloat16))
    model.save_pretrained(source)
    plan = apply_checkpoint(source, rules(scheme), out)
    assert [each.name for each in plan.quantized if each.type != "Linear"] == LISTED[name]

    plain, in_memory = model_class.from_pretrained(source), model_class.from_pretrained(source)
    assert apply(in_memory, rules(scheme)).summary == plan.summary
    on_the_fly = model_class.from_pretrained(source, quantization_config=RuleQuantConfig(rules(scheme)))
    reloaded, info = model_class.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    batch = small_inputs(plain)
    with torch.no_grad():
        expected = in_memory(**batch)[0]
        for other in (on_the_fly, reloaded):
            same(in_memory.state_dict(), other.state_dict())
            assert other(**batch)[0].equal(expected)
            assert other.num_parameters() == plain.num_parameters()
            assert other.num_parameters(exclude_embeddings=True) == plain.num_parameters(exclude_embeddings=True)
        assert close(reloaded, plain(**batch)[0], batch) < 0.35
    for index, other in enumerate((on_the_fly, reloaded)):
        other.save_pretrained(tmp_path / str(index))
        same(load_file(out / "model.safetensors"), load_file(tmp_path / str(index) / "model.safetensors"))
    dequantized = reloaded.dequantize()
    assert [type(each).__name__ for each in dequantized.modules()] == [type(each).__name__ for each in plain.modules()]
    assert not any(isinstance(each, StandIn) for each in dequantized.modules())
    with torch.no_grad():
        assert dequantized(**batch)[0].equal(expected)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama-tied", "t5"])
def test_tied_tables_stay_on_the_fly_too(name: str, tmp_path: Path) -> None:
    """While loading nothing is tied yet, and the plan is still the one of the tied model."""
    model_class = type(model := small(name, dtype=torch.bfloat16))
    model.save_pretrained(tmp_path)
    wanted = rules("int8")
    planned = apply(model, wanted)
    loaded = model_class.from_pretrained(tmp_path, quantization_config=RuleQuantConfig(wanted))
    found = {each for each, module in loaded.named_modules() if isinstance(module, StandIn)}
    assert found == {each.name for each in planned.quantized if each.type.endswith("Embedding")}
    table = loaded.get_input_embeddings()
    assert not isinstance(table, StandIn)
    assert loaded.get_output_embeddings().weight is table.weight


def test_a_loaded_table_is_resized_only_when_it_is_plain(tmp_path: Path) -> None:
    """Quantized on load it refuses another size; dequantized it takes it."""
    small("llama").save_pretrained(tmp_path)
    model = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=RuleQuantConfig(rules("nf4-double"))
    )
    with pytest.raises(UsageError, match="is quantized, and cannot be resized"):
        model.resize_token_embeddings(128)
    assert model.dequantize().resize_token_embeddings(128).num_embeddings == 128


@pytest.mark.parametrize(
    ("name", "modules"),
    [("llama", "Embedding: model.embed_tokens"), ("whisper", "Conv1d: model.encoder.conv1, model.encoder.conv2")],
)
def test_plain_bitsandbytes_cannot_hold_them(name: str, modules: str, tmp_path: Path) -> None:
    """Forced into the stock container, the modules that stand in the way are named."""
    small(name).save_pretrained(tmp_path / "source")
    with pytest.raises(DiagnosticsError, match=f"makes no quantized layer of the class {modules}"):
        apply_checkpoint(tmp_path / "source", rules("nf4-double"), tmp_path / "out", container="bitsandbytes")
    assert not (tmp_path / "out").exists()
