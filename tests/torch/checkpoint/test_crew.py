"""Workers of their own: the same bytes whatever their number, what they raise, and that none is left behind."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny

from rulequant.diagnostics import Diagnostic, DiagnosticsError, Location
from rulequant.errors import ModelError, ResumableError, UsageError
from rulequant.loader import load_rules
from rulequant.torch.checkpoint import crew as crew_module
from rulequant.torch.checkpoint.ahead import Draft, open_draft
from rulequant.torch.checkpoint.crew import Crew, available_cores, memory_of_each, worthwhile_workers
from rulequant.torch.checkpoint.cutting import DEFAULT_MEMORY, SMALLEST_MEMORY, Cutting
from rulequant.torch.checkpoint.job import Job
from rulequant.torch.checkpoint.local import in_process
from rulequant.torch.checkpoint.prepare import prepare
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.shardfile import Begun
from rulequant.torch.checkpoint.shards import write_shards
from rulequant.torch.checkpoint.sources import source_of
from rulequant.torch.checkpoint.staging import Staging
from rulequant.torch.checkpoint.write import write_output
from rulequant.torch.factories import NotFiniteError
from rulequant.torch.skeleton import build_skeleton
from rulequant.torch.sparing import _Deferred

RULES = {"version": 1, "schemes": {"it": {"method": "bnb_4bit", "double_quant": True}}, "scheme": "it"}
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with an embedding that is larger than a slice."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=9000, dtype="bfloat16",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("crew") / "llama"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def job_of(folder: Path, **options: Any) -> Job:
    skeleton = build_skeleton(str(folder))
    return prepare(skeleton, source_of(skeleton), load_rules(RULES), **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny checkpoint is worth several workers here."""
    monkeypatch.setattr(crew_module, "_BYTES_A_WORKER", 1)


@pytest.fixture
def undisturbed(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files that this process alone writes."""
    job = job_of(source, max_shard_bytes=5_000_000)
    with CheckpointReader.attach(source, job.fingerprint) as reader:
        write_output(job, reader, tmp_path / "alone", in_process(reader), memory=1 << 30)
    return contents(tmp_path / "alone")


@pytest.mark.parametrize(("workers", "memory"), [(1, 24 << 20), (2, SMALLEST_MEMORY), (4, 1 << 30)])
def test_the_output_does_not_depend_on_who_writes_it(
    workers: int, memory: int, source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """One, two or four workers with much or little memory write the files of this process alone, the manifest too."""
    job = job_of(source, max_shard_bytes=5_000_000)
    with CheckpointReader.attach(source, job.fingerprint) as reader, Crew(workers) as crew:
        applied = write_output(job, reader, tmp_path / "out", crew.executor, memory=memory)
    assert len(set(applied.weight_map.values())) > 2
    assert contents(tmp_path / "out") == undisturbed


HEAVY = ["torch", "transformers", "bitsandbytes", "accelerate", "numpy"]


def test_workers_import_neither_transformers_nor_bitsandbytes(source: Path, tmp_path: Path) -> None:
    """Nor accelerate; and the run itself does not even import torch."""
    job = job_of(source)
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    code = f"""
import pickle, sys
from pathlib import Path
from rulequant.torch.checkpoint.crew import Crew
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.write import write_output
from rulequant.torch.checkpoint import crew
crew._BYTES_A_WORKER = 1
job = pickle.loads(Path({str(tmp_path / "job")!r}).read_bytes())
maps = []
class Look:
    def start(self, total_bytes, tensors): pass
    def advance(self, tensor, nbytes):
        if not maps and sys.platform == "linux":
            maps.extend(Path(f"/proc/{{pid}}/maps").read_text() for pid in crew.footprint.pids)
with CheckpointReader.attach(job.source, job.fingerprint) as reader, Crew(2) as crew:
    write_output(job, reader, Path({str(tmp_path / "out")!r}), crew.executor, memory=32 << 20, progress=Look())
print(sorted(set({HEAVY!r}) & set(sys.modules)), len(maps), any("bitsandbytes" in each for each in maps[1:]),
      all("libtorch" in each for each in maps[1:]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ("[] 4 False True\n" if sys.platform == "linux" else "[] 0 False True\n")
    assert (tmp_path / "out" / "rulequant-manifest.json").exists()


def test_units_do_without_them_too(source: Path, tmp_path: Path) -> None:
    """What a worker runs is run here, in a fresh interpreter, and what it has imported is looked at."""
    job = job_of(source)
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    (tmp_path / "out").mkdir()
    code = f"""
import pickle, sys
from pathlib import Path
from rulequant.torch.checkpoint.local import write_shard
job = pickle.loads(Path({str(tmp_path / "job")!r}).read_bytes())
for shard in job.shards:
    write_shard(job.source, shard, Path({str(tmp_path / "out")!r}), mean_threads=job.mean_threads)
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['numpy']\n"


@linux
@pytest.mark.parametrize("takes_torch", [False, True], ids=["without", "with"])
def test_workers_have_torch_only_where_it_is_used(source: Path, tmp_path: Path, takes_torch: bool) -> None:
    """No process of the crew has its library in memory, unless it was asked for."""
    job = job_of(source)
    assert not any(step.takes_torch for shard in job.shards for step in shard.steps)
    with Crew(2, torch=takes_torch) as crew, crew.executor(job, tmp_path) as executor:
        for _ in write_shards(job.shards, tmp_path, executor):
            maps = [Path(f"/proc/{pid}/maps").read_text() for pid in crew.footprint.pids if pid != os.getpid()]
    assert [("libtorch" in each) for each in maps] == [takes_torch] * 3


def test_a_guest_is_a_copy_of_the_head() -> None:
    """A process of its own, in which torch takes as many threads as here by default."""
    with Crew(1, guest=True) as crew:
        assert crew.call(torch.get_num_threads) == torch.get_num_threads()
        assert len(set(crew.footprint.pids)) == 3


class Watched(Draft):
    """Notes what was used of it."""

    used: Begun | None = None

    def begun(self, cutting: Cutting, fingerprint: Mapping[str, Mapping[str, int]]) -> Begun | None:
        """As ever."""
        self.used = super().begun(cutting, fingerprint)
        return self.used


@linux
@pytest.mark.parametrize("what", ["asked for", "killed", "unused", "of another file"])
def test_a_file_is_begun_by_a_process_of_its_own(
    what: str, source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """What it wrote is not written again; if it dies, was asked for nothing, or for another file, all is."""
    job = job_of(source, max_shard_bytes=5_000_000)
    shard = job.shards[1 if what == "of another file" else 0]
    with (
        CheckpointReader.attach(source, job.fingerprint) as reader,
        open_draft(tmp_path, 1) as fd,
        Crew(2, draft=fd) as crew,
    ):
        assert fd is not None
        draft = Watched(fd, shard.steps, job.fingerprint, DEFAULT_MEMORY, 5_000_000)
        if what != "unused":
            crew.write_ahead(source, draft)
            while len(crew.footprint.pids) < 3 or not draft._results:
                crew._ahead.poll(10)
                crew._hear_ahead()
        if what == "killed":
            os.kill(crew.footprint.pids[-1], signal.SIGKILL)
        write_output(job, reader, tmp_path / "out", crew.executor, memory=DEFAULT_MEMORY)
        assert (draft.used is not None) == (what in {"asked for", "killed"})
        assert os.fstat(fd).st_nlink == (1 if draft.used else 0)
        if what == "of another file":
            assert os.fstat(fd).st_size == 0
    assert contents(tmp_path / "out") == undisturbed


FOUND = Diagnostic("RQ401", "no such module", Location("r.yaml", 1, 2, 3, 4), value="x", allowed=("a",), remedy="do")


def raise_it(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        DiagnosticsError([FOUND, replace(FOUND, code="RQ402")]),
        ModelError("what", remedy="how"),
        NotFiniteError("where", remedy="how"),
        KeyboardInterrupt("kept"),
        ZeroDivisionError("plain"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_errors_cross_over_whole(error: BaseException) -> None:
    """Class, words, remedy and diagnostics are those that were raised, and the other's traceback is the cause."""
    with Crew(1, guest=True) as crew, pytest.raises(type(error)) as raised:
        crew.call(raise_it, error)
    assert str(raised.value) == str(error)
    assert getattr(raised.value, "remedy", None) == getattr(error, "remedy", None)
    assert getattr(raised.value, "diagnostics", None) == getattr(error, "diagnostics", None)
    assert "in raise_it" in str(raised.value.__cause__)


def fails_sparingly(notes: Path, error: BaseException) -> str:
    spared = isinstance(sys.modules.get("torch._dynamo"), _Deferred)
    with notes.open("a") as file:
        print("spared" if spared else "whole", file=file)
    if spared:
        raise error
    return "done"


@pytest.mark.parametrize("error", [AttributeError("no such name"), SystemExit(3)], ids=lambda each: type(each).__name__)
def test_a_guest_that_lacks_an_import_is_asked_again(error: BaseException, tmp_path: Path) -> None:
    """With all that there is to import."""
    with Crew(1, guest=True) as crew:
        assert crew.call(fails_sparingly, tmp_path / "notes", error) == "done"
        assert len(set(crew.footprint.pids)) == 4
    assert (tmp_path / "notes").read_text().split() == ["spared", "whole"]


def test_what_lies_in_the_input_is_told_at_once(tmp_path: Path) -> None:
    """No second try finds another model there, and warnings are not told twice."""
    with Crew(1, guest=True) as crew, pytest.raises(ModelError, match="unreadable"):
        crew.call(fails_sparingly, tmp_path / "notes", ModelError("unreadable"))
    assert (tmp_path / "notes").read_text().split() == ["spared"]


def test_errors_that_do_not_pickle_keep_their_words() -> None:
    """They come as what they say."""
    with Crew(1, guest=True) as crew, pytest.raises(RuntimeError, match="awkward_error: one"):
        crew.call(raise_awkward)


def raise_awkward() -> None:
    class awkward_error(Exception):
        pass

    raise awkward_error("one")


def test_a_bad_value_stops_all_and_leaves_nothing(tmp_path: Path) -> None:
    """The tensor and the place are named; the staging folder is gone, and so are the workers."""
    from safetensors.torch import load_file, save_file

    folder = save_tiny("llama", tmp_path / "llama")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name][7, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    job = job_of(folder)
    with (
        CheckpointReader.attach(folder, job.fingerprint) as reader,
        Crew(3) as crew,
        pytest.raises(NotFiniteError, match=r"up_proj\.weight`: the value at \[7, 5\] is nan"),
    ):
        write_output(job, reader, tmp_path / "out", crew.executor, memory=32 << 20)
    assert [each.name for each in tmp_path.iterdir()] == ["llama"]
    assert all(is_gone(pid) for pid in crew.footprint.pids[1:])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_gone(pid: int) -> bool:
    """After a while at most: the last of a process goes after its files are closed."""
    deadline = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


@linux
def test_a_worker_that_is_killed_is_told(source: Path, tmp_path: Path) -> None:
    """As the system does when memory runs out; the run can be gone on with, and says so."""
    job = job_of(source)
    with Crew(2) as crew, crew.executor(job, tmp_path) as executor:
        os.kill(crew.footprint.pids[-1], signal.SIGKILL)
        with pytest.raises(ResumableError, match="ended before its time") as raised:
            list(write_shards(job.shards, tmp_path, executor, memory=32 << 20))
    assert "fewer --workers" in str(raised.value.remedy)
    assert list(tmp_path.iterdir()) == []


def test_workers_hold_the_lock_and_end_with_the_executor(source: Path, tmp_path: Path) -> None:
    """As long as one of them lives no other run gets the folder, even when the process that took it is gone."""
    job, path = job_of(source), tmp_path / "lock"
    lock, other = (os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2))
    fcntl.flock(lock, fcntl.LOCK_EX)
    with Crew(2) as crew:
        with crew.executor(job, tmp_path, lock=lock):
            os.close(lock)
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            crew._head.kill()
        assert all(is_gone(pid) for pid in crew.footprint.pids[1:])
    fcntl.flock(other, fcntl.LOCK_EX)
    os.close(other)


def test_the_lock_is_given_back_at_the_end(source: Path, tmp_path: Path) -> None:
    """At once, whoever has a copy: the next run may begin."""
    job = job_of(source)
    with Crew(2) as crew, Staging(tmp_path / "out") as stage, crew.executor(job, stage.path, lock=stage.lock):
        copy = os.dup(stage.lock or 0)
    with Staging(tmp_path / "out"):
        pass
    os.close(copy)


PARENT = """
import os, sys, time
from rulequant.torch.checkpoint.crew import Crew
crew = Crew(2, guest=True)
crew.call(os.getpid)
print(crew._head.pid, flush=True)
time.sleep(60)
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda each: each.name)
def test_no_process_outlives_the_run(number: signal.Signals) -> None:
    """Whatever ends it, the head and its copies end too."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        head = int(parent.stdout.readline())
        assert is_alive(head)
        parent.send_signal(number)
        parent.wait()
    assert is_gone(head)


@pytest.fixture
def sized(source: Path) -> Job:
    """A job of which the bytes are known."""
    return job_of(source)


def test_no_more_workers_than_work(sized: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each so many bytes, and at least one."""
    total = sum(shard.source_bytes for shard in sized.shards)
    monkeypatch.setattr(crew_module, "_BYTES_A_WORKER", total // 3)
    assert [worthwhile_workers(sized, workers) for workers in (1, 2, 64)] == [1, 2, 3]
    monkeypatch.setattr(crew_module, "_BYTES_A_WORKER", total + 1)
    assert worthwhile_workers(sized, 64) == 1


def test_memory_is_shared_out() -> None:
    """Each gets its part, and too little for all is told with what would do."""
    assert memory_of_each(None, 7) == 32 << 20
    assert memory_of_each(64_000_000, 4) == 16_000_000
    with pytest.raises(
        UsageError, match=r"20\.00 MB is too little for 2 workers, each .* at least 12\.58 MB"
    ) as raised:
        memory_of_each(20_000_000, 2)
    assert raised.value.remedy == "give at least 24MiB, or 1 worker"
    with pytest.raises(UsageError, match="too little for 1 worker"):
        memory_of_each(1_000_000, 1)


def test_available_cores() -> None:
    """At least one, and no more than there are."""
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
