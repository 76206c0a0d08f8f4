"""diff, lock, plan --check, plan --html and init on a pipeline, whose components are taken as one model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from diffusion_models import RULES, save_pipeline

from rulequant.cli.main import run
from rulequant.loader import load_rules
from rulequant.lock_file import load_lock

Capture = pytest.CaptureFixture[str]
COPIED = "skip: the rules do not name the component, so it is copied"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Flux pipeline."""
    return save_pipeline(tmp_path_factory.mktemp("pipeline") / "flux")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with rule files for both components, and for one of them alone in fp4."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    Path("transformer.yaml").write_text(json.dumps(RULES))
    Path("fp4.yaml").write_text(json.dumps(RULES | {"scheme": "fp4"}))
    components = {"transformer": "./transformer.yaml", "text_encoder_2": "t5"}
    Path("both.yaml").write_text(json.dumps({"version": 1, "components": components}))
    Path("one.yaml").write_text('{"version": 1, "components": {"transformer": "./fp4.yaml"}}')
    return tmp_path


def test_diff(saved: Path, capsys: Capture) -> None:
    """Modules are named with their component; one that a side does not name counts as kept there."""
    assert run(["diff", str(saved), "both.yaml", "one.yaml", "--exit-code", "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    changes = {each["name"]: each for each in found["changes"]}
    wo = changes["text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"]
    assert (wo["a"]["scheme"], wo["b"]["reason"]) == ("text_encoder_2/nf4", "skip")
    proj = changes["transformer.proj_out"]
    assert (proj["a"]["scheme"], proj["b"]["scheme"]) == ("transformer/nf4", "transformer/fp4")
    assert not [name for name in changes if name.startswith(("vae.", "text_encoder."))]
    assert found["removed"] == found["added"] == []
    assert run(["diff", str(saved), "both.yaml", "one.yaml"]) == 0
    assert f"  - text_encoder_2/nf4\n  + {COPIED}\n" in capsys.readouterr().out
    assert run(["diff", str(saved), "both.yaml", "both.yaml", "--exit-code"]) == 0
    assert "every module is decided alike" in capsys.readouterr().out


def test_a_lock_holds(saved: Path, capsys: Capture) -> None:
    """`plan --check` says so, by the rules that the lock names; and finds an edit in the file of a component."""
    assert run(["lock", str(saved), "both.yaml"]) == 0
    lock = load_lock(Path("both.lock"))
    assert {each.name.partition(".")[0] for each in lock.plan.decisions} == {"text_encoder_2", "transformer"}
    assert lock.plan.container == "bitsandbytes"
    assert 0.6 < lock.plan.summary["coverage"] < lock.plan.layer_coverage < 1
    assert "diffusers" in lock.versions
    assert run(["plan", str(saved), "--check", "both.lock"]) == 0
    assert "both.lock holds: " in capsys.readouterr().out
    Path("transformer.yaml").write_text(json.dumps(RULES | {"scheme": "fp4"}))
    assert run(["plan", str(saved), "--check", "both.lock", "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["changed"]
    assert {each["name"].partition(".")[0] for each in found["changes"]} == {"transformer"}


def test_a_component_that_is_no_longer_named(saved: Path, capsys: Capture) -> None:
    """Its modules are copied now, not gone."""
    assert run(["lock", str(saved), "both.yaml", "-o", "x.lock"]) == 0
    assert run(["plan", str(saved), "one.yaml", "--check", "x.lock"]) == 1
    text = capsys.readouterr().out
    assert f"  - text_encoder_2/nf4\n  + {COPIED}\n" in text
    assert "- gone" not in text


def test_a_lock_tells_containers_apart(saved: Path, capsys: Capture) -> None:
    """What only rulequant loads is a change, even of one component."""
    assert run(["lock", str(saved), "both.yaml", "-o", "x.lock"]) == 0
    mixed = {"version": 1, "extends": "t5", "schemes": {"int8": {"method": "bnb_int8"}}}
    Path("t5.yaml").write_text(json.dumps(mixed | {"rules": [{"modules": "**.q", "scheme": "int8"}]}))
    Path("both.yaml").write_text(Path("both.yaml").read_text().replace('"t5"', '"./t5.yaml"'))
    assert run(["plan", str(saved), "--check", "x.lock"]) == 1
    assert "container        bitsandbytes  rulequant      differs\n" in capsys.readouterr().out


def test_a_report(saved: Path) -> None:
    """One page for all components, and the plan file beside it if that is asked for."""
    assert run(["plan", str(saved), "both.yaml", "--html", "x.html", "-o", "plan.json"]) == 0
    page = Path("x.html").read_text()
    assert "transformer.proj_out" in page
    assert "text_encoder_2.encoder" in page
    assert set(json.loads(Path("plan.json").read_text())["components"]) == {"text_encoder_2", "transformer"}


def test_init(saved: Path, capsys: Capture) -> None:
    """The file validates, plans, and names the file of each component; the VAE is left out with the reason."""
    assert run(["init", str(saved), "-o", "flux.yaml"]) == 0
    assert run(["validate", "flux.yaml"]) == 0
    assert set(load_rules("flux.yaml").components) == {"text_encoder", "text_encoder_2", "transformer"}
    text = Path("flux.yaml").read_text()
    assert "  transformer: diffusion  # FluxTransformer2DModel, " in text
    assert "of the models; what it gets wrong is seen in every image\n" in text
    assert run(["plan", str(saved), "flux.yaml"]) == 0


def test_init_with_what_cannot_be_built(saved: Path, capsys: Capture) -> None:
    """Such a component is a comment with the reason, and without any that can the file still reads well."""
    shutil.copytree(saved, "flux")
    Path("flux/text_encoder/config.json").write_text('{"model_type": "of tomorrow"}')
    assert run(["init", "flux"]) == 0
    text = capsys.readouterr().out
    assert "  # text_encoder:" in text
    assert "transformers does not know the model_type 'of tomorrow'" in text
    for name in ("text_encoder_2", "transformer", "vae"):
        shutil.rmtree(Path("flux", name))
    assert run(["init", "flux", "-o", "none.yaml"]) == 0
    assert run(["plan", "flux", "none.yaml"]) == 2
    assert "none.yaml is for one model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inventory", "PIPELINE"], "is a pipeline of several models\n  give one of them: PIPELINE/text_encoder, "),
        (["diff", "PIPELINE", "both.yaml", "t5"], "bundled:t5 is for one model"),
        (["lock", "PIPELINE"], "which component gets which rules is not said"),
        (["plan", "PIPELINE", "fp4.yaml", "--html", "x.html"], "fp4.yaml is for one model"),
        (["validate", "both.yaml", "--model", "PIPELINE"], "is a pipeline of several models"),
    ],
    ids=lambda each: " ".join(each[:3]) if isinstance(each, list) else "",
)
def test_what_is_refused(saved: Path, capsys: Capture, arguments: list[str], message: str) -> None:
    """Each says why and what to do."""
    assert run([each.replace("PIPELINE", str(saved)) for each in arguments]) == 2
    assert message.replace("PIPELINE", str(saved)) in capsys.readouterr().err
