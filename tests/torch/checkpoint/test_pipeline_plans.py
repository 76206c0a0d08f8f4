"""A plan of a pipeline saved, and applied without the rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

from apply_stops import contents
from diffusion_models import RULES, save_pipeline

import rulequant.torch
from rulequant.cli.main import run
from rulequant.errors import UsageError
from rulequant.plan_file import load_plan, read_plan

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Flux pipeline."""
    return save_pipeline(tmp_path_factory.mktemp("pipeline") / "flux")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with rule files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    Path("transformer.yaml").write_text(json.dumps(RULES))
    components = {"transformer": "./transformer.yaml", "text_encoder_2": "t5"}
    Path("flux.yaml").write_text(json.dumps({"version": 1, "components": components}))
    return tmp_path


def test_a_saved_plan(saved: Path, capsys: Capture, folder: Path) -> None:
    """`apply --plan` makes the same weights without the rules, and the card says how."""
    assert run(["plan", str(saved), "flux.yaml", "-o", "plan.json"]) == 0
    assert run(["apply", str(saved), "flux.yaml", "-o", "by-rules", "-q"]) == 0
    for each in ("flux.yaml", "transformer.yaml"):
        Path(each).unlink()
    assert run(["apply", str(saved), "--plan", "plan.json", "-o", "out", "-q"]) == 0
    by_rules, by_plan = contents(Path("by-rules")), contents(Path("out"))
    assert {name: by_plan.get(name) for name in by_rules if name.endswith((".safetensors", "config.json"))} == {
        name: data for name, data in by_rules.items() if name.endswith((".safetensors", "config.json"))
    }
    assert "rulequant-rules.yaml" not in by_plan
    assert b"rulequant apply SOURCE --plan rulequant-plan.json -o OUTPUT" in by_plan["README.md"]
    again = rulequant.torch.apply_checkpoint(saved, read_plan(Path("out/rulequant-plan.json"))[0], "again")
    assert again.sha256 == json.loads(by_plan["rulequant-plan.json"])["plan_sha256"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pipeline": "StableDiffusionPipeline"}, "is a FluxPipeline, not a StableDiffusionPipeline"),
        ({"plan_sha256": "0" * 64}, "its components do not hash to plan_sha256"),
        ({"copied": {"vae": -1}}, "copied.vae"),
        ({"components": {}}, "its components do not hash to plan_sha256"),
    ],
    ids=["another pipeline", "edited", "invalid", "nothing"],
)
def test_a_plan_that_is_not_taken(saved: Path, capsys: Capture, change: dict[str, Any], message: str) -> None:
    """The first thing that is wrong with it is named."""
    assert run(["plan", str(saved), "flux.yaml", "-o", "plan.json"]) == 0
    Path("plan.json").write_text(json.dumps(json.loads(Path("plan.json").read_text()) | change))
    assert run(["apply", str(saved), "--plan", "plan.json", "-o", "out"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_plans_are_not_mixed_up(saved: Path, capsys: Capture) -> None:
    """The plan of one model is none for a pipeline, and the other way round."""
    assert run(["plan", str(saved), "flux.yaml", "-o", "whole.json"]) == 0
    assert run(["plan", str(saved / "transformer"), "transformer.yaml", "-o", "part.json"]) == 0
    assert run(["apply", str(saved), "--plan", "part.json", "-o", "out"]) == 2
    assert "is a pipeline, and the plan is for one model" in capsys.readouterr().err
    assert run(["apply", str(saved / "transformer"), "--plan", "whole.json", "-o", "out"]) == 2
    assert "the plan is for a pipeline, and " in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"whole\.json is the plan of a pipeline, of several models"):
        load_plan(Path("whole.json"))
    with pytest.raises(UsageError, match="is one model, and the plan is for a pipeline"):
        rulequant.torch.apply_checkpoint(saved / "transformer", read_plan(Path("whole.json"))[0], "out")
