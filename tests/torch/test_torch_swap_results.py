"""What is swapped goes on: copies, the bytes of quantize-on-load, and skeletons that a loader fills."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from encoded import differing
from small_models import RULES, rules_with, small, small_inputs
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import Bnb4bitDeserialize, Bnb4bitQuantize, Bnb8bitDeserialize

import rulequant.torch

INT8 = rules_with(schemes={"nf4": {"method": "bnb_int8"}})


@pytest.mark.parametrize("rules", [RULES, INT8], ids=["nf4", "int8"])
@pytest.mark.parametrize("copies", ["deepcopy", "pickle", "torch.save"])
def test_a_quantized_model_can_be_copied(rules: dict[str, Any], copies: str) -> None:
    """Copies compute the same and hold the same bytes, before and after a forward pass."""
    shared = nn.Linear(64, 64)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(64, 32)).eval()
    rulequant.torch.apply(model, rules)
    inputs = torch.randn(3, 64)
    with torch.no_grad():
        for _ in range(2):
            copied = _copied(model, copies)
            assert copied[0] is copied[2]
            assert type(copied[0]) is type(model[0])
            assert not differing(copied.state_dict(), model.state_dict())
            assert torch.equal(copied(inputs), model(inputs))


def _copied(model: nn.Module, how: str) -> Any:
    if how == "deepcopy":
        return copy.deepcopy(model)
    if how == "pickle":
        return pickle.loads(pickle.dumps(model))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_apply_equals_quantize_on_load(tmp_path: Any) -> None:
    """Swapping in memory gives every byte that transformers gives when it quantizes while it loads."""
    model = small("llama", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    stock = type(model).from_pretrained(tmp_path, quantization_config=config, device_map="cpu")
    rulequant.torch.apply(model, RULES)
    assert not differing(model.state_dict(), stock.state_dict())


SKELETON = rules_with(schemes={"nf4": {"method": "bnb_4bit", "blocksize": 32, "double_quant": True}})


@pytest.mark.parametrize("kind", ["llama-tied", "gpt2", "t5", "falcon"])
def test_a_meta_model_becomes_a_skeleton(kind: str) -> None:
    """The layers are on meta with the shapes and dtypes of the weights to come; nothing else is changed."""
    model = small(kind, meta=True, dtype=torch.bfloat16)
    before = {name: type(module) for name, module in model.named_modules(remove_duplicate=False)}
    plan = rulequant.torch.apply(model, SKELETON)
    quantized = {each.name for each in plan.quantized}
    after = dict(model.named_modules(remove_duplicate=False))
    assert list(after) == list(before)
    for name, module in after.items():
        if name not in quantized:
            assert type(module) is before[name]
            continue
        assert isinstance(module, bnb.nn.Linear4bit)
        assert module.weight.shape == (module.out_features, module.in_features)
        assert (module.weight.device.type, module.weight.dtype) == ("meta", torch.bfloat16)
        assert (module.weight.blocksize, module.weight.compress_statistics) == (32, True)
        assert module.source_cls is before[name]
        assert module.compute_dtype == torch.bfloat16


def _fill(skeleton: Any, source: nn.Module, op: Any) -> None:
    """Fill a skeleton as transformers' loader does: its quantizer's operation for each weight, the rest as it is."""
    state = source.state_dict()
    for name, layer in skeleton.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            full = f"{name}.weight"
            parts = {key.removeprefix(f"{name}."): state.pop(key) for key in list(state) if key.startswith(full)}
            if f"{name}.SCB" in state:
                parts["SCB"] = state.pop(f"{name}.SCB")
            given = {full: parts["weight"]} if isinstance(op, Bnb4bitQuantize) else parts
            layer.weight = next(iter(op.convert(given, full_layer_name=full, model=skeleton).values()))
    skeleton.load_state_dict(state, strict=False, assign=True)
    skeleton.tie_weights()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_a_skeleton_is_filled_with_full_precision(kind: str) -> None:
    """transformers' quantize-on-load gives the bytes of swapping in memory, block size and all."""
    model, skeleton = small(kind), small(kind, meta=True)
    rulequant.torch.apply(skeleton, SKELETON)
    _fill(skeleton, model, Bnb4bitQuantize(None))
    rulequant.torch.apply(model, SKELETON)
    assert not differing(skeleton.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("rules", "op"), [(SKELETON, Bnb4bitDeserialize), (INT8, Bnb8bitDeserialize)], ids=["4bit", "int8"]
)
def test_a_skeleton_is_filled_with_quantized_tensors(rules: dict[str, Any], op: Any) -> None:
    """A quantized state dict goes into a skeleton, which then computes what the source does."""
    source, skeleton = small("vit-classifier"), small("vit-classifier", meta=True)
    inputs = small_inputs(source)
    rulequant.torch.apply(source, rules)
    rulequant.torch.apply(skeleton, rules)
    _fill(skeleton, source, op(None))
    assert not differing(skeleton.state_dict(), source.state_dict())
    with torch.no_grad():
        assert torch.equal(skeleton(**inputs)[0], source(**inputs)[0])
