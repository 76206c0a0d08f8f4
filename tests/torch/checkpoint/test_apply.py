"""apply: what an output folder holds, and that it is what was planned."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from apply_runs import RULES, files_of, plan_of, run, save_with_extras, state
from safetensors.torch import load_file

from rulequant.errors import RulequantError, UsageError
from rulequant.loader import load_rules
from rulequant.plan_file import load_plan
from rulequant.torch import apply_checkpoint
from rulequant.torch.checkpoint.manifest import check_manifest, load_manifest
from rulequant.torch.checkpoint.records import PLAN_NAME, RULES_NAME


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in bfloat16, with files beside the weights; only read."""
    return save_with_extras(tmp_path_factory.mktemp("apply") / "llama")


@pytest.fixture
def source(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "llama"))


def test_content_of_an_output(original: Path, tmp_path: Path) -> None:
    """Weights, config, side files and records; nothing of other formats; and the source is as it was."""
    before = state(original)
    applied = run(original, tmp_path / "out")
    assert state(original) == before
    assert files_of(tmp_path / "out") == [
        "1_Pooling/config.json",
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modules.json",
        "rulequant-manifest.json",
        "rulequant-plan.json",
        "rulequant-rules.yaml",
        "tokenizer.json",
    ]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out"]
    old, new = (json.loads((each / "config.json").read_text()) for each in (original, tmp_path / "out"))
    quantization = new.pop("quantization_config")
    assert new == old
    assert (new["dtype"], quantization["quant_method"]) == ("bfloat16", "bitsandbytes")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card
    assert card.endswith("hello\n")
    assert "from transformers import LlamaForCausalLM" in card
    assert str(original.parent) not in card
    assert applied.tensors == len(load_file(tmp_path / "out" / "model.safetensors"))


def test_plan_in_the_output_is_the_plan(original: Path, tmp_path: Path) -> None:
    """It loads, has the hash of the manifest, and applied again it gives the same weights."""
    applied = run(original, tmp_path / "out", RULES | {"skip_modules": ["**.o_proj"]})
    plan = load_plan(tmp_path / "out" / PLAN_NAME)
    manifest = load_manifest(tmp_path / "out")
    assert plan.sha256 == applied.plan.sha256 == manifest.plan_sha256
    assert plan.rules_sha256 == manifest.rules_sha256
    assert load_rules(tmp_path / "out" / RULES_NAME).sha256 == plan.rules_sha256
    again = run(original, tmp_path / "again", plan)
    first, second = (load_file(tmp_path / each / "model.safetensors") for each in ("out", "again"))
    assert sorted(first) == sorted(second)
    assert all(tensor.equal(second[name]) for name, tensor in first.items())
    assert again.plan == plan
    assert not (tmp_path / "again" / RULES_NAME).exists()
    assert "rulequant apply SOURCE --plan rulequant-plan.json -o OUTPUT" in (tmp_path / "again/README.md").read_text()


def test_rules_of_a_plan_can_be_kept(original: Path, tmp_path: Path) -> None:
    """Those that the plan was made with, and no others."""
    plan = plan_of(original)
    run(original, tmp_path / "out", plan, made_with=load_rules(RULES))
    assert load_rules(tmp_path / "out" / RULES_NAME).sha256 == plan.rules_sha256
    with pytest.raises(UsageError, match="the plan was not made with"):
        run(original, tmp_path / "other", plan, made_with=load_rules(RULES | {"skip_modules": ["lm_head"]}))


def test_command_in_the_card(original: Path, tmp_path: Path) -> None:
    """What was asked for is in it."""
    run(original, tmp_path / "out", container="rulequant")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "rulequant apply SOURCE rulequant-rules.yaml -o OUTPUT --container rulequant" in card
    assert "import rulequant.torch.transformers" in card


def test_manifest_finds_any_flipped_byte(original: Path, tmp_path: Path) -> None:
    """A change of one byte in any file is told by the name of the file."""
    run(original, tmp_path / "out", max_shard_bytes=100_000)
    assert check_manifest(tmp_path / "out") == []
    for name in files_of(tmp_path / "out"):
        path = tmp_path / "out" / name
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        problems = check_manifest(tmp_path / "out")
        assert len(problems) == 1, name
        assert name in problems[0]
        path.write_bytes(before)
    assert check_manifest(tmp_path / "out") == []


def test_modes_follow_the_umask(source: Path, tmp_path: Path) -> None:
    """Whatever the modes of the source are, and those of the safetensors library."""
    for path in source.rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    before = os.umask(0o027)
    try:
        run(source, tmp_path / "out")
    finally:
        os.umask(before)
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path
    for path in source.rglob("*"):
        path.chmod(0o700)


def test_progress_adds_up(original: Path, tmp_path: Path) -> None:
    """All bytes of the source and all tensors are told, each once."""
    told: list[tuple[Any, ...]] = []

    class Progress:
        def start(self, total_bytes: int, tensors: int) -> None:
            told.append((total_bytes, tensors))

        def advance(self, tensor: str, nbytes: int) -> None:
            told.append((tensor, nbytes))

    run(original, tmp_path / "out", progress=Progress())
    tensors = load_file(original / "model.safetensors")
    assert told[0] == (sum(each.nbytes for each in tensors.values()), len(tensors))
    assert sorted(told[1:]) == sorted((name, each.nbytes) for name, each in tensors.items())


@pytest.mark.parametrize("kind", ["mapping", "path", "bundled", "rule set", "plan"])
def test_apply_checkpoint(kind: str, original: Path, tmp_path: Path) -> None:
    """The Python API takes rules in every form, and returns the plan that it carried out."""
    (tmp_path / "rules.yaml").write_text(json.dumps(RULES))
    rules: Any = {
        "mapping": RULES,
        "path": tmp_path / "rules.yaml",
        "bundled": "llama",
        "rule set": load_rules(RULES),
        "plan": plan_of(original),
    }[kind]
    plan = apply_checkpoint(str(original), rules, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert plan.summary["quantized"] == sum(type(each).__name__ == "Linear4bit" for each in model.modules()) == 14
    with torch.no_grad():
        assert model(torch.arange(8)[None]).logits.isfinite().all()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", r"nowhere: no such folder"),
        ("someone/some-model", r"someone/some-model is no folder here, and not in the Hub's cache"),
        ("torch.nn:Identity", r"the plan quantizes no module"),
    ],
    ids=["no folder", "Hub id", "callable"],
)
def test_source_that_is_no_folder(source: str, message: str, tmp_path: Path) -> None:
    """What cannot be applied is answered in words, whatever form the model has."""
    with pytest.raises(RulequantError, match=message):
        apply_checkpoint(source, RULES, tmp_path / "out")


def test_relative_paths(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Source and output may be relative, the output a bare name."""
    monkeypatch.chdir(tmp_path)
    apply_checkpoint("llama", RULES, "out")
    assert check_manifest(tmp_path / "out") == []
