"""Models whose checkpoints transformers converts while loading, tensor by tensor as memory has them."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from apply_runs import configure, files_of, run
from converted_models import CONVERTED, save_converted, save_ernie
from safetensors.torch import load_file, save_file
from transformers import conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter
from verify_runs import verify
from zoo.classes import Architecture, architectures
from zoo.forward import known_runs, quiet
from zoo.tiny import tiny_model

import rulequant.torch
from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint import crew
from rulequant.torch.checkpoint.cutting import SMALLEST_MEMORY
from rulequant.torch.checkpoint.keys import map_keys
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.factories import NotFiniteError
from rulequant.torch.skeleton import build_skeleton
from rulequant.torch.transformers import RuleQuantConfig

DOUBLE = {"method": "bnb_4bit", "double_quant": True}
SCHEMES: dict[str, dict[str, Any]] = {
    "nf4": {"method": "bnb_4bit"},
    "double": DOUBLE,
    "int8": {"method": "bnb_int8"},
}
TYPES = ["Linear", "Conv1D", "*Experts"]
ARCHITECTURES = (
    *("gradium_phonon_tts", "gte", "inkling2", "inkling2_text", "inkling_mm_model", "jina_embeddings_v3"),
    *("minimax_m3_vl", "mistral_large4", "molmo2_text", "nemotron_h_omni", "nomic_bert", "qianfan_ocr", "radio"),
    *("sapiens2", "tipsv2", "tipsv2_text_model", "tipsv2_vision_model", "unlimited_ocr"),
)
"""All that transformers does more for than merging experts, and of which a tiny model runs."""
BUILT = {
    "hrm_text": "divided",
    "kimi_k25": "named",
    "rf_detr": "divided",
    "step3p7": "divided",
    "tipsv2_dpt": "divided",
}
"""Others, of which one can be built; how its sizes are cut."""
FIRST = "nomic_bert.layers.0.self_attn"
FUSED = "nomic_bert.encoder.layers.0.attn.Wqkv.weight"


def rules(scheme: dict[str, Any] = DOUBLE, **more: Any) -> dict[str, Any]:
    return {"version": 1, "quantizable_types": TYPES, "schemes": {"it": scheme}, "scheme": "it", **more}


@pytest.fixture(scope="module")
def nomic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny nomic_bert, only read."""
    return save_converted("nomic_bert", tmp_path_factory.mktemp("nomic") / "nomic_bert")


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: each for name, each in model.state_dict().items() if isinstance(each, torch.Tensor)}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Equal names, dtypes, shapes and bytes."""
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        other = wanted[name]
        assert (name, tensor.dtype, tensor.shape) == (name, other.dtype, other.shape)
        assert tensor.reshape(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8)), name


def assert_as_in_memory(source: Path, output: Path, rules_: Any, model_class: Any, **loading: Any) -> Any:
    """An output loads to what the source becomes that is loaded as it is and quantized then; the loaded model."""
    with quiet():
        loaded, info = model_class.from_pretrained(output, output_loading_info=True, **loading)
        memory, of_source = model_class.from_pretrained(source, output_loading_info=True, **loading)
    assert info == of_source  # a model without a head has nowhere to put one
    assert not info["missing_keys"]
    plan = rulequant.torch.apply(memory, rules_)
    assert plan.summary["quantized"] > 0
    assert_same(state(loaded), state(memory))
    return loaded


def architecture_of(name: str) -> Architecture:
    return next(each for each in architectures() if each.model_type == name)


@pytest.mark.slow
@pytest.mark.parametrize("container", ["bitsandbytes", "rulequant"])
@pytest.mark.parametrize("name", [*ARCHITECTURES, *BUILT])
def test_every_architecture(name: str, container: Any, tmp_path: Path) -> None:
    """From the layout that it was published in, all that can be quantized; with plain transformers where that can."""
    architecture = architecture_of(name)
    cut = BUILT[name] if name in BUILT else known_runs()[name][0]
    with quiet():
        tiny_model(architecture, cut).save_pretrained(tmp_path / "source")  # type: ignore[operator]
    skeleton = build_skeleton(str(tmp_path / "source"))
    experts = [each.name for each in skeleton.inventory().owners if each.kind == "experts"]
    types = TYPES if container == "rulequant" else ["Linear", "Conv1D"]
    wanted = rules() | {"quantizable_types": types}
    if container == "bitsandbytes" and name.startswith("inkling2"):
        with pytest.raises(CheckpointError, match=r"weight_proj`: transformers renames it") as raised:
            run(tmp_path / "source", tmp_path / "out", wanted, container=container)
        assert "let the container be `rulequant`" in str(raised.value.remedy)
        return
    applied = run(tmp_path / "source", tmp_path / "out", wanted, container=container)
    assert applied.payload_bytes == applied.plan.summary["bytes_after"]
    assert experts or not any(each.type.endswith("Experts") for each in applied.plan.quantized)
    assert_as_in_memory(tmp_path / "source", tmp_path / "out", wanted, architecture.load_class())
    found = verify(tmp_path / "out", tmp_path / "source")
    assert found.diagnostics == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", CONVERTED)
def test_embedding_models(name: str, scheme: str, tmp_path: Path) -> None:
    """One tensor of the source becomes three layers, or two; plain transformers loads them, the bare model too."""
    source, wanted = save_converted(name, tmp_path / "source"), rules(SCHEMES[scheme])
    with CheckpointReader.open(source) as reader:
        converted = map_keys(build_skeleton(str(source)), reader.tensors).converted
    assert any(key.endswith(".weight") for key in converted)
    applied = run(source, tmp_path / "out", wanted)
    assert applied.container == "bitsandbytes"
    assert applied.payload_bytes == applied.plan.summary["bytes_after"]
    assert not {each for each in converted if each.endswith("weight")} & applied.weight_map.keys()
    model = assert_as_in_memory(source, tmp_path / "out", wanted, getattr(transformers, CONVERTED[name][0]))
    assert_as_in_memory(source, tmp_path / "out", wanted, transformers.AutoModel, add_pooling_layer=False)
    with torch.no_grad():
        logits = model(torch.arange(1, 9)[None], attention_mask=torch.ones(1, 8)).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize("container", ["bitsandbytes", "rulequant"])
@pytest.mark.parametrize(
    ("name", "prefix"),
    [("nomic_bert", ""), ("gte", ""), ("gte", "new."), ("jina_embeddings_v3", "")],
    ids=["nomic_bert", "gte", "gte with a prefix that the model lacks", "jina_embeddings_v3"],
)
def test_models_without_a_head(name: str, prefix: str, container: Any, tmp_path: Path) -> None:
    """As they are published; what a prefix is renamed to is not renamed again."""
    source = save_converted(name, tmp_path / "source", bare=True)
    tensors = {f"{prefix}{key}": each for key, each in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    applied = run(source, tmp_path / "out", rules(), container=container)
    assert applied.plan.summary["quantized"] > 10
    assert_as_in_memory(source, tmp_path / "out", rules(), transformers.AutoModel)
    assert verify(tmp_path / "out", source).diagnostics == []


def test_code_that_came_with_the_source(tmp_path: Path) -> None:
    """It knows the layers by other names, so the output is for the class of transformers, however it is loaded."""
    source = save_converted("nomic_bert", tmp_path / "source")
    code = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    configure(source, auto_map=code)
    run(source, tmp_path / "out", rules())
    _, info = transformers.AutoModel.from_pretrained(
        tmp_path / "out", trust_remote_code=True, output_loading_info=True, add_pooling_layer=False
    )
    assert not info["missing_keys"]


@pytest.mark.parametrize("container", ["bitsandbytes", "rulequant"])
@pytest.mark.parametrize(
    ("skipped", "written"),
    [
        (["**.self_attn.q_proj"], {"q_proj.weight"}),
        (["**.self_attn.{k,v}_proj"], {"k_proj.weight", "v_proj.weight"}),
        (["**.self_attn.{q,k,v}_proj"], {"Wqkv.weight"}),
    ],
    ids=["the first stays", "all but the first stay", "all stay"],
)
def test_some_of_what_is_split_stays(
    skipped: list[str], written: set[str], container: Any, nomic: Path, tmp_path: Path
) -> None:
    """Beside quantized layers those that stay get tensors of their own; without any, the source's tensor stays."""
    wanted = rules(skip_modules=[{"modules": skipped, "reason": "a test"}])
    applied = run(nomic, tmp_path / "out", wanted, container=container)
    names = {name.rpartition("attn.")[2] for name in applied.weight_map if ".layers.0." in name}
    weights = {"Wqkv.weight", *(f"{each}_proj.weight" for each in "qkv")}
    assert {each for each in names & weights if f"{each}.absmax" not in names} == written
    assert_as_in_memory(nomic, tmp_path / "out", wanted, transformers.NomicBertForMaskedLM)
    found = verify(tmp_path / "out", nomic)
    assert found.diagnostics == []
    assert found.comparison is not None
    assert found.comparison.different == 0


@pytest.mark.parametrize("skipped", [None, "text", "vision"], ids=["none stay", "text stays", "vision stays"])
def test_experts_of_several_modules_in_one_list(skipped: str | None, tmp_path: Path) -> None:
    """What transformers makes of all of them together is quantized module by module, streamed and while it loads."""
    source, model_class = save_ernie(tmp_path / "source"), transformers.Ernie4_5_VLMoeForConditionalGeneration
    skip = {"modules": f"**.{skipped}_moe.experts", "reason": "a test", "optional": True}
    wanted = rules(skip_modules=[skip])
    applied = run(source, tmp_path / "out", wanted)
    fused = {"gate_up_proj", "down_proj"}
    kept = {tuple(name.split(".")[-3:]) for name in applied.weight_map if name.rpartition(".")[2] in fused}
    assert kept == ({(f"{skipped}_moe", "experts", each) for each in fused} if skipped else set())
    model = assert_as_in_memory(source, tmp_path / "out", wanted, model_class)
    assert verify(tmp_path / "out", source).diagnostics == []
    loaded = model_class.from_pretrained(source, quantization_config=RuleQuantConfig(wanted))
    assert_same(state(loaded), state(model))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("skipped", ["q", "{k,v}", "o"], ids=["the first stays", "only the first", "all are"])
def test_quantized_while_it_loads(skipped: str, scheme: str, nomic: Path, tmp_path: Path) -> None:
    """Of several layers that transformers makes of one tensor each is quantized, or not, by the rules; and saved."""
    skip = {"modules": f"**.self_attn.{skipped}_proj", "reason": "a test"}
    wanted = rules(SCHEMES[scheme], skip_modules=[skip])
    memory = transformers.NomicBertForMaskedLM.from_pretrained(nomic)
    rulequant.torch.apply(memory, wanted)
    loaded = transformers.NomicBertForMaskedLM.from_pretrained(nomic, quantization_config=RuleQuantConfig(wanted))
    assert_same(state(loaded), state(memory))
    loaded.save_pretrained(tmp_path / "saved")
    again = transformers.NomicBertForMaskedLM.from_pretrained(tmp_path / "saved")
    assert_same(state(again), state(memory))


def test_errors_against_the_original(nomic: Path, tmp_path: Path) -> None:
    """They are those of each layer, though the original has three in one; one that is another's is found."""
    run(nomic, tmp_path / "out", rules())
    found = verify(tmp_path / "out", nomic)
    assert found.comparison is not None
    errors = {each.name: each.relative_error for each in found.comparison.weights}
    assert {f"{FIRST}.{each}_proj" for each in "qkv"} <= errors.keys()
    assert all(0.05 < each < 0.15 for each in errors.values())
    tensors = load_file(nomic / "model.safetensors")
    tensors[FUSED][64:128] = tensors[FUSED][64:128].flip(0)
    shutil.copytree(nomic, tmp_path / "other")
    save_file(tensors, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    found = verify(tmp_path / "out", tmp_path / "other")
    assert [(each.code, each.value) for each in found.diagnostics] == [("RQ538", f"{FIRST}.k_proj")]


def test_neither_memory_nor_workers_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of a part of a tensor, by one process or by several, are those of the whole."""
    monkeypatch.setattr(crew, "_BYTES_A_WORKER", 1)
    source = save_converted(
        "nomic_bert", tmp_path / "source", hidden_size=1024, intermediate_size=64, num_hidden_layers=1
    )
    ways: list[dict[str, Any]] = [{}, {"memory": SMALLEST_MEMORY}, {"memory": 2 * SMALLEST_MEMORY, "workers": 2}]
    for number, options in enumerate(ways):
        run(source, tmp_path / f"{number}", rules(), **options)
    first, *others = (files_of(tmp_path / f"{number}") for number in range(len(ways)))
    assert all(each == first for each in others)


def test_value_that_cannot_be_encoded(tmp_path: Path) -> None:
    """The layer is named, and the place in its own weight."""
    source = save_converted("nomic_bert", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors[FUSED][70, 5] = math.nan
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotFiniteError, match=r"0\.self_attn\.k_proj\.weight`: the value at \[6, 5\] is nan"):
        run(source, tmp_path / "out", rules())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda each: each[:-3],
            r"come to the shape \[63, 64\] for `.*q_proj\.weight`, config\.json asks for \[64, 64",
        ),
        (lambda each: each[:2], r"come to the shape \[1, 64\]"),
        (lambda each: each.to(torch.int8), r"has the dtype I8, which cannot be quantized"),
    ],
    ids=["too few rows", "hardly any", "integers"],
)
def test_tensors_of_another_model(edit: Any, message: str, tmp_path: Path) -> None:
    """What becomes of a tensor is compared with the model before anything is written."""
    source = save_converted("nomic_bert", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors[FUSED] = edit(tensors[FUSED]).contiguous()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        run(source, tmp_path / "out", rules())
    assert not (tmp_path / "out").exists()


class Scale(ConversionOps):  # type: ignore[misc]
    """An operation that computes."""

    def convert(self, input_dict: Any, source_patterns: Any, target_patterns: Any, **_: Any) -> Any:
        del source_patterns
        return {target_patterns[0]: next(iter(input_dict.values()))[0] * 2}


def test_what_transformers_computes(nomic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused where it would be quantized, and left to the loader where it stays."""
    known = conversion_mapping.get_checkpoint_conversion_mapping("nomic_bert")
    others = [each for each in known if "attn.out_proj" not in each.source_patterns]
    scaled = WeightConverter("attn.out_proj.weight", "self_attn.o_proj.weight", operations=[Scale()])
    cache = conversion_mapping._checkpoint_conversion_mapping_cache
    monkeypatch.setitem(cache, "nomic_bert", [*others, scaled])
    with pytest.raises(CheckpointError, match=r"attn\.out_proj\.weight`: transformers computes .*\(Scale\)") as raised:
        run(nomic, tmp_path / "out", rules())
    assert "skip the module of `nomic_bert.layers.0.self_attn.o_proj.weight`" in str(raised.value.remedy)
    skip = {"modules": "**.o_proj", "reason": "it is scaled"}
    run(nomic, tmp_path / "out", rules(skip_modules=[skip]))
    model = transformers.NomicBertForMaskedLM.from_pretrained(tmp_path / "out")
    original = load_file(nomic / "model.safetensors")[FUSED.replace("Wqkv", "out_proj")]
    assert model.get_parameter(f"{FIRST}.o_proj.weight").equal(original * 2)
