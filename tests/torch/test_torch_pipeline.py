"""A pipeline of diffusers planned and applied as a whole: each component by its own rules, the rest copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from diffusion_models import RULES, inputs_for, save_pipeline  # noqa: E402

import rulequant  # noqa: E402
import rulequant.torch  # noqa: E402
from rulequant.cli.main import run  # noqa: E402
from rulequant.errors import ModelError, RulequantError, UsageError  # noqa: E402
from rulequant.torch.checkpoint.manifest import check_manifest, load_manifest, write_manifest  # noqa: E402
from rulequant.torch.pipeline import open_pipeline, plan_pipeline  # noqa: E402

Capture = pytest.CaptureFixture[str]
PIPELINE = {
    "version": 1,
    "name": "tiny_flux",
    "components": {"transformer": "./transformer.yaml", "text_encoder_2": "t5"},
}
COPIED = ("scheduler", "text_encoder", "tokenizer", "tokenizer_2", "vae")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Flux pipeline."""
    return save_pipeline(tmp_path_factory.mktemp("pipeline") / "flux")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with the rule files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    Path("transformer.yaml").write_text(json.dumps(RULES))
    Path("flux.yaml").write_text(json.dumps(PIPELINE))
    return tmp_path


def files_of(folder: Path) -> dict[str, bytes]:
    """The contents by path."""
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As a user loads it; diffusers' loader of bitsandbytes layers wants a GPU, though its CPU path works."""
    quantizer = "diffusers.quantizers.bitsandbytes.bnb_quantizer.BnB4BitDiffusersQuantizer"
    monkeypatch.setattr(f"{quantizer}.validate_environment", lambda *_, **__: None)
    monkeypatch.setattr(f"{quantizer}.update_device_map", lambda *_: {"": "cpu"})
    return diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")  # older releases know no other name
def test_diffusers_loads_it(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The components that the rules name have quantized layers, the others none, and all of them run."""
    rulequant.torch.apply_checkpoint(saved, "flux.yaml", "out")
    pipeline = load(Path("out"), monkeypatch)
    assert type(pipeline) is diffusers.FluxPipeline
    layers = {
        name: sum(type(each).__name__ == "Linear4bit" for each in getattr(pipeline, name).modules())
        for name in ("transformer", "text_encoder", "text_encoder_2", "vae")
    }
    assert layers == {"transformer": 23, "text_encoder": 0, "text_encoder_2": 10, "vae": 0}
    plain = diffusers.FluxPipeline.from_pretrained(saved, torch_dtype=torch.bfloat16)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        for got, wanted in (
            (pipeline.transformer(**inputs_for()).sample, plain.transformer(**inputs_for()).sample),
            (pipeline.text_encoder_2(ids).last_hidden_state, plain.text_encoder_2(ids).last_hidden_state),
        ):
            assert (got.float() - wanted.float()).norm() < 0.25 * wanted.float().norm()
        images = pipeline(
            prompt_embeds=torch.randn(1, 8, 64).bfloat16(), pooled_prompt_embeds=torch.randn(1, 64).bfloat16(),
            height=16, width=16, num_inference_steps=1, output_type="pt",
        ).images  # fmt: skip
    assert images.isfinite().all()


def test_each_component_is_as_alone(saved: Path) -> None:
    """The bytes are those of the component applied by itself; the rest are copies; the source is as it was."""
    before = files_of(saved)
    plan = rulequant.torch.apply_checkpoint(saved, "flux.yaml", "out")
    rulequant.torch.apply_checkpoint(saved / "transformer", RULES, "transformer")
    rulequant.torch.apply_checkpoint(saved / "text_encoder_2", "t5", "text_encoder_2")
    written = files_of(Path("out"))
    own = {"README.md", "rulequant-manifest.json", "rulequant-plan.json", "rulequant-rules.yaml"}
    for name in ("transformer", "text_encoder_2"):
        alone = {f"{name}/{file}": data for file, data in files_of(Path(name)).items() if file not in own}
        assert alone.items() <= written.items()
    copies = {file: data for file, data in before.items() if file.split("/")[0] in COPIED}
    assert copies.items() <= written.items()
    assert written["model_index.json"] == before["model_index.json"]
    assert files_of(saved) == before
    assert {each.name.split(".")[0] for each in plan.decisions} == {"transformer", "text_encoder_2"}
    assert check_manifest(Path("out")) == []
    assert set(load_manifest(Path("out")).source) == {
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder_2/model.safetensors",
    }


def test_the_folder_explains_itself(saved: Path) -> None:
    """Its rules load, and make the same again; the card keeps the source's words and says how to load it."""
    rulequant.torch.apply_checkpoint(saved, "flux.yaml", "out")
    rules = rulequant.load_rules("out/rulequant-rules.yaml")
    assert rules.sha256 == rulequant.load_rules("flux.yaml").sha256
    rulequant.torch.apply_checkpoint(saved, rules, "again")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert Path("again", weights).read_bytes() == Path("out", weights).read_bytes()
    card = Path("out/README.md").read_text()
    assert card.startswith("---\nlicense: mit\nlibrary_name: diffusers\n")
    assert "pipeline = FluxPipeline.from_pretrained(" in card
    assert card.endswith("A pipeline.\n")


def test_the_plan(saved: Path, capsys: Capture) -> None:
    """Each component has its plan, the others their bytes, and the totals are those of what is written."""
    assert run(["plan", str(saved), "flux.yaml", "--format", "json", "-o", "plan.json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(Path("plan.json").read_text())
    assert list(data["components"]) == ["text_encoder_2", "transformer"]
    assert set(data["copied"]) == set(COPIED)
    parts = [each["summary"]["bytes_after"] for each in data["components"].values()]
    assert data["summary"]["bytes_after"] == sum(parts)
    assert data["summary"]["pipeline_bytes_after"] == sum(parts) + sum(data["copied"].values())
    assert run(["plan", str(saved), "flux.yaml"]) == 0
    text = capsys.readouterr().out
    assert "component transformer\n" in text
    assert "vae             " in text


def test_why(saved: Path, capsys: Capture) -> None:
    """The component's name stands before the module's."""
    assert run(["why", str(saved), "flux.yaml", "transformer.norm_out.linear"]) == 0
    assert "not quantized: skip" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["plan", "PIPELINE"], 2, "is a pipeline of several models (text_encoder, text_encoder_2, transformer, vae)"),
        (["plan", "PIPELINE", "transformer.yaml"], 2, "transformer.yaml is for one model"),
        (
            ["apply", "PIPELINE", "-o", "out"],
            2,
            "give a rule file that says it: `components: {text_encoder: rules.yaml}`",
        ),
        (["apply", "PIPELINE", "--plan", "flux.yaml", "-o", "out"], 2, "flux.yaml is not a plan"),
        (
            ["why", "PIPELINE", "flux.yaml", "transformr.x"],
            2,
            "has no component `transformr`\n  did you mean `transformer`",
        ),
        (["why", "PIPELINE", "flux.yaml", "vae.x"], 2, "does not name the component `vae`, so it is copied"),
        (["inventory", "PIPELINE"], 2, "is a pipeline of several models\n  give one of them: "),
        (["plan", "PIPELINE/transformer", "flux.yaml"], 1, "RQ325"),
        (["plan", "PIPELINE", "typo.yaml"], 1, "RQ544"),
        (["plan", "PIPELINE", "scheduler.yaml"], 1, "the component `scheduler` is no model: it has no config.json"),
        (["apply", "PIPELINE", "typo.yaml", "-o", "out"], 1, "did you mean `transformer`"),
        (["apply", "PIPELINE", "two_methods.yaml", "-o", "out", "--container", "bitsandbytes"], 1, "RQ542"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_is_refused(saved: Path, capsys: Capture, arguments: list[str], code: int, message: str) -> None:
    """Each says why and what to do, and nothing is written."""
    Path("typo.yaml").write_text('{"version": 1, "components": {"transformr": "./transformer.yaml"}}')
    Path("scheduler.yaml").write_text('{"version": 1, "components": {"scheduler": "t5"}}')
    mixed = RULES | {"rules": [{"modules": "**.ff*", "scheme": "int8"}]}
    Path("mixed.yaml").write_text(json.dumps(mixed))
    Path("two_methods.yaml").write_text('{"version": 1, "components": {"transformer": "./mixed.yaml"}}')
    assert run([each.replace("PIPELINE", str(saved)) for each in arguments]) == code
    told = capsys.readouterr()
    assert message in told.out + told.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ("[", ModelError, "not valid JSON"),
        ("[]", ModelError, "is not a JSON object"),
        ("{}", ModelError, "`_class_name`, the class of the pipeline, is missing"),
        ('{"_class_name": "X", "../x": ["diffusers", "Y"]}', ModelError, "is no name of a component"),
        ('{"_class_name": "X", "vae": [null, null]}', UsageError, "none of whose components is a model"),
    ],
    ids=["syntax", "list", "no class", "path", "nothing"],
)
def test_an_index_that_says_something_else(index: str, error: type[RulequantError], message: str) -> None:
    """Refused in words; no name leads out of the folder."""
    Path("model").mkdir()
    Path("model/model_index.json").write_text(index)
    with pytest.raises(error, match=message):
        rulequant.torch.apply_checkpoint("model", RULES, "out")


def test_what_is_copied(saved: Path) -> None:
    """Of a component without rules its safetensors and side files; other formats only where it has no safetensors."""
    shutil.copytree(saved, "source")
    for name, text in {
        "vae/diffusion_pytorch_model.bin": "a pickle",
        "vae/diffusion_pytorch_model.fp16.safetensors": "a variant",
        "scheduler/extra.bin": "all it has",
        "flux-dev.safetensors": "one file of everything",
        "assets/grid.png": "a picture",
        ".git/config": "hidden",
    }.items():
        path = Path("source", name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    rulequant.torch.apply_checkpoint("source", "flux.yaml", "out")
    written = files_of(Path("out"))
    assert {"scheduler/extra.bin", "assets/grid.png"} <= written.keys()
    assert (
        not {
            "vae/diffusion_pytorch_model.bin",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "flux-dev.safetensors",
            ".git/config",
        }
        & written.keys()
    )


def test_a_plan_is_for_one_model(saved: Path) -> None:
    """The plan of a component is none for the pipeline."""
    pipeline = open_pipeline(str(saved))
    plan = plan_pipeline(pipeline, rulequant.load_rules("flux.yaml")).components["transformer"]
    with pytest.raises(UsageError, match="is a pipeline, and the plan is for one model"):
        rulequant.torch.apply_checkpoint(saved, plan, "out")


def test_verify(saved: Path, capsys: Capture) -> None:
    """All files, and each component by its plan and against its original; a changed byte is found, wherever it is."""
    assert run(["apply", str(saved), "flux.yaml", "-o", "out", "-q"]) == 0
    assert run(["verify", "out", "--against", str(saved), "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data["components"]) == {"text_encoder_2", "transformer"}
    assert data["copied"]["different"] == 0
    assert data["copied"]["equal"] == 10
    assert run(["verify", "out", "--against", str(saved)]) == 0
    text = capsys.readouterr().out
    assert f"against  {saved}: all {data['copied']['equal']} copied files are the same\n" in text
    assert "component transformer\noutput      out/transformer\n" in text
    assert "23 of 42 modules quantized when diffusers loads it (bitsandbytes), as planned" in text
    assert text.endswith("\nno problems\n")
    for file in ("vae/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model.safetensors"):
        data = bytearray(Path("out", file).read_bytes())
        data[-1] ^= 1
        Path("out", file).write_bytes(data)
        assert run(["verify", "out", "--format", "json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert file in {each["value"] for each in found["diagnostics"]}
    assert run(["verify", "out"]) == 1
    assert capsys.readouterr().out.endswith("2 problems found\n")


def test_verify_in_python(saved: Path) -> None:
    """One result with those of the components, whose weights are compared with the original's."""
    rulequant.torch.apply_checkpoint(saved, "flux.yaml", "out")
    found = rulequant.torch.verify("out", saved)
    assert found.ok
    errors = [
        each.relative_error for part in found.components.values() if part.comparison for each in part.comparison.weights
    ]
    assert len(errors) == 33
    assert 0.05 < min(errors) <= max(errors) < 0.15


def test_verify_against_another(saved: Path, capsys: Capture) -> None:
    """A copy that the original has otherwise, or not at all, is named; one model is no original of a pipeline."""
    shutil.copytree(saved, "other")
    Path("other/scheduler/scheduler_config.json").write_text("{}")
    shutil.rmtree("other/tokenizer")
    rulequant.torch.apply_checkpoint(saved, "flux.yaml", "out")
    assert run(["verify", "out", "--against", "other", "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)["diagnostics"]
    assert {each["code"] for each in found} == {"RQ545"}
    messages = {each["value"]: each["message"] for each in found}
    assert messages["scheduler/scheduler_config.json"].endswith("a copy, and other has another file there")
    assert messages["tokenizer/tokenizer.json"].endswith("a copy, and other has none")
    assert run(["verify", "out", "--against", str(saved / "transformer")]) == 2
    assert "transformer is no folder of one\n  give the folder of the pipeline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "code", "message"),
    [
        ("rulequant-plan.json", "RQ533", "the manifest says"),
        ("transformer/rulequant-plan.json", "RQ533", "another plan for the component than that of the pipeline"),
        ("rulequant-rules.yaml", "RQ533", "rules have the sha256"),
    ],
    ids=["plan", "component", "rules"],
)
def test_records_that_do_not_belong_together(saved: Path, capsys: Capture, file: str, code: str, message: str) -> None:
    """A plan or rules of another run, each in order by itself, with a manifest that lists them."""
    rulequant.torch.apply_checkpoint(saved, "flux.yaml", "out")
    other = RULES | {"scheme": "fp4"}
    Path("transformer.yaml").write_text(json.dumps(other))
    rulequant.torch.apply_checkpoint(saved, "flux.yaml", "other")
    shutil.copy(Path("other", file), Path("out", file))
    if file.endswith("yaml"):  # it names those of the components
        shutil.copy(Path("other/transformer", file), Path("out/transformer", file))
    old = load_manifest(Path("out"))
    Path("out/rulequant-manifest.json").unlink()
    facts = {"source": old.source, "rules_sha256": old.rules_sha256, "plan_sha256": old.plan_sha256}
    write_manifest(Path("out"), versions=old.versions, **facts)
    assert run(["verify", "out", "--format", "json"]) == 1
    found = [each for each in json.loads(capsys.readouterr().out)["diagnostics"] if each["code"] == code]
    assert message in found[0]["message"]
