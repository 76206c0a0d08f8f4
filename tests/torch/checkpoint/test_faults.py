"""Whichever call to the system fails, and when: the output is absent or complete, and a rerun mends it."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from apply_runs import state
from apply_stops import Stop, contents, names
from children import in_child
from fault_layer import CALLS, Fault, FaultLayer, WorkersLayer
from tiny_models import save_tiny

from rulequant.errors import CheckpointError, ResumableError
from rulequant.loader import load_rules
from rulequant.torch.checkpoint import crew as crew_module
from rulequant.torch.checkpoint.apply import apply_to_folder
from rulequant.torch.skeleton import Skeleton, build_skeleton

STAGING = ".out.rulequant-staging"
TMPFS_BYTES = 32 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of one layer, only read."""
    return save_tiny("llama", tmp_path_factory.mktemp("faults") / "llama", num_hidden_layers=1, vocab_size=32)


@pytest.fixture(scope="module")
def skeleton(source: Path) -> Skeleton:
    """It, built once."""
    return build_skeleton(str(source))


def run(skeleton: Skeleton, output: Path, **options: Any) -> None:
    rules = load_rules({"version": 1, "schemes": {"it": {"method": "bnb_4bit"}}, "scheme": "it"})
    apply_to_folder(skeleton, rules, output, max_shard_bytes=16_000, **options)


@pytest.fixture(scope="module")
def undisturbed(skeleton: Skeleton, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run in which nothing fails, in three shards."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    run(skeleton, output)
    return contents(output)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["disk full", "disk error"])
@pytest.mark.parametrize("name", CALLS)
def test_every_call_fails_once(
    name: str, code: int, source: Path, skeleton: Skeleton, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Each call of a run in turn, as many as a run without faults makes; a full disk stays full."""
    before = state(source)
    layer = FaultLayer()
    with layer.installed():
        run(skeleton, tmp_path / "dry")
        for number in range(1, layer.counts[name] + 1):
            place = tmp_path / str(number)
            place.mkdir()
            with layer.failing(name, number, code, persistent=code == errno.ENOSPC and name not in {"open", "close"}):
                error = _error(skeleton, place / "out")
            _check_what_is_left(error, place, undisturbed, f"{name} {number}")
            if error is not None and not (place / "out").exists():
                run(skeleton, place / "out")
            assert names(place) == ["out"], f"{name} {number}"
            assert contents(place / "out") == undisturbed, f"{name} {number}"
    assert state(source) == before


def test_the_layer_sees_the_calls(skeleton: Skeleton, tmp_path: Path) -> None:
    """A run makes many of those that matter; else the test above would test nothing."""
    layer = FaultLayer()
    with layer.installed():
        run(skeleton, tmp_path / "out")
    assert layer.counts["rename_without_replacing"] == 1
    assert min(layer.counts[name] for name in ("open", "mkdir", "pwrite", "fsync", "replace")) >= 3


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkersLayer:
    """A layer in the workers, of which a tiny checkpoint has two."""
    monkeypatch.setattr(crew_module, "_BYTES_A_WORKER", 1)
    return WorkersLayer(tmp_path)


def _check_faults_of_workers(
    faults: Iterable[Fault], workers: WorkersLayer, source: Path, skeleton: Skeleton, undisturbed: dict[str, bytes]
) -> None:
    before = state(source)
    for fault in faults:
        place = workers.folder / "-".join(map(str, fault))
        place.mkdir()
        with workers.installed(fault):
            error = _error(skeleton, place / "out", workers=2)
        _check_what_is_left(error, place, undisturbed, str(fault))
        assert error is not None or workers.counts[fault.name] < fault.number, str(fault)
        if error is not None:
            run(skeleton, place / "out")
        assert names(place) == ["out"], str(fault)
        assert contents(place / "out") == undisturbed, str(fault)
    assert state(source) == before


OF_WORKERS = ("open", "pwrite", "copy_file_range", "fsync")


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="which is one of the calls")
def test_calls_of_workers_fail(
    workers: WorkersLayer, source: Path, skeleton: Skeleton, undisturbed: dict[str, bytes]
) -> None:
    """One of each kind, in the middle: the run hears of it, and the rerun, which has no workers, gives the same."""
    with workers.installed():
        run(skeleton, workers.folder / "dry", workers=2)
    made = {name: workers.counts[name] for name in OF_WORKERS}
    assert min(made.values()) >= 2, made
    assert contents(workers.folder / "dry") == undisturbed
    faults = [
        Fault(name, made[name] // 2, code, code == errno.ENOSPC)
        for name, code in zip(OF_WORKERS, [errno.EIO, errno.ENOSPC, errno.EIO, errno.EIO], strict=True)
    ]
    _check_faults_of_workers(faults, workers, source, skeleton, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["disk full", "disk error"])
@pytest.mark.parametrize("name", CALLS)
def test_every_call_of_workers_fails(
    name: str, code: int, workers: WorkersLayer, source: Path, skeleton: Skeleton, undisturbed: dict[str, bytes]
) -> None:
    """Each in turn, of whichever worker makes it."""
    with workers.installed():
        run(skeleton, workers.folder / "dry", workers=2)
    persistent = code == errno.ENOSPC and name not in {"open", "close"}
    faults = [Fault(name, each, code, persistent) for each in range(1, workers.counts[name] + 1)]
    _check_faults_of_workers(faults, workers, source, skeleton, undisturbed)


def _error(skeleton: Skeleton, output: Path, **options: Any) -> CheckpointError | None:
    """The error of a run; only those that are meant for a user may come."""
    try:
        run(skeleton, output, **options)
    except CheckpointError as error:
        return error
    return None


def _check_what_is_left(error: CheckpointError | None, place: Path, undisturbed: dict[str, bytes], where: str) -> None:
    """Nothing, or the whole output, or a staging folder with finished shards, of which the error tells."""
    if (place / "out").exists():
        assert contents(place / "out") == undisturbed, where
        assert names(place) == ["out"], where
        return
    assert error is not None, where
    assert isinstance(error, ResumableError), where
    if names(place):
        shards = names(place / STAGING / "shards")
        assert f"{len(shards)} of 3 shards are kept in {place / STAGING}" in str(error.remedy), where
        assert all(each.endswith(".json") for each in shards), where
    else:
        assert "shards are kept" not in str(error), where


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system may not be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up(small_disk: Path, skeleton: Skeleton, undisturbed: dict[str, bytes]) -> None:
    """Someone else takes the space midway: what is finished is kept, and the run goes on when there is space again."""
    filler = small_disk / "filler"

    def fill() -> None:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    with pytest.raises(ResumableError, match=r"no space left on the device for .*: .*the device has .* left") as raised:
        run(skeleton, small_disk / "out", progress=Stop(8, fill))
    assert "of 3 shards are kept" in str(raised.value)
    assert names(small_disk) == [STAGING, "filler"]
    filler.unlink()
    run(skeleton, small_disk / "out")
    assert names(small_disk) == ["out"]
    assert contents(small_disk / "out") == undisturbed


def limited(source: Path, output: Path, size: int) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        run(build_skeleton(str(source)), output)
    except ResumableError as error:
        return str(error)
    return "no error"


def test_a_limit_on_the_size_of_files(
    source: Path, skeleton: Skeleton, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """The shards that fit are kept; with the limit raised, the run goes on."""
    place = tmp_path / "place"
    place.mkdir()
    limit = len(undisturbed["model-00002-of-00003.safetensors"]) - 1
    code, text = in_child(limited, source, place / "out", limit, report=tmp_path / "report")
    assert code == 0
    assert f"would be larger than is allowed here ({limit:,} bytes)" in text
    assert "1 of 3 shards are kept" in text
    run(skeleton, place / "out")
    assert names(place) == ["out"]
    assert contents(place / "out") == undisturbed
