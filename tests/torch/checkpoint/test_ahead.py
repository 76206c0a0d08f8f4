"""Weights encoded ahead by a guess at the plan: found where the guess is right, and the same bytes either way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from apply_runs import configure, run
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny

from rulequant.loader import load_rules
from rulequant.planner import make_plan
from rulequant.report.worsttext import worst_rows
from rulequant.torch.checkpoint import ahead
from rulequant.torch.checkpoint.ahead import MadeAhead, guess_dtype, guess_inventory, guess_units, open_store
from rulequant.torch.checkpoint.prepare import prepare
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.shardfile import DEFAULT_MEMORY, ShardFile
from rulequant.torch.checkpoint.sources import source_of
from rulequant.torch.checkpoint.units import Encoded, Made
from rulequant.torch.skeleton import build_skeleton
from rulequant.verification import Sample

RULES: dict[str, Any] = {
    "version": 1,
    "schemes": {"it": {"method": "bnb_4bit", "double_quant": True}},
    "scheme": "it",
    "skip_modules": [
        {"modules": "**.self_attn.k_proj", "optional": True, "reason": "a skip that the guess has to see"}
    ],
}
SMALL = {"hidden_size": 256, "intermediate_size": 512}


def guessed(source: Path, rules: dict[str, Any] = RULES, memory: int = DEFAULT_MEMORY) -> list[Encoded]:
    config = json.loads((source / "config.json").read_text())
    with CheckpointReader.open(source) as reader:
        inventory = guess_inventory(reader, config, str(source))
        plan = make_plan(load_rules(rules), inventory)
        return guess_units(plan, inventory, reader, guess_dtype(reader, config), memory)


def asked(source: Path, folder: Path, rules: dict[str, Any] = RULES, memory: int = DEFAULT_MEMORY) -> list[Encoded]:
    """The units of a job that workers are asked for, save what is done last."""
    skeleton = build_skeleton(str(source))
    job = prepare(skeleton, source_of(skeleton), load_rules(rules))
    folder.mkdir()
    found: list[Encoded] = []
    for shard in job.shards:
        file = ShardFile(folder, shard.name, shard.steps, memory=memory)
        found += [unit for _, unit in file._units() if isinstance(unit, Encoded)]
        file.abort()
    return found


def hits(source: Path, units: list[Encoded], wanted: list[Encoded]) -> list[bool]:
    with CheckpointReader.open(source) as reader:
        stamps = reader.fingerprint()
    made = MadeAhead(units, stamps)
    for _ in units:
        made.take(Made((), Sample()))
    return [made.look_up(unit, stamps).made is not None for unit in wanted]


@pytest.mark.parametrize("model", ["llama", "llama-tied", "llama-biases", "qwen2", "mistral", "gemma2", "phi3", "opt"])
def test_the_guess_is_right(model: str, tmp_path: Path) -> None:
    """For each weight of common architectures, and for no other, in one slice or in several."""
    source = save_tiny(model, tmp_path / model)
    units, wanted = guessed(source), asked(source, tmp_path / "out")
    assert wanted
    assert hits(source, units, wanted) == [True] * len(wanted)
    assert len(units) <= len(wanted) + 1  # an output head that only its own model tells


def test_slices_are_those_of_the_memory(tmp_path: Path) -> None:
    """A weight that takes several slices is found slice by slice."""
    source = save_tiny("llama", tmp_path / "llama", **SMALL)
    memory = (8 << 20) + 150_000
    units, wanted = guessed(source, memory=memory), asked(source, tmp_path / "out", memory=memory)
    assert len(wanted) > len({each.step.key for each in wanted})
    assert hits(source, units, wanted) == [True] * len(wanted)


def test_a_wrong_guess_is_not_asked_for(tmp_path: Path) -> None:
    """GPT-2 holds its weights the other way round; another scheme, dtype, slice or source makes something else."""
    other = save_tiny("gpt2", tmp_path / "gpt2")
    types = {"quantizable_types": ["Linear", "Conv1D"]}
    wanted = [each for each in asked(other, tmp_path / "one", RULES | types) if each.step.kind == "conv1d"]
    assert wanted
    assert not any(hits(other, guessed(other), wanted))
    source = save_tiny("llama", tmp_path / "llama")
    units, wanted = guessed(source), asked(source, tmp_path / "two")
    fp4 = RULES | {"schemes": {"it": {"method": "bnb_4bit", "double_quant": True, "quant_type": "fp4"}}}
    assert not any(hits(source, guessed(source, fp4), wanted))
    assert not any(hits(source, [replace(each, step=replace(each.step, dtype="F16")) for each in units], wanted))
    assert not any(hits(source, [replace(each, stop=each.stop - 64) for each in units], wanted))
    made = MadeAhead(units, {"model.safetensors": {"size": 1, "mtime_ns": 1}})
    made.take(Made((), Sample()))
    assert made.look_up(units[0], {"model.safetensors": {"size": 1, "mtime_ns": 2}}) is units[0]


def test_other_dtypes_and_experts_are_not_guessed_at(tmp_path: Path) -> None:
    """What will be cast is nothing yet, and transformers fuses experts; without a dtype the first float tells it."""
    tensors = {
        "a.q.weight": torch.zeros(64, 64, dtype=torch.bfloat16),
        "a.r.weight": torch.zeros(64, 64),
        "a.experts.0.up.weight": torch.zeros(64, 64, dtype=torch.bfloat16),
        "a.norm.weight": torch.zeros(64, dtype=torch.bfloat16),
        "a.steps": torch.zeros(3, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    for config in ({"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}, {}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert [each.step.key for each in guessed(tmp_path)] == ["a.q.weight"]


def test_no_more_is_guessed_at_than_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a library is imported."""
    source = save_tiny("llama", tmp_path / "llama")
    expected = guessed(source)
    monkeypatch.setattr(ahead, "_MOST", 3)
    assert guessed(source) == expected[:4]


def test_int8_is_not_guessed_at(tmp_path: Path) -> None:
    """It takes as long to copy."""
    source = save_tiny("llama", tmp_path / "llama")
    assert guessed(source, RULES | {"schemes": {"it": {"method": "bnb_int8"}}}) == []


def test_there_is_no_store_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor in a folder that cannot be written; and a store leaves nothing behind."""
    with open_store(tmp_path, 100) as store:
        assert store is not None
        assert os.pwrite(store, b"x", 0) == 1
        assert list(tmp_path.iterdir()) == []
    with open_store(tmp_path / "missing", 100) as store:
        assert store is None
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(ahead, "disk_usage", lambda _: usage(399))
    with open_store(tmp_path, 100) as store:
        assert store is None


APPLY = """
import sys
import rulequant.cli.ahead as ahead
from rulequant.torch.checkpoint.ahead import MadeAhead
ahead.WORTHWHILE = 0
look_up, notes = MadeAhead.look_up, open(sys.argv.pop(1), "w", buffering=1)
def noting(self, unit, stamps):
    result = look_up(self, unit, stamps)
    print("missing" if result.made is None else "made", file=notes)
    return result
MadeAhead.look_up = noting
from rulequant.cli.main import main
main()
"""


def apply_ahead(source: Path, rules: dict[str, Any], output: Path, *options: str) -> tuple[int, str]:
    """apply, in a process of its own, which encodes ahead whatever the size; its exit code and what it says."""
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(rules))
    result = subprocess.run(
        [sys.executable, "-c", APPLY, str(notes_of(output)), "apply", str(source), str(path), "-o", str(output),
         "--workers", "2", *options],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return result.returncode, result.stderr


def notes_of(output: Path) -> Path:
    return output.with_suffix(".notes")


@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
@pytest.mark.parametrize("options", [(), ("--memory", "24MiB")], ids=["default", "little memory"])
def test_the_bytes_are_those_of_a_run_without(double: bool, options: tuple[str, ...], tmp_path: Path) -> None:
    """And something was encoded ahead: all that a model of this size has, long before its class is imported."""
    source = save_tiny("llama", tmp_path / "llama", hidden_size=1024, intermediate_size=6144, num_hidden_layers=1)
    rules = RULES | {"schemes": {"it": {"method": "bnb_4bit", "double_quant": double}}}
    code, said = apply_ahead(source, rules, tmp_path / "ahead", *options)
    assert code == 0, said
    assert set(notes_of(tmp_path / "ahead").read_text().split()) == {"made"}
    applied = run(source, tmp_path / "plain", rules)
    assert (tmp_path / "ahead" / "model.safetensors").read_bytes() == (
        tmp_path / "plain" / "model.safetensors"
    ).read_bytes()
    assert all(text in said for _, text in worst_rows(applied.samples))


def test_values_that_cannot_be_encoded_are_told_by_the_run(tmp_path: Path) -> None:
    """What the guess met first is no news of its own."""
    source = save_tiny("llama", tmp_path / "llama")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][3, 5] = float("nan")
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    code, said = apply_ahead(source, RULES, tmp_path / "out")
    assert code == 2
    assert "`model.layers.0.self_attn.q_proj.weight`" in said
    assert said.count("nan") == 1
    assert not (tmp_path / "out").exists()


def test_values_that_are_cast_are_left_to_the_workers(tmp_path: Path) -> None:
    """The files hold another dtype than the model is loaded in: torch casts, and nothing is guessed."""
    source = save_tiny("llama", tmp_path / "llama", dtype=torch.float32)
    configure(source, dtype="bfloat16")
    code, said = apply_ahead(source, RULES, tmp_path / "out")
    assert code == 0, said
    assert set(notes_of(tmp_path / "out").read_text().split()) == {"missing"}
    run(source, tmp_path / "plain", RULES)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == (
        load_file(tmp_path / "plain" / "model.safetensors").keys()
    )
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "plain" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("rules", [{"version": 1, "scheme": "no such scheme"}], ids=["a mistake"])
def test_mistakes_are_told_once(rules: dict[str, Any], tmp_path: Path) -> None:
    """By the process that makes the plan."""
    source = save_tiny("llama", tmp_path / "llama")
    code, said = apply_ahead(source, rules, tmp_path / "out")
    assert code in {1, 2}
    assert said.count("RQ") == 1, said
