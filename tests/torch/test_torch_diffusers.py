"""Components in the container of rulequant: what diffusers' own quantizers cannot express, loaded all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from diffusion_models import RULES, inputs_for, save_pipeline, save_transformer  # noqa: E402

import rulequant.torch  # noqa: E402
import rulequant.torch.diffusers  # noqa: E402
from rulequant.cli.main import run  # noqa: E402
from rulequant.diagnostics import DiagnosticsError  # noqa: E402
from rulequant.errors import ModelError, UsageError  # noqa: E402

Capture = pytest.CaptureFixture[str]
MIXED = RULES | {
    "rules": [{"modules": "**.ff*", "scheme": "int8"}, {"modules": "**.to_q", "scheme": "fp4"}],
    "skip_modules": [*RULES["skip_modules"], "proj_out"],
}
"""Two methods, and a name that diffusers' own rule for skip lists would take for another's too."""
PIPELINE = '{"version": 1, "components": {"transformer": "./transformer.yaml", "text_encoder_2": "./t5.yaml"}}'


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a component."""
    return save_transformer(tmp_path_factory.mktemp("flux") / "transformer")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def load(folder: Path | str) -> Any:
    """As a user loads it."""
    return diffusers.FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)


def raw(model: Any) -> dict[str, torch.Tensor]:
    """The bytes of its tensors, the format of int8 layers aside."""
    state = {name: each for name, each in model.state_dict().items() if not name.endswith("weight_format")}
    return {name: each.reshape(-1).view(torch.uint8) for name, each in state.items()}


def same(one: Any, other: Any) -> bool:
    """Whether two models hold the same bytes under the same names."""
    mine, theirs = raw(one), raw(other)
    return mine.keys() == theirs.keys() and all(torch.equal(each, theirs[name]) for name, each in mine.items())


@pytest.mark.parametrize("shard", [5_000_000_000, 60_000], ids=["one file", "shards"])
def test_diffusers_loads_it(transformer: Path, shard: int) -> None:
    """With the tensors of the model that is quantized in memory, and it computes nearly the same as the original."""
    plan = rulequant.torch.apply_checkpoint(transformer, MIXED, "out", max_shard_bytes=shard)
    assert plan.container == "rulequant"
    assert {each.scheme for each in plan.quantized} == {"nf4", "fp4", "int8"}
    loaded, plain, expected = load("out"), load(transformer), load(transformer)
    rulequant.torch.apply(expected, MIXED)
    assert same(loaded, expected)
    with torch.no_grad():
        got, wanted = (model(**inputs_for()).sample.float() for model in (loaded, plain))
    assert (got - wanted).norm() < 0.2 * wanted.norm()


def test_it_is_saved_and_loaded_again(transformer: Path) -> None:
    """`save_pretrained` writes what loads as the same."""
    rulequant.torch.apply_checkpoint(transformer, MIXED, "out")
    loaded = load("out")
    loaded.save_pretrained("again")
    assert same(load("again"), loaded)
    config = json.loads(Path("again/config.json").read_text())["quantization_config"]
    assert config == json.loads(Path("out/config.json").read_text())["quantization_config"]


def test_it_is_dequantized(transformer: Path) -> None:
    """To plain layers, near the original."""
    rulequant.torch.apply_checkpoint(transformer, MIXED, "out")
    model, plain = load("out").dequantize(), load(transformer)
    assert {type(each).__name__ for each in model.modules() if "Linear" in type(each).__name__} == {"Linear"}
    one, other = (each.get_submodule("transformer_blocks.0.ff.net.2").weight.float() for each in (model, plain))
    assert 0 < (one - other).norm() < 0.02 * other.norm()


def test_a_pipeline(tmp_path: Path, capsys: Capture) -> None:
    """Components of both libraries in this container, loaded and run as one; `verify` knows the layers."""
    source = save_pipeline(tmp_path / "flux")
    Path("transformer.yaml").write_text(json.dumps(MIXED))
    t5 = {"version": 1, "extends": "t5", "schemes": {"int8": {"method": "bnb_int8"}}}
    Path("t5.yaml").write_text(json.dumps(t5 | {"rules": [{"modules": "**.q", "scheme": "int8"}]}))
    Path("flux.yaml").write_text(PIPELINE)
    assert run(["apply", str(source), "flux.yaml", "-o", "out"]) == 0
    told = "transformer: rulequant, which diffusers loads after `import rulequant.torch.diffusers`"
    assert told in capsys.readouterr().err
    assert "import rulequant.torch.diffusers  #" in Path("out/README.md").read_text()
    assert run(["verify", "out", "--against", str(source)]) == 0
    assert "modules quantized when diffusers loads it (rulequant), as planned" in capsys.readouterr().out
    pipeline = diffusers.DiffusionPipeline.from_pretrained("out", torch_dtype=torch.bfloat16)
    for part in (pipeline.transformer, pipeline.text_encoder_2):
        assert {"Linear4bit", "Linear8bitLt"} <= {type(each).__name__ for each in part.modules()}
    with torch.no_grad():
        images = pipeline(
            prompt_embeds=torch.randn(1, 8, 64).bfloat16(), pooled_prompt_embeds=torch.randn(1, 64).bfloat16(),
            height=16, width=16, num_inference_steps=1, output_type="pt",
        ).images  # fmt: skip
    assert images.isfinite().all()


def test_without_the_import_nothing_loads(transformer: Path) -> None:
    """diffusers says that it does not know the method: no layer is left random in silence."""
    rulequant.torch.apply_checkpoint(transformer, MIXED, "out")
    code = 'import diffusers; diffusers.FluxTransformer2DModel.from_pretrained("out")'
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Unknown quantization type, got rulequant" in done.stderr


def test_it_may_be_asked_for(transformer: Path) -> None:
    """As for models of transformers, where diffusers could load plain bitsandbytes."""
    assert rulequant.torch.apply_checkpoint(transformer, RULES, "plain").container == "bitsandbytes"
    assert rulequant.torch.apply_checkpoint(transformer, RULES, "out", container="rulequant").container == "rulequant"
    expected = load(transformer)
    rulequant.torch.apply(expected, RULES)
    assert same(load("out"), expected)


def test_the_plan_says_so(transformer: Path, capsys: Capture) -> None:
    """A note where an import will be needed; an error where plain bitsandbytes is asked for."""
    Path("rules.yaml").write_text(json.dumps(MIXED))
    assert run(["plan", str(transformer), "rules.yaml"]) == 0
    text = capsys.readouterr().out
    assert "note[RQ546]: diffusers loads the output after `import rulequant.torch.diffusers` alone: all layers" in text
    assert run(["plan", str(transformer), "rules.yaml", "--container", "bitsandbytes"]) == 1
    assert "error[RQ542]: all layers of a component share one `method`" in capsys.readouterr().out


def test_packed_as_floats(transformer: Path) -> None:
    """4-bit weights whose bytes are held as bfloat16, among them patterns that are no numbers, come as they were."""
    rules = RULES | {"schemes": {"nf4": {"method": "bnb_4bit", "quant_storage": "bfloat16"}}}
    assert rulequant.torch.apply_checkpoint(transformer, rules, "out").container == "rulequant"
    expected = load(transformer)
    rulequant.torch.apply(expected, rules)
    assert same(load("out"), expected)


def test_other_classes_are_refused(tmp_path: Path) -> None:
    """diffusers' loader asks only the layers that it knows for what lies beside a weight."""
    diffusers.UNet1DModel(
        block_out_channels=(32, 32), down_block_types=("DownBlock1D", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1D"), extra_in_channels=16,
    ).save_pretrained(tmp_path / "unet")  # fmt: skip
    rules = {"version": 1, "quantizable_types": ["Conv1d"], "schemes": {"it": {"method": "bnb_4bit"}}, "scheme": "it"}
    with pytest.raises(DiagnosticsError, match=r"RQ542.*only `Linear` may be quantized, and `.*` is a Conv1d"):
        rulequant.torch.apply_checkpoint(tmp_path / "unet", rules, "out")


def test_what_is_refused_while_loading(transformer: Path) -> None:
    """Rules in place of a checkpoint; a class that has other modules."""
    config = rulequant.torch.diffusers.ComponentConfig(MIXED)
    with pytest.raises(UsageError, match="quantizes no component of diffusers while it is loaded"):
        diffusers.FluxTransformer2DModel.from_pretrained(transformer, quantization_config=config)
    rulequant.torch.apply_checkpoint(transformer, MIXED, "out")
    path = Path("out/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_single_layers": 1}))
    with pytest.raises(ModelError, match=r"has no module single_transformer_blocks\.1\."):
        load("out")
