"""Streaming writes what transformers' quantize-on-load plus `save_pretrained` writes, and what memory holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES, inputs_for, save_tiny
from transformers import BitsAndBytesConfig

from rulequant.loader import load_rules
from rulequant.ruleset import RuleSet
from rulequant.torch import apply
from rulequant.torch.checkpoint.apply import apply_to_folder
from rulequant.torch.checkpoint.finish import Applied
from rulequant.torch.skeleton import build_skeleton

SCHEMES: dict[str, dict[str, Any]] = {
    "nf4": {"method": "bnb_4bit", "quant_type": "nf4"},
    "nf4-double": {"method": "bnb_4bit", "quant_type": "nf4", "double_quant": True},
    "fp4": {"method": "bnb_4bit", "quant_type": "fp4"},
    "int8": {"method": "bnb_int8"},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiny checkpoints in bfloat16, made once each."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = save_tiny(name, tmp_path_factory.mktemp("tiny") / name)
        return made[name]

    return get


def rules_for(scheme: str) -> RuleSet:
    """Everything linear with one scheme; the protection of output embeddings does the rest."""
    return load_rules(
        {"version": 1, "quantizable_types": ["Linear", "Conv1D"], "schemes": {"it": SCHEMES[scheme]}, "scheme": "it"}
    )


def stock_config(scheme: str, skip: list[str]) -> BitsAndBytesConfig:
    """The same request in transformers' terms."""
    if scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    settings = SCHEMES[scheme]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings["quant_type"],
        bnb_4bit_use_double_quant=settings.get("double_quant", False),
        bnb_4bit_compute_dtype="bfloat16",
        llm_int8_skip_modules=skip,
    )


def model_class(name: str) -> Any:
    return getattr(transformers, ARCHITECTURES[name][0])


def same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Equal names, dtypes, shapes and bytes (bytes, since storage dtypes hold NaN bit patterns)."""
    assert sorted(first) == sorted(second)
    for name, tensor in first.items():
        other = second[name]
        assert (name, tensor.dtype, tensor.shape) == (name, other.dtype, other.shape)
        assert tensor.reshape(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8)), name


def stream(source: Path, scheme: str, output: Path, **options: Any) -> Applied:
    return apply_to_folder(build_skeleton(str(source)), rules_for(scheme), output, **options)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_streamed_checkpoint_equals_the_stock_one(name: str, scheme: str, tiny: Any, tmp_path: Path) -> None:
    """The streamed tensors have the bytes of the stock ones, as many as planned, and the reloaded model its logits."""
    source = tiny(name)
    applied = stream(source, scheme, tmp_path / "streamed")
    skip = [each.name for each in applied.plan.decisions if not each.quantize and each.type in {"Linear", "Conv1D"}]
    stock = model_class(name).from_pretrained(source, quantization_config=stock_config(scheme, skip))
    stock.save_pretrained(tmp_path / "stock")
    streamed = load_file(tmp_path / "streamed" / "model.safetensors")
    same_tensors(streamed, load_file(tmp_path / "stock" / "model.safetensors"))
    payload = sum(each.nbytes for key, each in streamed.items() if ".quant_state." not in key)
    assert payload == applied.payload_bytes == applied.plan.summary["bytes_after"]

    reloaded, info = model_class(name).from_pretrained(tmp_path / "streamed", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    batch = inputs_for(stock)
    with torch.no_grad():
        assert reloaded(**batch).logits.equal(stock(**batch).logits)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "t5", "bert"])
def test_streamed_and_in_memory_give_the_same_bytes(name: str, scheme: str, tiny: Any, tmp_path: Path) -> None:
    """The two executors of one plan agree on every byte."""
    source = tiny(name)
    stream(source, scheme, tmp_path / "streamed")
    model = model_class(name).from_pretrained(source)
    apply(model, rules_for(scheme))
    streamed = load_file(tmp_path / "streamed" / "model.safetensors")
    state = {key: value for key, value in model.state_dict().items() if key in streamed}
    same_tensors(streamed, state)
