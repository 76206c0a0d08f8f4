"""A component of diffusers planned and applied: its own names of files, its own loader, the bytes of in memory."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from diffusion_models import RULES, TRANSFORMER, inputs_for, save_transformer, save_unet  # noqa: E402

import rulequant.torch  # noqa: E402
from rulequant.cli.main import run  # noqa: E402
from rulequant.diagnostics import DiagnosticsError  # noqa: E402
from rulequant.errors import CheckpointError, MissingExtraError, ModelError  # noqa: E402
from rulequant.torch.checkpoint.manifest import check_manifest  # noqa: E402
from rulequant.torch.skeleton import build_skeleton  # noqa: E402

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The component's folder."""
    return save_transformer(tmp_path_factory.mktemp("flux") / "transformer")


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """As a user loads it; diffusers refuses machines without a GPU, though its CPU path works."""
    for name in ("BnB4BitDiffusersQuantizer", "BnB8BitDiffusersQuantizer"):
        monkeypatch.setattr(
            f"diffusers.quantizers.bitsandbytes.bnb_quantizer.{name}.validate_environment", lambda *_, **__: None
        )
    return diffusers.FluxTransformer2DModel.from_pretrained(
        folder, torch_dtype=torch.bfloat16, device_map={"": "cpu"}, **options
    )


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def test_the_config_names_the_class(transformer: Path) -> None:
    """`_class_name` is the model type that rule files and messages go by; the files tell the dtype."""
    skeleton = build_skeleton(str(transformer))
    inventory = skeleton.inventory()
    assert inventory.model_type == inventory.architecture == "FluxTransformer2DModel"
    assert skeleton.dtype == torch.bfloat16
    assert {each.device.type for each in skeleton.model.parameters()} == {"meta"}


def test_the_config_alone_is_planned(tmp_path: Path) -> None:
    """Without weights the dtype is that in which diffusers makes a model."""
    config = {"_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.31.0", **TRANSFORMER}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert build_skeleton(str(tmp_path)).dtype == torch.float32


def test_the_plan_counts_what_the_files_hold(tmp_path: Path) -> None:
    """A tensor in another dtype than the others keeps it."""
    from safetensors.torch import load_file, save_file

    folder = save_transformer(tmp_path / "transformer")
    tensors = load_file(folder / WEIGHTS)
    tensors["norm_out.linear.bias"] = tensors["norm_out.linear.bias"].float()
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    plan = rulequant.torch.apply_checkpoint(folder, RULES, tmp_path / "out")
    written = load_file(tmp_path / "out" / WEIGHTS)
    assert written["norm_out.linear.bias"].dtype == torch.float32
    assert plan.summary["bytes_before"] == sum(each.nbytes for each in tensors.values())
    payload = sum(each.nbytes for name, each in written.items() if ".quant_state." not in name)
    assert plan.summary["bytes_after"] == payload


@pytest.mark.parametrize("shard", [5_000_000_000, 60_000], ids=["one file", "shards"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"rules": [{"modules": "**.ff*", "scheme": "fp4"}]}, {"scheme": "int8"}],
    ids=["nf4", "nf4 and fp4", "int8"],
)
def test_diffusers_loads_it(
    transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], shard: int
) -> None:
    """With the tensors of the model that is quantized in memory, and it computes the same."""
    rules = RULES | changes
    plan = rulequant.torch.apply_checkpoint(transformer, rules, tmp_path / "out", max_shard_bytes=shard)
    assert ((tmp_path / "out" / WEIGHTS).exists(), len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (
        shard > 60_000,
        shard == 60_000,
    )
    loaded = load(tmp_path / "out", monkeypatch)
    expected = diffusers.FluxTransformer2DModel.from_pretrained(transformer, torch_dtype=torch.bfloat16)
    plain = diffusers.FluxTransformer2DModel.from_pretrained(transformer, torch_dtype=torch.bfloat16)
    assert [each.scheme for each in rulequant.torch.apply(expected, rules).decisions] == [
        each.scheme for each in plan.decisions
    ]
    mine, theirs = expected.state_dict(), loaded.state_dict()
    names = {name for name in mine if not name.endswith("weight_format")}
    assert names == {name for name in theirs if not name.endswith("weight_format")}
    assert [name for name in names if not torch.equal(raw(mine[name]), raw(theirs[name]))] == []
    with torch.no_grad():
        got, wanted = (model(**inputs_for()).sample.float() for model in (loaded, plain))
    assert (got - wanted).norm() < 0.2 * wanted.norm()


def test_the_folder_explains_itself(transformer: Path, tmp_path: Path) -> None:
    """Its config keeps what diffusers wrote, and the card has the class."""
    rulequant.torch.apply_checkpoint(transformer, RULES, tmp_path / "out")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (transformer, tmp_path / "out"))
    assert after.pop("quantization_config")["quant_method"] == "bitsandbytes"
    assert before == after
    assert check_manifest(tmp_path / "out") == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: diffusers\n" in card
    assert "from diffusers import FluxTransformer2DModel\n" in card


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"rules": [{"modules": "**.ff*", "scheme": "int8"}]}, "RQ542", "share one `method`"),
        ({"schemes": {"nf4": {"method": "bnb_4bit", "quant_storage": "bfloat16"}}}, "RQ542", "uint8` only"),
        (
            {
                "schemes": {
                    "nf4": {"method": "bnb_4bit"},
                    "half": {"method": "bnb_4bit", "compute_dtype": "float16"},
                },
                "rules": [{"modules": "**.ff*", "scheme": "half"}],
            },
            "RQ542",
            "share one `compute_dtype`",
        ),
        ({"skip_modules": ["proj_out"]}, "RQ543", r"load `single_transformer_blocks\.0\.proj_out` plain"),
        ({"quantizable_types": ["Conv2d"]}, "RQ501", "quantizes no module"),
    ],
    ids=["two methods", "storage", "compute dtype", "last segment", "nothing"],
)
def test_what_diffusers_cannot_load(
    transformer: Path, tmp_path: Path, changes: dict[str, Any], code: str, message: str
) -> None:
    """Where its own quantizer is asked for, refused before a weight is read, with the module in the way."""
    with pytest.raises(DiagnosticsError, match=f"{code}.*{message}"):
        rulequant.torch.apply_checkpoint(transformer, RULES | changes, tmp_path / "out", container="bitsandbytes")


def test_what_is_kept_in_float32(transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that the class declares stays, by a segment of its name as diffusers has it."""
    monkeypatch.setattr(diffusers.FluxTransformer2DModel, "_keep_in_fp32_modules", ["to_out"])
    plan = rulequant.torch.apply_checkpoint(transformer, RULES, tmp_path / "out")
    kept = {each.name for each in plan.decisions if each.reason == "keep_in_fp32"}
    assert kept == {"transformer_blocks.0.attn.to_out.0"}


def config_of(transformer: Path, folder: Path, **changes: Any) -> str:
    """A copy of the component with another config."""
    shutil.copytree(transformer, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"_class_name": "FluxTransformer3DModel"},
            ModelError,
            r"no model class .*\n  did you mean `FluxTransformer2D",
        ),
        ({"_class_name": "FluxPipeline"}, ModelError, r"diffusers 0.* has no model class 'FluxPipeline'"),
        ({"num_attention_heads": "x"}, ModelError, r"the model cannot be built from its config"),
        ({"num_layers": 2}, CheckpointError, r"`transformer_blocks\.1\..*` is in no shard\n  save it anew"),
        ({"num_layers": 0}, CheckpointError, r"is in the shards, and FluxTransformer2DModel does not have it"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, CheckpointError, "is already quantized"),
    ],
    ids=["typo", "pipeline", "bad value", "missing", "extra", "quantized"],
)
def test_components_that_do_not_fit(
    transformer: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Each says what is wrong."""
    source = config_of(transformer, tmp_path / "source", **changes)
    with pytest.raises(error, match=message):
        rulequant.torch.apply_checkpoint(source, RULES, tmp_path / "out")


def test_without_diffusers(transformer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"model of diffusers, which is not installed\n  pip install"):
        build_skeleton(str(transformer))


def test_the_command_line(
    transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """plan, why, inventory and apply take the folder; the inventory plans without torch and weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    Path("rules.yaml").write_text(json.dumps(RULES))
    assert run(["plan", str(transformer), "rules.yaml", "-o", "plan.json"]) == 0
    assert run(["why", str(transformer), "rules.yaml", "norm_out.linear"]) == 0
    assert run(["inventory", str(transformer), "-o", "inventory.json"]) == 0
    capsys.readouterr()
    assert run(["plan", "inventory.json", "rules.yaml", "--format", "json"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["plan_sha256"] == json.loads(Path("plan.json").read_text())["plan_sha256"]
    )
    assert run(["apply", str(transformer), "--plan", "plan.json", "-o", "out"]) == 0
    assert "container        bitsandbytes, which diffusers loads as it is" in capsys.readouterr().err


@pytest.mark.parametrize("double_quant", [True, False])
def test_verify(transformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], double_quant: bool) -> None:
    """The layers are those that diffusers' own code makes; floats beside packed weights are not taken for weights."""
    rules = {
        "version": 1,
        "schemes": {"nf4": {"method": "bnb_4bit", "double_quant": double_quant}},
        "scheme": "nf4",
        "skip_modules": ["proj_out", "**.proj_out"],
    }
    rulequant.torch.apply_checkpoint(transformer, rules, tmp_path / "out")
    assert build_skeleton(str(tmp_path / "out")).dtype == torch.bfloat16
    assert run(["verify", str(tmp_path / "out"), "--against", str(transformer)]) == 0
    assert "when diffusers loads it" in capsys.readouterr().out
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["llm_int8_skip_modules"] = ["proj_out", "x_embedder"]
    path.write_text(json.dumps(config))
    assert run(["verify", str(tmp_path / "out")]) == 1
    assert "diffusers would make Linear of `x_embedder`, the plan says Linear4bit" in capsys.readouterr().out


def test_a_unet_by_the_bundled_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of its attention is quantized, though a method that only a user calls would read its weights."""
    source, output = save_unet(tmp_path / "unet"), tmp_path / "out"
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(["apply", str(source), "-o", str(output)]) == 0
    assert "taking `diffusion`, the default for models of diffusers" in capsys.readouterr().err
    plan = json.loads((output / "rulequant-plan.json").read_text())
    kept = {
        each["name"].rpartition(".")[2] for each in plan["modules"] if each["type"] == "Linear" and not each["scheme"]
    }
    assert kept == {"linear_1", "linear_2", "time_emb_proj"}
    quantizer = "diffusers.quantizers.bitsandbytes.bnb_quantizer.BnB4BitDiffusersQuantizer"
    monkeypatch.setattr(f"{quantizer}.validate_environment", lambda *_, **__: None)
    loaded, plain = (
        diffusers.UNet2DConditionModel.from_pretrained(each, torch_dtype=torch.float32, device_map={"": "cpu"})
        for each in (output, source)
    )
    torch.manual_seed(1)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor(1), torch.randn(1, 4, 64)
    with torch.no_grad():
        got, wanted = (model(*inputs).sample for model in (loaded, plain))
    assert (got - wanted).norm() < 0.2 * wanted.norm()
