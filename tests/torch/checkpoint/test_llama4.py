"""Llama 4 as a plain bitsandbytes checkpoint: transformers takes its experts apart, so they are written one by one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from moe_models import build_moe, moe_rules, save_moe
from safetensors.torch import load_file
from torch import Tensor, nn

from rulequant.errors import ModelError
from rulequant.loader import load_rules
from rulequant.torch.checkpoint.apply import Applied, apply_to_folder
from rulequant.torch.factories import NotFiniteError, factory_for
from rulequant.torch.skeleton import build_skeleton
from rulequant.torch.stock_experts import as_loaded, stock_linears

SCHEMES: dict[str, dict[str, Any]] = {
    "nf4": {"method": "bnb_4bit"},
    "fp4-double": {"method": "bnb_4bit", "quant_type": "fp4", "double_quant": True, "blocksize": 32},
    "int8": {"method": "bnb_int8"},
}
IDS = torch.arange(3, 19).reshape(2, 8)
FUSED = "model.layers.{layer}.feed_forward.experts.{name}"
VISION = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128,
    "vision_output_dim": 32, "image_size": 28, "patch_size": 14, "projector_input_dim": 32, "projector_output_dim": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama 4 with fused experts, as the Hub has them."""
    return save_moe("llama4_text", tmp_path_factory.mktemp("llama4") / "source")


def _applied(
    source: Path, output: Path, scheme: str = "nf4", *, skip: list[str] | None = None, **options: Any
) -> Applied:
    rules = moe_rules(**SCHEMES[scheme])
    rules["skip_modules"] += [{"modules": each, "reason": "a test"} for each in skip or ()]
    return apply_to_folder(build_skeleton(str(source)), load_rules(rules), output, **options)


def _loaded(folder: Path, model_class: Any = transformers.Llama4ForCausalLM) -> Any:
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert type(model.hf_quantizer).__module__.startswith("transformers.quantizers.quantizer_bnb")
    return model


def _matrices(fused: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every weight of every expert as its Linear has it, [out, in]."""
    found: dict[str, Tensor] = {}
    for layer in range(2):
        gate_up, down = (fused[FUSED.format(layer=layer, name=name)] for name in ("gate_up_proj", "down_proj"))
        inner = down.shape[1]
        for expert in range(gate_up.shape[0]):
            prefix = FUSED.format(layer=layer, name=expert)
            found[f"{prefix}.gate_proj"] = gate_up[expert, :, :inner].T
            found[f"{prefix}.up_proj"] = gate_up[expert, :, inner:].T
            found[f"{prefix}.down_proj"] = down[expert].T
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_loads_with_plain_transformers(scheme: str, source: Path, tmp_path: Path) -> None:
    """The container is plain, its bytes are those of the plan, and each expert is what bitsandbytes makes of it."""
    done = _applied(source, tmp_path / "out", scheme)
    assert done.container == done.plan.container == "bitsandbytes"
    assert done.payload_bytes == done.plan.summary["bytes_after"]
    assert done.plan.layer_coverage > 0.95
    model = _loaded(tmp_path / "out")
    experts = [each for name, each in model.named_modules() if name.endswith("feed_forward.experts")]
    assert {type(each).__name__ for each in experts} == {"SequentialLlama4TextExperts"}
    it = done.plan.schemes["it"]
    factory, saved = factory_for(it.method), load_file(tmp_path / "out/model.safetensors")
    for name, weight in _matrices(load_file(source / "model.safetensors")).items():
        expected = factory.encode(weight.contiguous(), "linear", it)
        found = {key: saved[f"{name}.{key}"] for key in expected}
        assert all(found[key].equal(each) for key, each in expected.items()), name
        assert isinstance(model.get_submodule(name), Linear4bit | Linear8bitLt)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_forward_is_that_of_the_dequantized_weights(scheme: str, source: Path, tmp_path: Path) -> None:
    """The stock experts, given the weights that theirs stand for, compute the same up to the kernels' rounding."""
    done = _applied(source, tmp_path / "out", scheme)
    model = _loaded(tmp_path / "out")
    it, saved = done.plan.schemes["it"], load_file(tmp_path / "out/model.safetensors")
    reference = as_loaded(build_moe("llama4_text")).to_empty(device="cpu").to(torch.bfloat16).eval()
    plain = {key: each for key, each in model.state_dict().items() if f"{key}.quant_map" not in saved}
    reference.load_state_dict({key: each for key, each in plain.items() if "SCB" not in key}, strict=False)
    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit | Linear8bitLt):
            state = {key.removeprefix(f"{name}."): each for key, each in saved.items() if key.startswith(f"{name}.")}
            weight = factory_for(it.method).decode(state, "linear")
            reference.get_submodule(name).weight = nn.Parameter(weight.to(torch.bfloat16))
    inner, outer = (each.get_submodule("model.layers.0.feed_forward.experts") for each in (model, reference))
    states = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    with torch.no_grad():
        expected = outer(states)
        error = (inner(states) - expected).float().norm() / expected.float().norm()
    assert error < (0.02 if scheme == "int8" else 0.01)  # int8 rounds the inputs too


def test_error_is_that_of_the_own_container(source: Path, tmp_path: Path) -> None:
    """Blocks run along other axes than in the fused tensor; the error of the logits is of the same size."""
    errors = {}
    with torch.no_grad():
        wanted = build_moe("llama4_text")(input_ids=IDS).logits.float()
        for container in ("bitsandbytes", "rulequant"):
            import rulequant.torch.transformers  # noqa: F401

            _applied(source, tmp_path / container, container=container)
            model = transformers.Llama4ForCausalLM.from_pretrained(tmp_path / container)
            errors[container] = float((model(input_ids=IDS).logits.float() - wanted).norm() / wanted.norm())
    assert errors["bitsandbytes"] < 1.3 * errors["rulequant"] < 0.3


def test_unquantized_experts_are_taken_apart_too(source: Path, tmp_path: Path) -> None:
    """transformers takes experts apart whether or not they are quantized; a fused tensor would be left unread."""
    done = _applied(source, tmp_path / "out", skip=["**.experts"])
    assert (done.container, done.payload_bytes) == ("bitsandbytes", done.plan.summary["bytes_after"])
    model = _loaded(tmp_path / "out")
    for name, weight in _matrices(load_file(source / "model.safetensors")).items():
        layer = model.get_submodule(name)
        assert type(layer) is nn.Linear
        assert layer.weight.equal(weight)
    with torch.no_grad():
        assert model(input_ids=IDS).logits.isfinite().all()


def test_shards(source: Path, tmp_path: Path) -> None:
    """Experts of one layer may lie in several shards; the tensors are the same."""
    _applied(source, tmp_path / "one")
    _applied(source, tmp_path / "many", max_shard_bytes=30_000)
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 3
    many = {key: each for shard in shards for key, each in load_file(shard).items()}
    one = load_file(tmp_path / "one/model.safetensors")
    assert sorted(one) == sorted(many)
    assert all(each.equal(many[key]) for key, each in one.items())
    _loaded(tmp_path / "many")


def test_with_vision(tmp_path: Path) -> None:
    """The whole model with a vision tower: its names are renamed while loading, and the tower stays."""
    text = build_moe("llama4_text").config.to_dict()
    config = transformers.Llama4Config(text_config=text, vision_config=VISION, dtype="bfloat16")
    torch.manual_seed(0)
    model = transformers.Llama4ForConditionalGeneration(config)
    for each in model.parameters():  # not by `.to`, which would take the complex buffers with it
        each.data = each.data.to(torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    done = _applied(tmp_path / "source", tmp_path / "out", skip=["**.vision_model", "**.multi_modal_projector"])
    assert (done.container, done.payload_bytes) == ("bitsandbytes", done.plan.summary["bytes_after"])
    loaded = _loaded(tmp_path / "out", transformers.Llama4ForConditionalGeneration)
    quantized = {name for name, each in loaded.named_modules() if isinstance(each, Linear4bit)}
    assert not any("vision" in each or "projector" in each for each in quantized)
    assert sum(".experts." in each for each in quantized) == 2 * 4 * 3
    with torch.no_grad():
        assert loaded(input_ids=IDS).logits.isfinite().all()


def test_not_finite_expert_is_named(tmp_path: Path) -> None:
    """A damaged expert is refused with its number and matrix."""
    model = build_moe("llama4_text")
    with torch.no_grad():
        model.model.layers[1].feed_forward.experts.gate_up_proj[2, 3, 100] = float("inf")
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(NotFiniteError, match=r"layers\.1\.feed_forward\.experts\.2\.up_proj\.weight`: .*inf"):
        _applied(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "apart"), [("llama4_text", True), ("mixtral", False), ("gpt_oss", False)])
def test_which_experts_are_taken_apart(name: str, apart: bool) -> None:
    """Those of Llama 4 alone, by transformers' own table; the model itself is unchanged."""
    model = build_moe(name)
    experts = [each for each in model.modules() if type(each).__name__.endswith("Experts")]
    assert {stock_linears(each) for each in experts} == {apart}
    names = [key for key, _ in model.named_parameters()]
    assert (as_loaded(model) is model) is not apart
    assert [key for key, _ in model.named_parameters()] == names


def test_unknown_layout_is_refused() -> None:
    """A module that transformers takes apart in a way that nobody here knows is an error, not a guess."""
    model = build_moe("llama4_text")
    model.model.layers[0].feed_forward.experts.bias = nn.Parameter(torch.ones(4, 64))
    with pytest.raises(
        ModelError, match=r"puts something unknown in the place of model\.layers\.0\.feed_forward\.experts"
    ):
        as_loaded(model)


@pytest.mark.slow
def test_nothing_of_rulequant_is_imported(source: Path, tmp_path: Path) -> None:
    """A process that knows only transformers loads the folder and runs the model."""
    _applied(source, tmp_path / "out")
    code = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "assert model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.isfinite().all()\n"
        "assert not any(each.startswith('rulequant') for each in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=True, capture_output=True)
