"""A pipeline on the Hub: planned without its weights, downloaded as far as needed, and applied as its folder is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

from diffusion_models import RULES, save_pipeline
from hub_server import Hub, Once
from huggingface_hub import constants

import rulequant.torch
from rulequant.cli.main import run
from rulequant.diagnostics import DiagnosticsError
from rulequant.errors import CheckpointError, ModelError, RulequantError, UsageError
from rulequant.torch.checkpoint.manifest import check_manifest, load_manifest
from rulequant.torch.pipeline import Pipeline, open_model
from rulequant.torch.skeleton import build_skeleton

Capture = pytest.CaptureFixture[str]
EXTRA = {
    "flux-dev.safetensors": b"one file of everything",
    "vae/diffusion_pytorch_model.bin": b"a pickle",
    "vae/diffusion_pytorch_model.fp16.safetensors": b"a variant",
    "transformer_onnx/model.onnx": b"another format",
    "onnx/model.safetensors": b"no component",
}


@pytest.fixture(scope="session")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Flux pipeline."""
    return save_pipeline(tmp_path_factory.mktemp("source") / "flux")


@pytest.fixture(autouse=True)
def folder(hub: Hub, flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the rule files; the Hub has the pipeline, and beside it what nobody asks for."""
    (files,) = hub.add("org/flux", flux).commits.values()
    files |= EXTRA
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    Path("transformer.yaml").write_text(json.dumps(RULES))
    components = {"transformer": "./transformer.yaml", "text_encoder_2": "t5"}
    Path("flux.yaml").write_text(json.dumps({"version": 1, "components": components}))
    return tmp_path


def files_in(folder: Path) -> dict[str, bytes]:
    """The contents by path."""
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def plan_of(model: str, capsys: Capture) -> dict[str, Any]:
    """The plan JSON, without the name of the model."""
    assert run(["plan", model, "flux.yaml", "--format", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.replace(model, "MODEL"))
    return found


def test_the_plan_is_that_of_the_folder(hub: Hub, flux: Path, capsys: Capture) -> None:
    """Dtypes are those of the headers, sizes of what is copied those of the list of files; no weight is asked for."""
    assert plan_of("org/flux", capsys) == plan_of(str(flux), capsys)
    weights = [each for each in hub.requests if each.path.endswith(".safetensors") and each.method == "GET"]
    assert {each.path.partition("/main/")[0].split("/")[-1] for each in weights} == {
        "diffusion_pytorch_model.safetensors"
    }
    assert all(each.range for each in weights)
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))


def test_the_bytes_are_those_of_the_folder(hub: Hub, flux: Path) -> None:
    """All files but what tells of the source; other formats and variants are not asked for."""
    rulequant.torch.apply_checkpoint(flux, "flux.yaml", "local")
    plan = rulequant.torch.apply_checkpoint("org/flux", "flux.yaml", "out", workers=2)
    local, out = files_in(Path("local")), files_in(Path("out"))
    told = {"README.md", "rulequant-manifest.json", "rulequant-plan.json"}
    told |= {f"{each}/rulequant-plan.json" for each in ("transformer", "text_encoder_2")}
    assert {name: data for name, data in out.items() if name not in told} == {
        name: data for name, data in local.items() if name not in told
    }
    assert plan.model == "org/flux"
    assert check_manifest(Path("out")) == []
    (commit,) = hub.repos["org/flux"].commits
    assert load_manifest(Path("out")).base_model == {"repo_id": "org/flux", "commit": commit}
    card = out["README.md"].decode()
    assert "base_model: org/flux\n" in card
    assert f"rulequant apply org/flux --revision {commit} rulequant-rules.yaml -o OUTPUT" in card
    assert not [each.path for each in hub.requests if each.path.split("/main/")[-1] in EXTRA]


def test_a_download_goes_on_where_it_stopped(hub: Hub, flux: Path, capsys: Capture) -> None:
    """A file whose connection is cut each time is fetched on in the next run, from the byte at which it stopped."""
    name = "vae/diffusion_pytorch_model.safetensors"
    hub.drop_after = Once({name: 100_000})
    with pytest.raises(ModelError, match="running again goes on where it stopped"):
        rulequant.torch.apply_checkpoint("org/flux", "flux.yaml", "out")
    assert not Path("out").exists()
    hub.drop_after = {}
    asked = len(hub.requests)
    assert run(["apply", "org/flux", "flux.yaml", "-o", "out"]) == 0
    again = [each.range for each in hub.requests[asked:] if each.path.endswith(name) and "/storage/" in each.path]
    assert len(again) == 1
    assert int(str(again[0]).removeprefix("bytes=").removesuffix("-")) >= 90_000
    assert "downloading " in capsys.readouterr().err
    assert check_manifest(Path("out")) == []


def test_offline(hub: Hub, flux: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """What is cached is planned and applied; what is not all there is refused, and nothing is written."""
    wanted = plan_of("org/flux", capsys)
    hub.down = True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        rulequant.torch.apply_checkpoint("org/flux", "flux.yaml", "out")
    assert not Path("out").exists()
    hub.down = False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    rulequant.torch.apply_checkpoint("org/flux", "flux.yaml", "out")
    hub.down = True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert plan_of("org/flux", capsys) == wanted
    rulequant.torch.apply_checkpoint("org/flux", "flux.yaml", "again")
    assert files_in(Path("again")) == files_in(Path("out"))


@pytest.mark.parametrize("missing", ["tokenizer", "vae/diffusion_pytorch_model.safetensors"])
def test_offline_with_a_part_missing(hub: Hub, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """A component that is copied may not be left out in silence."""
    import shutil

    rulequant.torch.apply_checkpoint("org/flux", "flux.yaml", "out")
    (snapshot,) = Path(constants.HF_HUB_CACHE).glob("models--org--flux/snapshots/*")
    if (snapshot / missing).is_dir():
        shutil.rmtree(snapshot / missing)
    else:
        (snapshot / missing).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="its weights are not all in the Hub's cache"):
        rulequant.torch.apply_checkpoint("org/flux", "flux.yaml", "again")


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("rules", DiagnosticsError, "RQ401"),
        ("component", DiagnosticsError, "RQ544"),
        ("type", DiagnosticsError, "RQ501"),
        ("output", CheckpointError, "the output already exists"),
        ("one model", UsageError, "is a pipeline of several models"),
    ],
)
def test_nothing_is_downloaded_for_nothing(hub: Hub, case: str, error: type[RulequantError], message: str) -> None:
    """What would stop apply later stops it before the weights are asked for."""
    nothing = RULES | {"quantizable_types": ["Conv1d"]}
    changed = {"rules": RULES | {"skip_modules": ["no_such"]}, "type": nothing}.get(case, RULES)
    Path("transformer.yaml").write_text(json.dumps(changed))
    if case == "component":
        Path("flux.yaml").write_text(Path("flux.yaml").read_text().replace('"transformer"', '"transformr"'))
    if case == "output":
        Path("out").mkdir()
    rules = "transformer.yaml" if case == "one model" else "flux.yaml"
    with pytest.raises(error, match=message):
        rulequant.torch.apply_checkpoint("org/flux", rules, "out")
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))


@pytest.mark.parametrize("component", ["transformer", "text_encoder_2"])
def test_a_component_is_a_model(hub: Hub, flux: Path, component: str) -> None:
    """`org/name/component` is what the component's folder is; only its files are downloaded."""
    rules = "transformer.yaml" if component == "transformer" else "t5"
    name = f"org/flux/{component}"
    assert build_skeleton(name).inventory().modules == build_skeleton(str(flux / component)).inventory().modules
    rulequant.torch.apply_checkpoint(flux / component, rules, "local")
    rulequant.torch.apply_checkpoint(name, rules, "out")
    told = {"README.md", "rulequant-manifest.json", "rulequant-plan.json"}
    assert {each: data for each, data in files_in(Path("out")).items() if each not in told} == {
        each: data for each, data in files_in(Path("local")).items() if each not in told
    }
    (commit,) = hub.repos["org/flux"].commits
    assert f"rulequant apply {name} --revision {commit} " in Path("out/README.md").read_text()
    cached = list(Path(constants.HF_HUB_CACHE).glob("models--org--flux/snapshots/*/*"))
    assert {each.name for each in cached} == {"model_index.json", component}


def test_a_private_pipeline(hub: Hub, flux: Path) -> None:
    """`token=` serves for the index, the configs, the headers and the weights."""
    hub.add("org/private", flux, token="hf_secret")
    with pytest.raises(ModelError, match="private and not yours"):
        open_model("org/private")
    assert isinstance(open_model("org/private", token="hf_secret"), Pipeline)
    rulequant.torch.apply_checkpoint("org/private", "flux.yaml", "out", token="hf_secret")
    assert check_manifest(Path("out")) == []


def test_why(capsys: Capture) -> None:
    """As of a folder."""
    assert run(["why", "org/flux", "flux.yaml", "transformer.norm_out.linear"]) == 0
    assert "not quantized: skip" in capsys.readouterr().out
    assert run(["inventory", "org/flux"]) == 2
    assert "give one of them: org/flux/text_encoder, org/flux/text_encoder_2," in capsys.readouterr().err
