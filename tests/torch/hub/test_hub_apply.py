"""apply on a Hub id: the bytes of the folder's own, with its origin recorded, and no download for nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub
from huggingface_hub import constants

from rulequant.diagnostics import DiagnosticsError
from rulequant.errors import CheckpointError, RulequantError, UsageError
from rulequant.plan import Plan
from rulequant.torch import apply_checkpoint
from rulequant.torch.checkpoint import remote
from rulequant.torch.checkpoint.manifest import check_manifest, load_manifest

RULES: dict[str, Any] = {"version": 1, "extends": "causal_lm"}
WEIGHTS = "model.safetensors"


def test_the_bytes_are_those_of_the_folder(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    """The same checkpoint, from the Hub and from a folder; the commit and the tag are in the manifest and the card."""
    repo = hub.add("org/tiny", checkpoint)
    repo.refs["v1"] = repo.refs["main"]
    apply_checkpoint(str(checkpoint), RULES, tmp_path / "local")
    plan = apply_checkpoint("org/tiny", RULES, tmp_path / "out", revision="v1")
    for name in (WEIGHTS, "config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert plan.model == "org/tiny"
    assert check_manifest(tmp_path / "out") == []
    commit = repo.refs["main"]
    assert load_manifest(tmp_path / "out").base_model == {"repo_id": "org/tiny", "commit": commit, "revision": "v1"}
    assert load_manifest(tmp_path / "local").base_model is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: org/tiny\n" in card
    assert f"Made from `org/tiny` at commit `{commit}` (`v1`) with rulequant" in card
    assert f"rulequant apply org/tiny --revision {commit} rulequant-rules.yaml -o OUTPUT" in card


def test_a_private_model_with_a_token(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    """`token=` serves for the config and for the weights."""
    hub.add("org/tiny", checkpoint, token="hf_secret")
    apply_checkpoint("org/tiny", RULES, tmp_path / "out", token="hf_secret")
    assert check_manifest(tmp_path / "out") == []
    assert "hf_secret" not in "".join(each.read_text("utf-8", "replace") for each in (tmp_path / "out").iterdir())


def _other_plan(checkpoint: Path) -> Plan:
    from tiny_models import save_tiny

    from rulequant.loader import load_rules
    from rulequant.planner import make_plan
    from rulequant.torch.skeleton import build_skeleton

    folder = save_tiny("opt", checkpoint.parent / "opt")
    return make_plan(load_rules(RULES), build_skeleton(str(folder)).inventory())


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("rules", DiagnosticsError, "RQ401"),
        ("nothing", DiagnosticsError, "RQ501"),
        ("container", DiagnosticsError, "RQ503"),
        ("plan", UsageError, "the plan is for another model"),
        ("output", CheckpointError, "the output already exists"),
        ("space", CheckpointError, "not enough space: needs"),
        ("quantized", CheckpointError, "org/tiny is already quantized"),
    ],
)
def test_nothing_is_downloaded_for_nothing(
    hub: Hub,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    error: type[RulequantError],
    message: str,
) -> None:
    """What would stop apply later stops it before the weights are asked for."""
    repo = hub.add("org/tiny", checkpoint)
    mixed = {"rules": [{"modules": "**.mlp", "scheme": "int8"}]}
    changes = {
        "rules": {"skip_modules": ["no_such_module"]},
        "nothing": {"quantizable_types": ["Conv1D"]},
        "container": mixed,
    }
    if case == "output":
        (tmp_path / "out").mkdir()
    if case == "quantized":
        (files,) = repo.commits.values()
        config = json.loads(files["config.json"]) | {"quantization_config": {"quant_method": "awq"}}
        files["config.json"] = json.dumps(config).encode()
    if case == "space":  # the output goes to another device
        monkeypatch.setattr(remote, "free_bytes", lambda _: 0)
        monkeypatch.setattr(remote, "_is_same_device", lambda *_: False)
    rules = _other_plan(checkpoint) if case == "plan" else RULES | changes.get(case, {})
    with pytest.raises(error, match=message):
        apply_checkpoint(
            "org/tiny", rules, tmp_path / "out", container="bitsandbytes" if case == "container" else "auto"
        )
    assert not hub.asked(WEIGHTS, "HEAD")


def _run(hub: Hub, tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, as a user would have set it up."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-m", "rulequant", *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
    )


def test_the_command_line(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they always do; stderr says what is downloaded."""
    hub.add("org/tiny", checkpoint, token="hf_secret")
    refused = _run(hub, tmp_path, "apply", "org/tiny", "-o", "out")
    assert refused.returncode == 2
    assert "no model org/tiny, or it is private" in refused.stderr
    done = _run(hub, tmp_path, "apply", "org/tiny", "-o", "out", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert "org/tiny is no folder here: asking the Hub\ndownloading 4 files, " in done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert (tmp_path / "home" / "hub" / "models--org--tiny").is_dir()
    hub.down = True
    again = _run(hub, tmp_path, "apply", "org/tiny", "-o", "again", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert "HF_HUB_OFFLINE is set: taking what the cache holds of org/tiny" in again.stderr
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "out" / WEIGHTS).read_bytes()


def test_the_other_commands(
    hub: Hub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """plan, why, diff, inventory and init take a Hub id and a revision, and say what they say of the folder."""
    from rulequant.cli.main import run

    repo = hub.add("org/tiny", checkpoint)
    repo.refs["v1"] = repo.refs.pop("main")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    for command in (
        ["plan", "MODEL"],
        ["why", "MODEL", "lm_head"],
        ["diff", "MODEL", "causal_lm", "encoder"],
        ["inventory", "MODEL"],
        ["init", "MODEL"],
    ):
        texts = []
        for model in ("org/tiny", str(checkpoint)):
            arguments = [model if each == "MODEL" else each for each in command]
            assert run([*arguments, *(["--revision", "v1"] if model == "org/tiny" else [])]) == 0
            texts.append(capsys.readouterr().out.replace(model, "MODEL"))
        assert texts[0] == texts[1]
    assert {each.path for each in hub.requests} == {"/org/tiny/resolve/v1/config.json"}
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))
