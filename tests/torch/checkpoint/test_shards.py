"""Shards written in place, slice by slice: the bytes are those of whole tensors, however little memory there is."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from children import in_child
from safetensors import safe_open
from safetensors.torch import load_file
from steps import encoded_step, kept_step, same_bytes, source_of, weight_of

from rulequant.errors import CheckpointError, UsageError
from rulequant.schemes import Bnb4bit, BnbInt8
from rulequant.torch.checkpoint.cutting import DEFAULT_MEMORY, SMALLEST_MEMORY
from rulequant.torch.checkpoint.files import hash_file
from rulequant.torch.checkpoint.header import read_header
from rulequant.torch.checkpoint.local import write_shard
from rulequant.torch.checkpoint.shards import ShardJob, plan_jobs
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.factories import NotFiniteError, factory_for

DOUBLE, INT8 = Bnb4bit(double_quant=True), BnbInt8()
ROWS, COLUMNS = 2048, 4096
"""A weight that SMALLEST_MEMORY does not hold at once."""


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Weights to encode, larger than a slice, and what else a checkpoint holds."""
    return {
        "a.weight": weight_of(ROWS, COLUMNS),
        "b.weight": weight_of(COLUMNS, ROWS, seed=1),
        "c.weight": weight_of(ROWS, COLUMNS, seed=2),
        "experts.weight": weight_of(4, 512, 2048, seed=3),
        "embed": weight_of(3001, 1001, seed=4),
        "cast": weight_of(3001, 1001, dtype=torch.float32, seed=5),
        "odd": torch.arange(3, dtype=torch.uint8),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "mask": torch.tensor([True, False, True]),
        "größe": torch.ones(1, dtype=torch.float64),
    }


@pytest.fixture(scope="module")
def source(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their checkpoint, only read."""
    folder = tmp_path_factory.mktemp("shards") / "source"
    source_of(folder, tensors)
    return folder


@pytest.fixture(scope="module")
def steps(source: Path) -> tuple[Step, ...]:
    """Every kind of step."""
    fd = os.open(source / "model.safetensors", os.O_RDONLY)
    entries = read_header(fd, source / "model.safetensors").tensors
    os.close(fd)
    encoded = {
        "a.weight": encoded_step(entries["a.weight"], DOUBLE),
        "b.weight": encoded_step(entries["b.weight"], DOUBLE, "conv1d"),
        "c.weight": encoded_step(entries["c.weight"], INT8),
        "experts.weight": encoded_step(entries["experts.weight"], DOUBLE, "experts"),
        "cast": kept_step(entries["cast"], "BF16"),
    }
    return tuple(encoded.get(name) or kept_step(entry) for name, entry in entries.items())


def write(source: Path, steps: tuple[Step, ...], folder: Path, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    options = {"mean_threads": torch.get_num_threads(), **options}
    result = write_shard(source, ShardJob("model.safetensors", steps), folder, **options)
    path = folder / "model.safetensors"
    assert [each.name for each in folder.iterdir()] == ["model.safetensors"]
    assert (result.size, result.sha256) == (path.stat().st_size, hash_file(path, root=folder))
    return path


def test_every_tensor_is_that_of_the_whole(
    source: Path, steps: tuple[Step, ...], tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """What is encoded slice by slice in little memory has the bytes of `encode`; the rest is copied or cast."""
    found = load_file(write(source, steps, tmp_path / "out", memory=SMALLEST_MEMORY))
    factory: Any = factory_for("bnb_4bit")
    experts = tensors["experts.weight"]
    expected = {
        **_named("a", factory.encode(tensors["a.weight"], "linear", DOUBLE)),
        **_named("b", factory.encode(tensors["b.weight"], "conv1d", DOUBLE)),
        **_named("c", factory_for("bnb_int8").encode(tensors["c.weight"], "linear", INT8)),
        **_named("experts", factory.encode_experts(experts.unbind(), experts.shape, experts.dtype, DOUBLE)),
        **{name: tensors[name] for name in ("embed", "odd", "scalar", "empty", "mask", "größe")},
        "cast": tensors["cast"].to(torch.bfloat16),
    }
    assert sorted(found) == sorted(expected)
    assert [name for name, each in expected.items() if not same_bytes(found[name], each)] == []


def _named(module: str, encoded: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{module}.{name}": each for name, each in encoded.items()}


@pytest.mark.parametrize("memory", [SMALLEST_MEMORY, 17_000_001, DEFAULT_MEMORY, 1 << 30])
def test_the_file_does_not_depend_on_the_memory(
    memory: int, source: Path, steps: tuple[Step, ...], tmp_path: Path
) -> None:
    """Smaller slices change no byte of the file, its header included."""
    first = write(source, steps, tmp_path / "first", memory=memory)
    second = write(source, steps, tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()


def test_words_are_aligned(source: Path, steps: tuple[Step, ...], tmp_path: Path) -> None:
    """Tensors that can be mapped as they are begin at multiples of eight; the records are last."""
    path = write(source, steps, tmp_path / "out")
    fd = os.open(path, os.O_RDONLY)
    try:
        entries = read_header(fd, path).tensors
    finally:
        os.close(fd)
    assert all(each.start % 8 == 0 for each in entries.values() if each.nbytes % 8 == 0 and each.dtype != "U8")
    records = [".quant_state." in name for name in entries]
    assert records.count(True) == 3
    assert records == sorted(records)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def write_elsewhere(source: Path, job: bytes, folder: Path, threads: int) -> str:
    return write_shard(source, pickle.loads(job), folder, mean_threads=threads).sha256


def test_a_job_is_all_that_another_process_needs(source: Path, steps: tuple[Step, ...], tmp_path: Path) -> None:
    """A pickled job, written where nobody opened the checkpoint, gives the same bytes."""
    path = write(source, steps, tmp_path / "here")
    (tmp_path / "there").mkdir()
    job = pickle.dumps(ShardJob("model.safetensors", steps))
    arguments = (source, job, tmp_path / "there", torch.get_num_threads())
    code, sha256 = in_child(write_elsewhere, *arguments, report=tmp_path / "report")
    assert (code, sha256) == (0, hash_file(path, root=path.parent))


def test_a_source_that_is_another_is_refused(source: Path, steps: tuple[Step, ...], tmp_path: Path) -> None:
    """Whoever writes a shard later notices that a file is no longer the one that the job was made for."""
    stale = {"model.safetensors": {"size": 1, "mtime_ns": 1}}
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the file changed"):
        write(source, steps, tmp_path / "out", fingerprint=stale)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_row_larger_than_the_memory_is_told(tmp_path: Path) -> None:
    """int8 needs whole rows; the tensor and the remedy are named, and no file is begun."""
    entries = source_of(tmp_path / "source", {"it.weight": torch.zeros(2, 5_000_000, dtype=torch.bfloat16)})
    steps = (encoded_step(entries["it.weight"], INT8),)
    with pytest.raises(UsageError, match=r"a row of `it\.weight` does not fit into 12\.58 MB\n  give more --memory"):
        write(tmp_path / "source", steps, tmp_path / "out", memory=SMALLEST_MEMORY)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_bad_value_in_a_late_slice_is_placed(kind: Any, tmp_path: Path) -> None:
    """The tensor is named, with the place in it as the module holds it, and nothing is left."""
    weight = weight_of(ROWS, COLUMNS)
    weight[1987, 4001] = float("nan")
    entries = source_of(tmp_path / "source", {"it.weight": weight})
    step = encoded_step(entries["it.weight"], DOUBLE, kind)
    with pytest.raises(NotFiniteError, match=r"`it\.weight`: the value at \[1987, 4001\] is nan"):
        write(tmp_path / "source", (step,), tmp_path / "out", memory=SMALLEST_MEMORY)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_value_too_large_to_average_is_placed(tmp_path: Path) -> None:
    """It shows only when all slices are encoded; its block is read once more to find it."""
    weight = weight_of(ROWS, COLUMNS)
    weight[1987, 4001] = -3e38
    entries = source_of(tmp_path / "source", {"it.weight": weight})
    steps = (encoded_step(entries["it.weight"], DOUBLE),)
    with pytest.raises(NotFiniteError, match=r"`it\.weight`: the value -3\.0\S+ at \[1987, 4001\] is beyond what"):
        write(tmp_path / "source", steps, tmp_path / "out", memory=SMALLEST_MEMORY)


def test_steps_go_into_shards_in_order(steps: tuple[Step, ...]) -> None:
    """Each is in one shard, and none is above the limit unless one tensor alone is."""
    jobs = plan_jobs(steps, 5_000_000)
    assert [step for job in jobs for step in job.steps] == list(steps)
    assert len({job.name for job in jobs}) == len(jobs) > 2
    assert all(len(job.steps) == 1 or sum(each.nbytes for each in job.steps) <= 5_000_000 for job in jobs)


@pytest.fixture(autouse=True)
def _no_stray_parts(tmp_path: Path) -> Iterator[None]:
    yield
    assert list(tmp_path.rglob("*.part")) == []
