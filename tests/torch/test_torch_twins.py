"""Layers that share an encoded weight: in memory, streamed, loaded and saved it is one, and as good as two."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import called_models
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from zoo.classes import Architecture, architectures
from zoo.forward import Run, known_runs, prepare, quiet

from rulequant.errors import CheckpointError
from rulequant.schemes import Bnb4bit, BnbInt8, Scheme
from rulequant.torch import apply, apply_checkpoint, load_quantized, verify
from rulequant.torch.factories import factory_for
from rulequant.torch.transformers import RuleQuantConfig

NF4 = {"method": "bnb_4bit", "blocksize": 32, "double_quant": True}
INT8 = {"method": "bnb_int8"}
METHODS = pytest.mark.parametrize("scheme", [NF4, INT8], ids=["nf4", "int8"])
TWINS = {
    "zamba2": (
        "model.layers.1.shared_transformer.self_attn.q_proj",
        "model.layers.3.shared_transformer.self_attn.q_proj",
    ),
    "diffusion_gemma": ("model.encoder.language_model.layers.0.mlp.up_proj", "model.decoder.layers.0.mlp.up_proj"),
}
"""Two layers with one weight; DiffusionGemma has experts with the same parameters too."""


def rules(scheme: dict[str, Any], **more: Any) -> dict[str, Any]:
    types = ["Linear", "*Experts"]
    return {"version": 1, "quantizable_types": types, "schemes": {"it": scheme}, "scheme": "it"} | more


class TwinsConfig(PreTrainedConfig):
    """Of a model with two layers that have one weight, and a bias each."""

    model_type = "twins-with-biases"
    tie_word_embeddings = True


class Twins(PreTrainedModel):
    """The second layer is tied to the first, its bias is its own."""

    config_class = TwinsConfig
    _tied_weights_keys = {"second.weight": "first.weight"}  # noqa: RUF012  as transformers has it

    def __init__(self, config: TwinsConfig) -> None:
        super().__init__(config)
        self.first, self.second, self.last = (nn.Linear(64, 64) for _ in range(3))
        self.post_init()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


def twins() -> Twins:
    torch.manual_seed(0)
    model = Twins(TwinsConfig()).eval()
    for each in (model.first, model.second):
        nn.init.normal_(each.bias)
    return model


@cache
def _architecture(model_type: str) -> Architecture:
    return next(each for each in architectures() if each.model_type == model_type)


def _run(model_type: str) -> Run:
    return prepare(_architecture(model_type), *known_runs()[model_type])


def _outputs(run: Run, model: nn.Module) -> list[Tensor]:
    return Run(run.cut, run.number, model.eval(), run.inputs).outputs()


def _assert_equal(first: list[Tensor], second: list[Tensor]) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def _files(folder: Path) -> dict[str, Tensor]:
    return {name: each for path in folder.glob("*.safetensors") for name, each in load_file(path).items()}


def _assert_same_files(first: Path, second: Path) -> None:
    one, other = _files(first), _files(second)
    assert sorted(one) == sorted(other)
    for name, each in one.items():
        assert each.reshape(-1).view(torch.uint8).equal(other[name].reshape(-1).view(torch.uint8)), name


@METHODS
@pytest.mark.parametrize("model_type", sorted(TWINS))
def test_one_weight_all_the_way(model_type: str, scheme: dict[str, Any], tmp_path: Path) -> None:
    """In memory, applied and loaded, quantized on load, saved and loaded again: one result, one parameter, one copy."""
    run, (first, second) = _run(model_type), TWINS[model_type]
    with quiet():
        run.model.save_pretrained(tmp_path / "source")
    plan = apply_checkpoint(tmp_path / "source", rules(scheme), tmp_path / "applied", container="rulequant")
    assert plan.by_name[first].scheme == plan.by_name[second].scheme == "it"
    assert (plan.by_name[second].parameters, plan.by_name[second].bytes_after) == (0, 0)
    assert verify(tmp_path / "applied", against=tmp_path / "source").ok
    swapped = copy.deepcopy(run.model)
    apply(swapped, rules(scheme))
    wanted = _outputs(run, swapped)
    load = _architecture(model_type).load_class().from_pretrained
    ways = {
        "loaded": {"pretrained_model_name_or_path": tmp_path / "applied"},
        "encoded": {
            "pretrained_model_name_or_path": tmp_path / "source",
            "quantization_config": RuleQuantConfig(rules(scheme)),
        },
    }
    for name, arguments in ways.items():
        with quiet():
            model, info = load(**arguments, dtype=torch.float32, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        _assert_equal(_outputs(run, model), wanted)
        assert model.get_submodule(first).weight is model.get_submodule(second).weight
        assert model.num_parameters() == run.model.num_parameters()
        with quiet():
            model.save_pretrained(tmp_path / name)
        _assert_same_files(tmp_path / name, tmp_path / "applied")
        model.tie_weights()
        _assert_equal(_outputs(run, copy.deepcopy(model)), wanted)


@pytest.mark.parametrize("model_type", sorted(TWINS))
def test_dequantized_they_are_tied_as_before(model_type: str, tmp_path: Path) -> None:
    """The plain layers share their parameters again, experts too, under the names that transformers ties."""
    run, (first, second) = _run(model_type), TWINS[model_type]
    ties = dict(run.model.all_tied_weights_keys)
    with quiet():
        run.model.save_pretrained(tmp_path / "source")
        model = (
            _architecture(model_type)
            .load_class()
            .from_pretrained(tmp_path / "source", quantization_config=RuleQuantConfig(rules(NF4)), dtype=torch.float32)
        )
    plain = model.dequantize()
    assert type(plain.get_submodule(second)) is nn.Linear
    assert plain.get_submodule(first).weight is plain.get_submodule(second).weight
    assert plain.num_parameters() == run.model.num_parameters()
    assert plain.all_tied_weights_keys == ties
    with quiet():
        plain.save_pretrained(tmp_path / "plain")
    assert sorted(_files(tmp_path / "plain")) == sorted(_files(tmp_path / "source"))


def test_stock_transformers_loads_the_plain_container(tmp_path: Path) -> None:
    """4-bit layers without a bias share the weight and its quant state there too."""
    run, (first, second) = _run("zamba2"), TWINS["zamba2"]
    with quiet():
        run.model.save_pretrained(tmp_path / "source")
    plan = apply_checkpoint(tmp_path / "source", rules(NF4), tmp_path / "plain")
    assert plan.container == "bitsandbytes"
    with quiet():
        model, info = _architecture("zamba2").load_class().from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not info["missing_keys"]
    assert type(model.get_submodule(second)) is bnb.nn.Linear4bit
    assert model.get_submodule(first).weight is model.get_submodule(second).weight
    for each in model.modules():
        if isinstance(each, bnb.nn.Linear4bit):
            each.support_avx512bf16_for_cpu = False  # whose kernel does not take all shapes, and rounds otherwise
    swapped = copy.deepcopy(run.model)
    apply(swapped, rules(NF4))
    _assert_equal(_outputs(run, model), _outputs(run, swapped))


def test_stock_int8_layers_spoil_a_shared_weight() -> None:
    """Why such a checkpoint is rulequant's: the layer that runs second takes int8 values for those of the weight."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 64), torch.randn(64, 64)
    encoded = factory_for("bnb_int8").encode(weight, "linear", BnbInt8())
    first, second = (bnb.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False).eval() for _ in range(2))
    factory_for("bnb_int8").attach(first, encoded)
    second.weight = first.weight
    with quiet(), torch.no_grad():
        right, wrong = first(x), second(x)
    assert (right - x @ weight.T).norm() / right.norm() < 0.05
    assert (wrong - x @ weight.T).norm() / right.norm() > 0.5


@pytest.mark.parametrize("scheme", [Bnb4bit(), BnbInt8()], ids=["nf4", "int8"])
def test_layers_that_share_compute_alike(scheme: Scheme) -> None:
    """Whichever runs first, and after a copy and a move; only their biases are their own."""
    model, x = twins(), torch.randn(4, 64)
    with torch.no_grad():
        wanted = {name: getattr(model, name)(x) for name in ("first", "second")}
    apply(model, rules(scheme.model_dump()))
    assert model.first.weight is model.second.weight
    with quiet(), torch.no_grad():
        moved = copy.deepcopy(model).to("cpu", torch.float32)
        for each in (model, moved):
            for name in ("second", "first"):
                found = getattr(each, name)(x)
                assert (found - wanted[name]).norm() / wanted[name].norm() < 0.15
    assert len(model.second.bias) == 64
    model.tie_weights()
    assert len(model.second.bias) == 64


@METHODS
def test_biases_stay_as_they_are(scheme: dict[str, Any], tmp_path: Path) -> None:
    """transformers fills up the bias of what it ties, by the rows of a weight that is packed."""
    model, x = twins(), torch.randn(4, 64)
    model.save_pretrained(tmp_path / "source")
    apply(model, rules(scheme))
    encoded = Twins.from_pretrained(tmp_path / "source", quantization_config=RuleQuantConfig(rules(scheme)))
    encoded.save_pretrained(tmp_path / "saved")
    assert not [name for name in _files(tmp_path / "saved") if name.startswith("second") and name != "second.bias"]
    loaded = Twins.from_pretrained(tmp_path / "saved")
    with quiet(), torch.no_grad():
        wanted = model(x)
        for each in (encoded, loaded):
            assert each(x).equal(wanted)
            each.tie_weights()
            assert each(x).equal(wanted)
    assert loaded.second.bias.equal(twins().second.bias)
    assert loaded.dequantize().second.weight is loaded.first.weight


def _edited(source: Path, folder: Path, edit: dict[str, str | None]) -> Path:
    """A copy of a checkpoint with some tensors called otherwise, or left out."""
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = {edit.get(name, name): each for name, each in _files(source).items()}
    save_file({name: each for name, each in tensors.items() if name}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_source_that_holds_the_other_one(tmp_path: Path) -> None:
    """Whichever of the tied weights the files have is quantized, and written under the name that transformers saves."""
    run, (first, second) = _run("zamba2"), (f"{each}.weight" for each in TWINS["zamba2"])
    with quiet():
        run.model.save_pretrained(tmp_path / "source")
    other = _edited(tmp_path / "source", tmp_path / "other", {first: second})
    for name, source in (("straight", tmp_path / "source"), ("crossed", other)):
        apply_checkpoint(source, rules(NF4), tmp_path / name)
    _assert_same_files(tmp_path / "crossed", tmp_path / "straight")
    swapped = copy.deepcopy(run.model)
    apply(swapped, rules(NF4))
    with quiet():
        load = _architecture("zamba2").load_class().from_pretrained
        model, info = load(other, quantization_config=RuleQuantConfig(rules(NF4)), output_loading_info=True)
    assert not info["missing_keys"]
    _assert_equal(_outputs(run, model), _outputs(run, swapped))


def test_a_source_that_holds_neither(tmp_path: Path) -> None:
    """Without any of the tied weights there is nothing to quantize."""
    run = _run("zamba2")
    with quiet():
        run.model.save_pretrained(tmp_path / "source")
    neither = _edited(tmp_path / "source", tmp_path / "neither", {f"{TWINS['zamba2'][0]}.weight": None})
    with pytest.raises(CheckpointError, match=r"are in no shard"):
        apply_checkpoint(neither, rules(NF4), tmp_path / "nothing")


@METHODS
def test_a_called_model(scheme: dict[str, Any], tmp_path: Path) -> None:
    """What a callable returned is loaded with one weight in both layers, as it was quantized."""
    apply_checkpoint("called_models:twins", rules(scheme), tmp_path / "out")
    assert [name for name in _files(tmp_path / "out") if name.startswith("1.")] == ["1.bias"]
    loaded, swapped, x = (
        load_quantized("called_models:twins", tmp_path / "out"),
        called_models.twins().eval(),
        torch.randn(4, 64),
    )
    apply(swapped, rules(scheme))
    with quiet(), torch.no_grad():
        assert loaded(x).equal(swapped(x))
    assert loaded[0].weight is loaded[1].weight
    assert verify(tmp_path / "out").ok
