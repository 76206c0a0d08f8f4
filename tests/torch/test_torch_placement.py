"""Models of both containers inside transformers: devices, dtypes, sizes, casts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from moe_models import moe_class, save_moe
from safetensors.torch import load_file
from tiny_models import save_tiny

from rulequant.errors import UsageError
from rulequant.torch import apply_checkpoint
from rulequant.torch.placement import check_devices
from rulequant.torch.transformers import RuleQuantConfig

RULES: dict[str, Any] = {
    "version": 1,
    "quantizable_types": ["Linear", "*Experts"],
    "skip_modules": [{"modules": "**.mlp.gate", "optional": True, "reason": "routers decide"}],
    "schemes": {"nf4": {"method": "bnb_4bit", "double_quant": True}, "int8": {"method": "bnb_int8"}},
    "scheme": "nf4",
    "rules": [{"modules": "**.v_proj", "scheme": "int8"}],
}
IDS = torch.arange(3, 19).reshape(2, 8)
PLACES = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
Containers = dict[str, Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Containers:
    """A mixture of experts in the own container, a llama in the plain one, and their sources."""
    folder = tmp_path_factory.mktemp("placement")
    sources = {"mixtral": save_moe("mixtral", folder / "mixtral"), "llama": save_tiny("llama", folder / "llama")}
    apply_checkpoint(sources["mixtral"], RULES, folder / "own")
    apply_checkpoint(sources["llama"], RULES | {"rules": []}, folder / "plain")
    return sources | {"own": folder / "own", "plain": folder / "plain"}


def _load(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize(
    "device_map", ["cpu", "auto", {"": "cpu"}, dict.fromkeys(PLACES, "cpu")], ids=["cpu", "auto", "whole", "parts"]
)
@pytest.mark.parametrize("name", ["own", "plain"])
def test_device_maps(name: str, device_map: Any, folders: Containers) -> None:
    """Whatever the map says about the CPU, the model is the same."""
    assert _logits(_load(folders[name], device_map=device_map)).equal(_logits(_load(folders[name])))


@pytest.mark.parametrize("on_the_fly", [False, True], ids=["written", "on-the-fly"])
def test_quantized_modules_are_not_offloaded(on_the_fly: bool, folders: Containers, tmp_path: Path) -> None:
    """A map that puts them on the disk is refused before anything is loaded; the rest may go there."""
    source = folders["mixtral" if on_the_fly else "own"]
    options: dict[str, Any] = {"offload_folder": str(tmp_path)}
    options |= {"quantization_config": RuleQuantConfig(RULES)} if on_the_fly else {}
    places = dict.fromkeys(PLACES, "cpu")
    with pytest.raises(UsageError, match=r"on the disk: model\.layers\.1\.self_attn\.q_proj and 4 more"):
        _load(source, device_map=places | {"model.layers.1": "disk"}, **options)
    model = _load(source, device_map=places | {"model.embed_tokens": "disk"}, **options)
    assert _logits(model).equal(_logits(_load(folders["own"])))


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        pytest.param({"a": 0, "a.b": "cpu"}, "on the CPU, and others on an accelerator: a.b.q", id="CPU beside a GPU"),
        pytest.param({"a": "cuda:0", "": "cpu"}, None, id="the rest on the CPU"),
        pytest.param({"a": 0, "a.b": 1}, None, id="two GPUs"),
        pytest.param({"": "cpu"}, None, id="CPU alone"),
        pytest.param({"": "cpu", "a.b": "disk"}, "on the disk: a.b.q", id="disk"),
        pytest.param({"a.b.q": 0, "": "disk"}, "on the disk: a.q", id="longest name counts"),
        pytest.param("auto", None, id="not yet a map"),
        pytest.param(None, None, id="none"),
    ],
)
def test_check_devices(device_map: Any, message: str | None) -> None:
    """The place of a module is that of the longest start of its name in the map."""
    if message is None:
        check_devices(device_map, ["a.q", "a.b.q"])
        return
    with pytest.raises(UsageError, match=message):
        check_devices(device_map, ["a.q", "a.b.q"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("on_the_fly", [False, True], ids=["written", "on-the-fly"])
def test_dtype(dtype: torch.dtype, on_the_fly: bool, folders: Containers, tmp_path: Path) -> None:
    """All that is not quantized comes in the dtype that was asked for, and so do the logits; saved it stays so."""
    config = {"quantization_config": RuleQuantConfig(RULES)} if on_the_fly else {}
    model = _load(folders["mixtral" if on_the_fly else "own"], dtype=dtype, **config)
    assert model.dtype == dtype
    assert {each.dtype for each in model.parameters() if each.is_floating_point()} == {dtype}
    logits, usual = _logits(model), _logits(_load(folders["own"])).float()
    assert logits.dtype == dtype
    assert (logits.float() - usual).norm() < 0.02 * usual.norm()
    model.save_pretrained(tmp_path / "saved")
    assert _logits(_load(tmp_path / "saved")).equal(logits)


def test_dtype_heeds_what_the_model_keeps_in_float32(tmp_path: Path) -> None:
    """T5 keeps its `wo` in float32 where the rest is float16; unquantized it stays so, loaded from either side."""
    source = save_tiny("t5", tmp_path / "source")
    rules = RULES | {"skip_modules": [{"modules": "**.wo", "reason": "a test"}], "rules": []}
    apply_checkpoint(source, rules, tmp_path / "own", container="rulequant")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "own", dtype=torch.float16)
    kept = {name: each.dtype for name, each in model.named_parameters() if name.endswith("wo.weight")}
    assert kept
    assert set(kept.values()) == {torch.float32}


@pytest.mark.parametrize("name", ["own", "plain"])
def test_sizes(name: str, folders: Containers) -> None:
    """`num_parameters` counts what the model has, and the footprint is that of the packed bytes."""
    plain = _load(folders["mixtral" if name == "own" else "llama"])
    quantized = _load(folders[name])
    assert quantized.num_parameters() == plain.num_parameters()
    assert quantized.get_memory_footprint() < 0.7 * plain.get_memory_footprint()


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"])
@pytest.mark.parametrize("name", ["own", "plain"])
def test_classes(name: str, auto: str, folders: Containers) -> None:
    """The bare model and other heads load the same folder with the same layers."""
    found = getattr(transformers, auto).from_pretrained(folders[name])
    found.config.pad_token_id = 0
    layer = found.base_model.layers[1]
    kinds = {name: type(getattr(layer.self_attn, name)).__name__ for name in ("q_proj", "v_proj")}
    assert kinds == {"q_proj": "Linear4bit", "v_proj": "Linear8bitLt" if name == "own" else "Linear4bit"}
    with torch.no_grad():
        output = found(input_ids=IDS)
    assert output[0].isfinite().all()


def test_dequantize_the_plain_container(folders: Containers) -> None:
    """transformers' own `dequantize` takes what apply wrote."""
    expected = _logits(_load(folders["plain"]))
    # A model that has not computed yet: on CPUs with AVX512-BF16 the layers of bitsandbytes repack their weights then.
    plain = _load(folders["plain"]).dequantize()
    assert not [each for each in plain.modules() if type(each).__name__ == "Linear4bit"]
    assert (_logits(plain).float() - expected.float()).norm() < 0.02 * expected.float().norm()


def test_saved_is_what_apply_wrote(tmp_path: Path) -> None:
    """Quantized on load or loaded from a folder, a model saves the very tensors that apply writes."""
    source = save_moe("qwen3_moe", tmp_path / "source")
    apply_checkpoint(source, RULES, tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    options: dict[str, Any] = {"source": {"quantization_config": RuleQuantConfig(RULES)}, "out": {}}
    for folder, config in options.items():
        moe_class("qwen3_moe").from_pretrained(tmp_path / folder, **config).save_pretrained(
            tmp_path / f"{folder}-saved"
        )
        saved = load_file(tmp_path / f"{folder}-saved/model.safetensors")
        assert sorted(saved) == sorted(written)
        for key, each in written.items():
            assert each.dtype == saved[key].dtype, key
            assert each.reshape(-1).view(torch.uint8).equal(saved[key].reshape(-1).view(torch.uint8)), key


def test_casts(folders: Containers) -> None:
    """A cast leaves packed bytes alone, and so it does where they are packed into floats."""
    model = _load(folders["own"])
    before = _logits(model).float()
    assert (_logits(model.to(torch.float16)).float() - before).norm() < 0.02 * before.norm()
    rules = RULES | {
        "schemes": {"it": {"method": "bnb_4bit", "quant_storage": "bfloat16"}},
        "scheme": "it",
        "rules": [],
    }
    stored = _load(folders["llama"], quantization_config=RuleQuantConfig(rules))
    expected = _logits(stored)
    packed = {name: each.view(torch.uint8).clone() for name, each in stored.named_parameters() if "proj" in name}
    assert (_logits(stored.to(torch.float16)).float() - expected.float()).norm() < 0.02 * expected.float().norm()
    for name, each in stored.named_parameters():
        if name in packed:
            assert each.dtype == torch.bfloat16
            assert each.view(torch.uint8).equal(packed[name])
