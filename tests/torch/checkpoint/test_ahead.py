"""A file begun by a guess at the plan: used where the guess is right in all that counts, the same bytes either way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from apply_runs import configure, run
from apply_stops import contents
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny

from rulequant.loader import load_rules
from rulequant.planner import make_plan
from rulequant.report.worsttext import worst_rows
from rulequant.torch.checkpoint import ahead
from rulequant.torch.checkpoint.ahead import Draft, guess_dtype, guess_inventory, guess_steps, open_draft
from rulequant.torch.checkpoint.bench import Bench
from rulequant.torch.checkpoint.cutting import DEFAULT_MEMORY, Cutting
from rulequant.torch.checkpoint.job import Job
from rulequant.torch.checkpoint.local import InProcess
from rulequant.torch.checkpoint.prepare import prepare
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.shardfile import Begun
from rulequant.torch.checkpoint.shards import write_shards
from rulequant.torch.checkpoint.sources import source_of
from rulequant.torch.checkpoint.units import Encoded, Result
from rulequant.torch.checkpoint.work import carry_out_ahead
from rulequant.torch.skeleton import build_skeleton

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files without a name")

RULES: dict[str, Any] = {
    "version": 1,
    "schemes": {"it": {"method": "bnb_4bit", "double_quant": True}},
    "scheme": "it",
    "skip_modules": [
        {"modules": "**.self_attn.k_proj", "optional": True, "reason": "a skip that the guess has to see"}
    ],
}
SMALL = {"hidden_size": 256, "intermediate_size": 512}


INT8 = RULES | {"schemes": {"it": {"method": "bnb_int8"}}}
STAMPS = {"model.safetensors": {"size": 1, "mtime_ns": 1}}


def drafted(
    source: Path, rules: dict[str, Any] = RULES, memory: int = DEFAULT_MEMORY, largest: int = 5 << 30, fd: int = -1
) -> Draft:
    """What would be begun of an output."""
    config = json.loads((source / "config.json").read_text())
    with CheckpointReader.open(source) as reader:
        inventory = guess_inventory(reader, config, str(source))
        plan = make_plan(load_rules(rules), inventory)
        steps = guess_steps(plan, inventory, reader, guess_dtype(reader, config))
    return Draft(fd, steps, STAMPS, memory, largest)


def job_of(source: Path, rules: dict[str, Any] = RULES, **options: Any) -> Job:
    skeleton = build_skeleton(str(source))
    return prepare(skeleton, source_of(skeleton), load_rules(rules), **options)


def asked(job: Job, memory: int = DEFAULT_MEMORY) -> Cutting:
    """The first file that workers are asked for."""
    return Cutting(job.shards[0].name, job.shards[0].steps, memory)


def done(draft: Draft) -> Draft:
    """As if all of it were written."""
    for _ in draft.units:
        draft.take(Result())
    return draft


MODELS = ["llama", "llama-tied", "llama-biases", "qwen2", "mistral", "gemma2", "phi3", "opt"]


@pytest.mark.parametrize("rules", [RULES, INT8], ids=["4bit", "int8"])
@pytest.mark.parametrize("model", MODELS)
def test_the_guess_is_right(model: str, rules: dict[str, Any], tmp_path: Path) -> None:
    """For the whole file of common architectures: there is nothing that could not be done ahead."""
    source = save_tiny(model, tmp_path / model)
    cutting = asked(job_of(source, rules))
    begun = done(drafted(source, rules)).begun(cutting, STAMPS)
    assert begun is not None
    assert list(begun.results) == list(range(len(list(cutting.units()))))
    assert any(step.scheme for step in cutting.steps)


def test_slices_and_files_are_those_that_are_asked_for(tmp_path: Path) -> None:
    """With little memory, and in an output of several files, of which the first is begun."""
    source = save_tiny("llama", tmp_path / "llama", **SMALL)
    memory, job = (8 << 20) + 150_000, job_of(source, max_shard_bytes=500_000)
    assert len(job.shards) > 1
    draft = done(drafted(source, memory=memory, largest=500_000))
    cutting = asked(job, memory)
    begun = draft.begun(cutting, STAMPS)
    assert begun is not None
    assert len(begun.results) > len(cutting.steps)


def test_another_file_is_not_what_was_begun(tmp_path: Path) -> None:
    """Of other steps, another scheme or dtype, cut in another way, or of a source that has changed."""
    source = save_tiny("llama", tmp_path / "llama")
    job, draft = job_of(source), done(drafted(source))
    cutting = asked(job)
    assert draft.begun(cutting, STAMPS) == Begun(-1, dict.fromkeys(range(len(draft.units)), Result()))
    first, *others = cutting.steps
    assert draft.begun(replace(cutting, shard="other", steps=(replace(first, target="other"), *others)), STAMPS)
    assert draft.begun(cutting, {"model.safetensors": {"size": 1, "mtime_ns": 2}}) is None
    assert draft.begun(replace(cutting, memory=DEFAULT_MEMORY + 1), STAMPS) is None
    assert draft.begun(replace(cutting, steps=(first,)), STAMPS) is None
    assert draft.begun(replace(cutting, steps=(replace(first, dtype="F16"), *others)), STAMPS) is None
    fp4 = RULES | {"schemes": {"it": {"method": "bnb_4bit", "double_quant": True, "quant_type": "fp4"}}}
    for rules in (fp4, INT8):
        assert done(drafted(source, rules)).begun(cutting, STAMPS) is None
    assert drafted(source).begun(cutting, STAMPS) is None  # of which nothing is written


def test_a_model_that_holds_its_weights_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2 has Conv1D where the guess is Linear."""
    source = save_tiny("gpt2", tmp_path / "gpt2")
    rules = RULES | {"quantizable_types": ["Linear", "Conv1D"]}
    cutting = asked(job_of(source, rules))
    assert any(step.kind == "conv1d" for step in cutting.steps)
    assert done(drafted(source, rules)).begun(cutting, STAMPS) is None


def test_what_is_cast_is_left_to_workers(tmp_path: Path) -> None:
    """Torch does that; without a dtype in the config the first float tells it."""
    tensors = {
        "a.q.weight": torch.zeros(64, 64, dtype=torch.bfloat16),
        "a.r.weight": torch.zeros(64, 64),
        "a.norm.weight": torch.zeros(64, dtype=torch.bfloat16),
        "b.norm.weight": torch.zeros(64),
        "a.steps": torch.zeros(3, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    for config in ({"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}, {}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        units = drafted(tmp_path).units
        assert sorted(each.step.key if isinstance(each, Encoded) else each.entry.name for each in units) == [
            "a.norm.weight",
            "a.q.weight",
            "a.steps",
        ]


def test_experts_are_not_guessed_at(tmp_path: Path) -> None:
    """Transformers fuses them."""
    tensors = {"a.q.weight": torch.zeros(64, 64), "a.experts.0.up.weight": torch.zeros(64, 64)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="a file of nothing"):
        drafted(tmp_path)


def test_no_more_is_guessed_at_than_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a library is imported."""
    source = save_tiny("llama", tmp_path / "llama")
    expected = drafted(source).units
    monkeypatch.setattr(ahead, "_MOST", 3)
    draft = drafted(source)
    assert draft.units == expected[:3]
    begun = done(draft).begun(asked(job_of(source)), STAMPS)
    assert begun is not None
    assert list(begun.results) == [0, 1, 2]


def test_a_draft_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is there any without room, or in a folder that cannot be written; and dropped it takes no room."""
    with open_draft(tmp_path, 100) as fd:
        assert fd is not None
        assert os.pwrite(fd, b"x", 0) == 1
        assert list(tmp_path.iterdir()) == []
        drafted(save_tiny("llama", tmp_path / "llama"), fd=fd).drop()
        assert os.fstat(fd).st_size == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with open_draft(tmp_path / "missing", 100) as fd:
        assert fd is None
    monkeypatch.setattr(ahead, "free_bytes", lambda _: 399)
    with open_draft(tmp_path, 100) as fd:
        assert fd is None


class WithDraft(InProcess):
    """Asks for nothing that is written already."""

    def __init__(self, bench: Bench, begun: Begun) -> None:
        super().__init__(bench)
        self._begun = begun

    def begun(self, cutting: Cutting) -> Begun | None:
        """The same of any."""
        return self._begun


@contextmanager
def written(source: Path, draft: Draft, chosen: slice) -> Iterator[Begun]:
    """What carrying out some of the units gives."""
    with CheckpointReader.open(source) as reader:
        outputs = {draft.units[0].shard: os.dup(draft.fd)}
        with closing(Bench(reader, source, mean_threads=0, outputs=outputs)) as bench:
            places = list(range(len(draft.units)))[chosen]
            yield Begun(draft.fd, {place: carry_out_ahead(bench, draft.units[place]) for place in places})


CHOICES = {"all": slice(None), "some": slice(1, None, 3), "the first": slice(1), "none": slice(0)}


@pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("memory", [DEFAULT_MEMORY, (8 << 20) + 150_000], ids=["whole", "sliced"])
@pytest.mark.parametrize("rules", [RULES, INT8], ids=["4bit", "int8"])
def test_however_much_is_done_the_file_is_the_same(
    rules: dict[str, Any], memory: int, chosen: slice, tmp_path: Path
) -> None:
    """Workers do the rest; bytes, hashes and samples are those of a file that was begun with its name."""
    source = save_tiny("llama", tmp_path / "llama", **SMALL)
    job = job_of(source, rules)
    for name in ("plain", "begun"):
        (tmp_path / name).mkdir()
    with (
        CheckpointReader.attach(source, job.fingerprint) as reader,
        closing(Bench(reader, tmp_path / "plain", mean_threads=job.mean_threads)) as plain,
        closing(Bench(reader, tmp_path / "begun", mean_threads=job.mean_threads)) as bench,
        open_draft(tmp_path, 1) as fd,
    ):
        assert fd is not None
        (expected,) = write_shards(job.shards, tmp_path / "plain", InProcess(plain), memory=memory)
        with written(source, drafted(source, rules, memory, fd=fd), chosen) as begun:
            steps: list[str] = []
            executor = WithDraft(bench, begun)
            (result,) = write_shards(
                job.shards, tmp_path / "begun", executor, memory=memory, done=lambda step: steps.append(step.key)
            )
        assert replace(result, samples={}) == replace(expected, samples={})
        assert {name: pytest.approx(each) for name, each in expected.samples.items()} == result.samples
        assert sorted(steps) == sorted(step.key for step in job.shards[0].steps)
        assert os.fstat(fd).st_ino == (tmp_path / "begun" / result.name).stat().st_ino
    assert contents(tmp_path / "begun") == contents(tmp_path / "plain")
    assert (tmp_path / "begun" / result.name).stat().st_mode == (tmp_path / "plain" / result.name).stat().st_mode


def test_a_file_that_gets_no_name_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system will not link it."""
    source = save_tiny("llama", tmp_path / "llama")
    job = job_of(source)
    (tmp_path / "out").mkdir()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr(os, "link", refuse)
    with (
        CheckpointReader.attach(source, job.fingerprint) as reader,
        closing(Bench(reader, tmp_path / "out", mean_threads=job.mean_threads)) as bench,
        open_draft(tmp_path, 1) as fd,
    ):
        assert fd is not None
        with written(source, drafted(source, fd=fd), slice(None)) as begun:
            (result,) = write_shards(job.shards, tmp_path / "out", WithDraft(bench, begun))
        assert os.fstat(fd).st_ino != (tmp_path / "out" / result.name).stat().st_ino
    run(source, tmp_path / "plain", RULES)
    assert (tmp_path / "out" / result.name).read_bytes() == (tmp_path / "plain" / result.name).read_bytes()


APPLY = """
import sys
import rulequant.cli.ahead as ahead
from rulequant.torch.checkpoint.ahead import Draft
ahead.WORTHWHILE = 0
usual, notes = Draft.begun, open(sys.argv.pop(1), "w", buffering=1)
def noting(self, cutting, stamps):
    begun = usual(self, cutting, stamps)
    print("none" if begun is None else f"{len(begun.results)} of {len(self.units)}", file=notes)
    return begun
Draft.begun = noting
from rulequant.cli.main import main
main()
"""


def apply_ahead(source: Path, rules: dict[str, Any], output: Path, *options: str) -> tuple[int, str]:
    """apply, in a process of its own, which begins a file ahead whatever the size; its exit code and what it says."""
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


SCHEMES = {
    "double": {"method": "bnb_4bit", "double_quant": True},
    "single": {"method": "bnb_4bit"},
    "int8": {"method": "bnb_int8"},
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("memory", [64, 24], ids=["default", "little memory"])
def test_the_bytes_are_those_of_a_run_without(scheme: dict[str, Any], memory: int, tmp_path: Path) -> None:
    """And all was done ahead that a model of this size has, long before its class is imported."""
    source = save_tiny("llama", tmp_path / "llama", hidden_size=1024, intermediate_size=6144, num_hidden_layers=1)
    rules = RULES | {"schemes": {"it": scheme}}
    code, said = apply_ahead(source, rules, tmp_path / "ahead", "--memory", f"{memory}MiB")
    assert code == 0, said
    (note,) = notes_of(tmp_path / "ahead").read_text().splitlines()
    done, _, units = note.partition(" of ")
    assert int(done) == int(units) >= 11
    applied = run(source, tmp_path / "plain", rules, workers=2, memory=memory << 20)
    found, expected = contents(tmp_path / "ahead"), contents(tmp_path / "plain")
    assert found["model.safetensors"] == expected["model.safetensors"]
    assert found.keys() == expected.keys()
    assert all(text in said for _, text in worst_rows(applied.samples))
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_an_interrupted_run_is_gone_on_with(tmp_path: Path) -> None:
    """Nothing is begun beside what it has finished."""
    source = save_tiny("llama", tmp_path / "llama")
    (tmp_path / ".out.rulequant-staging").mkdir()
    code, said = apply_ahead(source, RULES, tmp_path / "out")
    assert code == 0, said
    assert notes_of(tmp_path / "out").read_text() == ""


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
    """The files hold another dtype than the model is loaded in: torch casts, and nothing is done ahead."""
    source = save_tiny("llama", tmp_path / "llama", dtype=torch.float32)
    configure(source, dtype="bfloat16")
    code, said = apply_ahead(source, RULES, tmp_path / "out")
    assert code == 0, said
    assert notes_of(tmp_path / "out").read_text() == "none\n"
    run(source, tmp_path / "plain", RULES)
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
