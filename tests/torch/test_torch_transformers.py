"""rulequant as a quantizer inside transformers: quantize on load, save, load again, dequantize, train adapters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from moe_models import MOE, moe_class, moe_rules, save_moe
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, inputs_for, save_tiny
from torch import nn

from rulequant.diagnostics import DiagnosticsError
from rulequant.errors import UsageError
from rulequant.loader import load_rules
from rulequant.torch import apply, apply_checkpoint
from rulequant.torch.transformers import RuleQuantConfig

MIX: dict[str, Any] = {
    "version": 1,
    "quantizable_types": ["Linear", "Conv1D", "FalconLinear"],
    "schemes": {
        "nf4": {"method": "bnb_4bit", "double_quant": True},
        "fp4": {"method": "bnb_4bit", "quant_type": "fp4", "blocksize": 32},
        "int8": {"method": "bnb_int8"},
    },
    "scheme": "nf4",
    "rules": [
        {"modules": "**", "layers": 1, "scheme": "int8"},
        {"modules": ["**.down_proj", "**.c_proj", "**.wi"], "scheme": "fp4", "optional": True},
    ],
}
"""Three methods in one model."""


def model_class(name: str) -> Any:
    return getattr(transformers, ARCHITECTURES[name][0])


def assert_same_state(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert sorted(first) == sorted(second)
    for key, tensor in first.items():
        assert tensor.reshape(-1).view(torch.uint8).equal(second[key].reshape(-1).view(torch.uint8)), key


@pytest.mark.parametrize("method", ["bnb_4bit", "bnb_int8"])
def test_weights_that_no_shard_has(method: str, tmp_path: Path) -> None:
    """transformers draws them at random, and says so; they are quantized as all others are."""
    source = save_tiny("bert", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    missing = {each for each in tensors if ".0.attention.self.query.weight" in each or "position_emb" in each}
    kept = {name: each for name, each in tensors.items() if name not in missing}
    save_file(kept, source / "model.safetensors", {"format": "pt"})
    rules = {"version": 1, "quantizable_types": ["Linear", "Embedding"], "schemes": {"it": {"method": method}}}
    config = RuleQuantConfig(rules | {"scheme": "it"})
    model, info = model_class("bert").from_pretrained(source, quantization_config=config, output_loading_info=True)
    assert info["missing_keys"] == missing
    whole = model_class("bert").from_pretrained(save_tiny("bert", tmp_path / "whole"), quantization_config=config)
    found, wanted = model.state_dict(), whole.state_dict()
    assert {name: (each.dtype, each.shape) for name, each in found.items()} == {
        name: (each.dtype, each.shape) for name, each in wanted.items()
    }
    with torch.no_grad():
        assert model(**inputs_for(model)).logits.isfinite().all()


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "t5", "bert"])
def test_load_save_load(name: str, tmp_path: Path) -> None:
    """A mix of methods: quantize on load, in memory and streamed give the same bytes, which survive save and reload."""
    source = save_tiny(name, tmp_path / "source")
    loaded = model_class(name).from_pretrained(source, quantization_config=RuleQuantConfig(MIX))
    swapped = model_class(name).from_pretrained(source)
    apply(swapped, MIX)
    assert_same_state(loaded.state_dict(), swapped.state_dict())

    loaded.save_pretrained(tmp_path / "saved")
    apply_checkpoint(source, MIX, tmp_path / "streamed")
    for folder in ("saved", "streamed"):
        again, info = model_class(name).from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
        assert_same_state(again.state_dict(), loaded.state_dict())
        batch = inputs_for(again)
        with torch.no_grad():
            assert again(**batch).logits.equal(loaded(**batch).logits)
        again.save_pretrained(tmp_path / f"{folder}-again")
        assert_same_state(
            load_file(tmp_path / f"{folder}-again" / "model.safetensors"),
            load_file(tmp_path / "saved" / "model.safetensors"),
        )


@pytest.mark.parametrize("method", ["bnb_4bit", "bnb_int8"])
@pytest.mark.parametrize("name", MOE)
def test_experts_are_quantized_on_load(name: str, method: str, tmp_path: Path) -> None:
    """Fused experts are quantized while they are merged, as they are in memory."""
    source = save_moe(name, tmp_path / "source")
    rules = moe_rules(method=method)
    loaded = moe_class(name).from_pretrained(source, quantization_config=RuleQuantConfig(rules))
    swapped = moe_class(name).from_pretrained(source)
    apply(swapped, rules)
    assert_same_state(loaded.state_dict(), swapped.state_dict())
    loaded.save_pretrained(tmp_path / "saved")
    again = moe_class(name).from_pretrained(tmp_path / "saved")
    assert_same_state(again.state_dict(), loaded.state_dict())


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"])
def test_other_heads_load_the_same_folder(auto: str, tmp_path: Path) -> None:
    """The bare base model and other heads find their modules under their own names."""
    apply_checkpoint(save_tiny("llama", tmp_path / "source"), MIX, tmp_path / "out")
    model = getattr(transformers, auto).from_pretrained(tmp_path / "out")
    base = model.base_model
    kinds = {type(base.layers[index].self_attn.q_proj).__name__ for index in (0, 1)}
    assert kinds == {"Linear4bit", "Linear8bitLt"}


def test_sizes_are_told_right(tmp_path: Path) -> None:
    """`num_parameters` counts values, not packed bytes, and the footprint is that of the packed model."""
    source = save_tiny("llama", tmp_path / "source")
    plain = model_class("llama").from_pretrained(source)
    rules = MIX | {"rules": []}
    quantized = model_class("llama").from_pretrained(source, quantization_config=RuleQuantConfig(rules))
    assert quantized.num_parameters() == plain.num_parameters()
    assert quantized.get_memory_footprint() < plain.get_memory_footprint()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_dequantize(name: str, tmp_path: Path) -> None:
    """`dequantize()` gives plain layers with what the quantized ones stand for."""
    apply_checkpoint(save_tiny(name, tmp_path / "source"), MIX, tmp_path / "out")
    model = model_class(name).from_pretrained(tmp_path / "out")
    batch = inputs_for(model)
    with torch.no_grad():
        expected = model(**batch).logits
        plain = model.dequantize()
        assert not [each for each in plain.modules() if type(each).__name__ in {"Linear4bit", "Linear8bitLt"}]
        assert (plain(**batch).logits - expected).abs().max() < 0.05
    assert plain.dtype == torch.bfloat16


def test_dequantized_experts_are_parameters_again(tmp_path: Path) -> None:
    """Experts get their fused parameters back, and transformers' own forward."""
    rules = moe_rules(method="bnb_4bit", double_quant=True)
    source = save_moe("mixtral", tmp_path / "source")
    model = moe_class("mixtral").from_pretrained(source, quantization_config=RuleQuantConfig(rules))
    ids = torch.arange(3, 19).reshape(2, 8)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        plain = model.dequantize()
        assert isinstance(plain.model.layers[0].mlp.experts.gate_up_proj, nn.Parameter)
        assert (plain(input_ids=ids).logits - expected).abs().max() < 0.05


def test_gradients_reach_adapters(tmp_path: Path) -> None:
    """A step on a small adapter beside a quantized model lowers the loss; the quantized weights have no gradient."""
    source = save_moe("mixtral", tmp_path / "source")
    model = moe_class("mixtral").from_pretrained(
        source, quantization_config=RuleQuantConfig(moe_rules(method="bnb_4bit"))
    )
    ids = torch.arange(3, 19).reshape(2, 8)
    adapter = nn.Parameter(torch.zeros(8, 64, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([adapter], lr=1.0)

    def loss() -> torch.Tensor:
        embedded = model.get_input_embeddings()(ids).detach() + adapter
        return model(inputs_embeds=embedded, labels=ids).loss

    before = loss()
    before.backward()
    assert adapter.grad is not None
    assert adapter.grad.abs().sum() > 0
    optimizer.step()
    assert loss() < before
    assert model.is_quantized
    assert model.hf_quantizer.is_trainable


def test_config_json_says_what_became_of_the_rules(tmp_path: Path) -> None:
    """The saved config names the schemes and the modules of each, and no file of the machine that made it."""
    apply_checkpoint(save_tiny("llama", tmp_path / "source"), MIX, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "rulequant"
    assert config["format_version"] == 1
    assert set(config["modules"]) == {"nf4", "fp4", "int8"}
    assert "model.layers.1.mlp.down_proj" in config["modules"]["int8"]
    assert "lm_head" not in str(config["modules"])
    assert config["rules_sha256"] == load_rules(MIX).sha256


def test_newer_format_is_refused() -> None:
    """A checkpoint of a later rulequant is not half understood."""
    with pytest.raises(UsageError, match="format 2; this rulequant reads 1"):
        RuleQuantConfig(format_version=2)


def test_rules_that_do_not_fit_are_refused_before_loading(tmp_path: Path) -> None:
    """The findings of the plan stop `from_pretrained`."""
    source = save_tiny("llama", tmp_path / "source")
    rules = MIX | {"skip_modules": ["**.lm_haed"]}
    with pytest.raises(DiagnosticsError, match=r"`\*\*\.lm_haed` matches no module"):
        model_class("llama").from_pretrained(source, quantization_config=RuleQuantConfig(rules))


def test_config_without_rules_is_refused(tmp_path: Path) -> None:
    """An empty config has nothing to say to a plain checkpoint."""
    source = save_tiny("llama", tmp_path / "source")
    with pytest.raises(UsageError, match="was given no rules"):
        model_class("llama").from_pretrained(source, quantization_config=RuleQuantConfig())


def test_without_the_import_loading_fails_loudly(tmp_path: Path) -> None:
    """A process that does not know rulequant cannot load a mixed checkpoint as garbage."""
    apply_checkpoint(save_tiny("llama", tmp_path / "source"), MIX, tmp_path / "out")
    code = f"import transformers; transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode != 0
