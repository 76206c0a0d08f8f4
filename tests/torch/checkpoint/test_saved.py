"""What transformers tells of a checkpoint comes back from the plan file, and is taken for that checkpoint only."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apply_runs import configure
from converted_models import CONVERTED, save_converted
from moe_models import MOE, moe_rules, save_moe
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny

from rulequant.errors import UsageError
from rulequant.loader import load_rules
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.torch.checkpoint import saved as saved_module
from rulequant.torch.checkpoint.job import Survey
from rulequant.torch.checkpoint.prepare import survey_of
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.saved import saved_survey, section_of
from rulequant.torch.skeleton import build_skeleton

DOUBLE = moe_rules(method="bnb_4bit", double_quant=True) | {"quantizable_types": ["Linear", "Conv1D", "*Experts"]}


def surveyed(folder: Path) -> tuple[Survey, Plan, dict[str, Any]]:
    """The survey of a checkpoint, the plan, and the two as they are saved."""
    skeleton = build_skeleton(str(folder))
    survey, plan = survey_of(skeleton, make_plan(load_rules(DOUBLE), skeleton.inventory()), "auto")
    with CheckpointReader.open(folder) as reader:
        section = section_of(survey, reader, plan)
    assert section is not None
    return survey, plan, json.loads(json.dumps(section))


def again(folder: Path, plan: Plan, section: dict[str, Any]) -> Survey | None:
    with CheckpointReader.open(folder) as reader:
        return saved_survey(section, reader, plan)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "mixtral", "gpt_oss", "llama4_text", "nomic_bert", "gte"])
def test_a_survey_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    """Step by step: transposed weights, tensors that are cast, experts merged or taken apart, projections split."""
    save: Callable[[str, Path], Path] = save_tiny
    save = save_moe if name in MOE else save_converted if name in CONVERTED else save
    folder = save(name, tmp_path / name)
    survey, plan, section = surveyed(folder)
    assert again(folder, plan, section) == survey


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A tiny llama of a test's own."""
    return save_tiny("llama", tmp_path / "llama")


def _other_config(folder: Path) -> None:
    configure(folder, rope_theta=7)


def _other_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: each.float() for name, each in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("change", [_other_config, _other_tensors], ids=["config.json", "dtypes"])
def test_another_checkpoint_is_asked_about_again(change: Callable[[Path], None], llama: Path) -> None:
    """What was saved is passed over, without an error."""
    _, plan, section = surveyed(llama)
    change(llama)
    assert again(llama, plan, section) is None


def test_other_versions_ask_again(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new transformers may have other names for tensors."""
    _, plan, section = surveyed(llama)
    monkeypatch.setattr(saved_module, "stock_versions", lambda: {"transformers": "99"})
    assert again(llama, plan, section) is None


def test_the_same_tensors_in_other_files_are_the_same(llama: Path) -> None:
    """How a checkpoint is cut says nothing of its names."""
    _, plan, section = surveyed(llama)
    tensors = load_file(llama / "model.safetensors")
    half = sorted(tensors)[: len(tensors) // 2]
    parts = {"model-00001-of-00002.safetensors": half, "model-00002-of-00002.safetensors": sorted({*tensors} - {*half})}
    (llama / "model.safetensors").unlink()
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, llama / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    survey = again(llama, plan, section)
    assert survey is not None
    assert {each.shard for step in survey.steps for each in step.entries} == set(parts)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda section, plan: (section | {"dropped": {"a": "b"}}, plan), r"was edited, or is that of another plan"),
        (lambda section, plan: (section, replace(plan, decisions=plan.decisions[:-1])), "of another plan"),
        (lambda section, plan: (section | {"steps": [{}]}, plan), r"is not valid: `steps\.0\.key`: field required"),
        (lambda section, plan: (section | {"more": 1}, plan), r"is not valid: `more`: extra inputs"),
    ],
    ids=["edited", "another plan", "no step", "unknown key"],
)
def test_an_edited_file_is_refused(edit: Any, message: str, llama: Path) -> None:
    """With what is wrong, and how to make it anew."""
    _, plan, section = surveyed(llama)
    section, plan = edit(section, plan)
    with pytest.raises(UsageError, match=message) as raised:
        again(llama, plan, section)
    assert "rulequant plan MODEL RULES -o FILE" in str(raised.value.remedy)


def test_a_saved_plan_is_applied_without_torch_or_transformers(llama: Path, tmp_path: Path) -> None:
    """The command imports neither, and writes the tensors that it writes otherwise; other rules change nothing."""
    rules = tmp_path / "rules.yaml"
    rules.write_text("version: 1\nextends: causal_lm\n")
    run = [sys.executable, "-X", "importtime", "-m", "rulequant"]
    environment = os.environ | {"NO_COLOR": "1"}

    def call(*arguments: object) -> str:
        command = [*run, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stderr

    call("plan", llama, rules, "-o", tmp_path / "plan.json")
    imported = call("apply", llama, "--plan", tmp_path / "plan.json", "-o", tmp_path / "saved", "-q")
    assert re.search(r"\| +rulequant\.torch\.checkpoint\.write\n", imported)
    assert not re.search(r"\| +(torch|transformers|bitsandbytes|accelerate|numpy|safetensors)\n", imported)
    call("apply", llama, rules, "-o", tmp_path / "asked", "-q")
    files = [(tmp_path / each / "model.safetensors").read_bytes() for each in ("saved", "asked")]
    assert files[0] == files[1]
