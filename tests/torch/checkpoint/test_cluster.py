"""Shards written by the tasks of a Ray cluster are those that this machine writes alone, whoever is lost on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from apply_runs import plan_of
from apply_stops import contents, names
from tiny_models import save_tiny

from rulequant.cli.main import run
from rulequant.errors import MissingExtraError, ResumableError, UsageError
from rulequant.torch.checkpoint import cluster
from rulequant.torch.checkpoint.prepare import prepare
from rulequant.torch.checkpoint.sources import source_of
from rulequant.torch.checkpoint.wire import Failure, failure_to_raise
from rulequant.torch.skeleton import build_skeleton

KILLER = """
import os, pickle, signal, sys, threading, time
from pathlib import Path

import ray

from rulequant.cli.main import run

source, output = sys.argv[1:]
staging = Path(output).parent / f".{Path(output).name}.rulequant-staging"
killed = []

def kill_one():
    while not killed:
        time.sleep(0.002)
        if not list((staging / "shards").glob("*.json")):
            continue
        for each in (staging / "attempts").glob("*-*-*"):
            try:
                os.kill(int(each.name.split("-")[-2]), signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.append(each.name)
            break

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
threading.Thread(target=kill_one, daemon=True).start()
code = run(["apply", source, "-o", output, "--max-shard-size", "20KB", "--executor", "ray", "--quiet"])
ray.shutdown()
print(code, len(killed))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama."""
    return save_tiny("llama", tmp_path_factory.mktemp("cluster") / "llama", num_hidden_layers=4)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'rulequant[ray]'")
def test_a_worker_killed_half_way(source: Path, tmp_path: Path) -> None:
    """Two workers, one of which is killed while it writes: its shard is given out again, and all bytes are the same."""
    place = tmp_path / "place"
    place.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTHONWARNINGS"))}
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(source), str(place / "out")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.stdout.split()[-2:] == ["0", "1"], done.stdout + done.stderr
    assert names(place) == ["out"]
    assert run(["apply", str(source), "-o", str(tmp_path / "local"), "--max-shard-size", "20KB", "--quiet"]) == 0
    assert contents(place / "out") == contents(tmp_path / "local")
    assert len(list((place / "out").glob("*.safetensors"))) > 5


def task(model: Path, folder: Path, **changes: Any) -> tuple[cluster._Task, Any]:
    skeleton = build_skeleton(str(model))
    job = prepare(skeleton, source_of(skeleton), plan_of(model), container="auto", max_shard_bytes=20_000)
    (folder / "attempts").mkdir()
    (folder / "attempts" / "token").write_text("right")
    facts = {
        "source": model,
        "fingerprint": job.fingerprint,
        "attempts": folder / "attempts",
        "token": "right",
        "mean_threads": job.mean_threads,
        "memory": 32 << 20,
    }
    return cluster._Task(**(facts | changes)), job.shards[0]


def test_a_task(source: Path, tmp_path: Path) -> None:
    """It writes its shard into a folder of its own, and says where it is and what is in it."""
    answer = cluster._write_shard(*task(source, tmp_path))
    assert not isinstance(answer, Failure)
    folder, result = answer
    assert folder.parent == tmp_path / "attempts"
    assert names(folder) == [result.name]
    assert (folder / result.name).stat().st_size == result.size


@pytest.mark.parametrize(
    ("changes", "unseen"),
    [({"token": "of another machine"}, "."), ({"source": Path("/nowhere/llama")}, "/nowhere/llama")],
    ids=["output", "model"],
)
def test_a_folder_that_is_not_shared(changes: dict[str, Any], unseen: str, source: Path, tmp_path: Path) -> None:
    """The machine and the folder are named, and what to do."""
    (tmp_path / "staging").mkdir()
    answer = cluster._write_shard(*task(source, tmp_path / "staging", **changes))
    assert isinstance(answer, Failure)
    error = failure_to_raise(answer)
    assert isinstance(error, ResumableError)
    where = tmp_path if unseen == "." else unseen
    assert error.message.endswith(f" of the cluster does not see {where} as this one does")
    assert error.remedy == "put model and output on a file system that all machines have under the same path"


def test_a_task_that_fails_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """Its error comes back whole, and its folder goes."""
    wrong = {"model.safetensors": {"size": 1, "mtime_ns": 1}}
    answer = cluster._write_shard(*task(source, tmp_path, fingerprint=wrong))
    assert isinstance(answer, Failure)
    assert "the file changed" in str(failure_to_raise(answer))
    assert names(tmp_path / "attempts") == ["token"]


def test_a_model_in_memory(tmp_path: Path) -> None:
    """Another machine cannot read it."""
    job = cast(Any, SimpleNamespace(source=None, model="mine:build"))
    with pytest.raises(UsageError, match="mine:build is in the memory of this process"):
        cluster.on_cluster(job, tmp_path).__enter__()


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra to install is named, before anything is read."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match="--executor ray needs ray") as raised:
        cluster.require_ray()
    assert raised.value.remedy == "pip install 'rulequant[ray]'"


def test_an_address_without_the_executor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be ignored otherwise."""
    monkeypatch.chdir(tmp_path)
    assert run(["apply", "llama", "-o", "out", "--ray-address", "auto"]) == 2
    assert "--ray-address is for --executor ray" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer(source: Path, tmp_path: Path) -> None:
    """It is said after seconds, where Ray alone would try for minutes, and what was finished stays."""
    job = cast(Any, SimpleNamespace(source=source, model="llama"))
    pytest.importorskip("ray", reason="ray is not installed: pip install 'rulequant[ray]'")
    with pytest.raises(ResumableError, match=r"no Ray cluster answers at 127\.0\.0\.1:1: .*refused"):
        cluster.on_cluster(job, tmp_path, address="127.0.0.1:1").__enter__()
