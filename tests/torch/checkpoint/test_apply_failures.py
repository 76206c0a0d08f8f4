"""Whatever stops a run, the output is absent or complete, what can be gone on with is kept, and a rerun works."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from apply_stops import Stop, contents, interrupt, kill, names
from children import in_child
from tiny_models import save_tiny

from rulequant.errors import CheckpointError
from rulequant.loader import load_rules
from rulequant.torch.checkpoint.apply import apply_to_folder
from rulequant.torch.checkpoint.finish import Applied
from rulequant.torch.checkpoint.manifest import check_manifest
from rulequant.torch.skeleton import build_skeleton

NOBODY = 65534


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in bfloat16, only read."""
    return save_tiny("llama", tmp_path_factory.mktemp("failures") / "llama")


def run(source: Path, output: Path, **options: Any) -> Applied:
    rules = load_rules({"version": 1, "schemes": {"it": {"method": "bnb_4bit"}}, "scheme": "it"})
    return apply_to_folder(build_skeleton(str(source)), rules, output, max_shard_bytes=30_000, **options)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing stopped, in four shards."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    run(source, output)
    return contents(output)


def test_interrupt_before_a_shard_is_finished(source: Path, tmp_path: Path) -> None:
    """Ctrl-C at the first tensor leaves nothing: there is nothing to go on with."""
    with pytest.raises(KeyboardInterrupt) as raised:
        run(source, tmp_path / "out", progress=Stop(1, interrupt))
    assert str(raised.value) == ""
    assert names(tmp_path) == []


@pytest.mark.parametrize(("after", "kept"), [(10, 2), (21, 3)])
def test_interrupt_keeps_what_is_finished(
    after: int, kept: int, source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Ctrl-C midway and at the last tensor: it says how to go on, and a rerun gives the bytes of an undisturbed run."""
    with pytest.raises(KeyboardInterrupt) as raised:
        run(source, tmp_path / "out", progress=Stop(after, interrupt))
    staging = tmp_path / ".out.rulequant-staging"
    assert str(raised.value) == (
        f"{kept} of 4 shards are kept in {staging}: run the same command again to go on; `--restart` starts over, or "
        "remove that folder"
    )
    assert names(tmp_path) == [staging.name]
    assert names(staging / "checkpoint") == [f"model-0000{number + 1}-of-00004.safetensors" for number in range(kept)]
    run(source, tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert contents(tmp_path / "out") == undisturbed


def kill_after(source: Path, output: Path, after: int, threads: int) -> None:
    torch.set_num_threads(threads)  # else it is another run: the last bits of a mean depend on it
    run(source, output, progress=Stop(after, kill))


@pytest.mark.parametrize(("after", "told"), [(1, "removing what"), (10, "checking 2 of 4"), (21, "checking 3 of 4")])
def test_kill_leaves_only_the_staging_folder(
    after: int, told: str, source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """No output, and a rerun says what it makes of the rest, and gives the bytes of an undisturbed run."""
    place = tmp_path / "place"
    place.mkdir()
    code, _ = in_child(kill_after, source, place / "out", after, torch.get_num_threads(), report=tmp_path / "report")
    assert code == -signal.SIGKILL
    assert names(place) == [".out.rulequant-staging"]
    notices: list[str] = []
    run(source, place / "out", notice=notices.append)
    assert [each[: len(told)] for each in notices] == [told]
    assert names(place) == ["out"]
    assert contents(place / "out") == undisturbed


def with_size_limit(source: Path, output: Path) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        run(source, output)
    except CheckpointError as error:
        return str(error)
    return "no error"


def test_limit_on_file_size(source: Path, tmp_path: Path) -> None:
    """A file that may not grow any more is told with the limit, and nothing stays where no shard was finished."""
    place = tmp_path / "place"
    place.mkdir()
    code, text = in_child(with_size_limit, source, place / "out", report=tmp_path / "report")
    assert code == 0
    assert "would be larger than is allowed here (20,000 bytes)" in text
    assert names(place) == []


@pytest.fixture
def public(source: Path) -> Iterator[Path]:
    """A folder that other users may enter, with the source in it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        shutil.copytree(source, place / "llama")
        for each in (place / "llama", *(place / "llama").iterdir()):
            each.chmod(0o755)
        yield place


def as_nobody(source: Path, output: Path) -> str:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    try:
        run(source, output)
    except CheckpointError as error:
        return str(error)
    return "no error"


def test_folder_that_may_not_be_written(public: Path) -> None:
    """No permission is told before anything is read or written."""
    locked, report = public / "locked", public / "report"
    locked.mkdir(mode=0o555)
    report.touch()
    report.chmod(0o666)
    code, text = in_child(as_nobody, public / "llama", locked / "out", report=report)
    assert code == 0
    assert "locked/out: no permission to write in" in text
    assert names(locked) == []


def test_source_that_changes_meanwhile(source: Path, tmp_path: Path) -> None:
    """An output of which no one knows what it was made from is not kept."""
    own = Path(shutil.copytree(source, tmp_path / "llama"))

    def touch() -> None:
        os.utime(own / "model.safetensors", ns=(1, 1))

    with pytest.raises(CheckpointError, match=r"model\.safetensors: the file changed while"):
        run(own, tmp_path / "out", progress=Stop(21, touch))
    assert names(tmp_path) == ["llama"]


def test_output_that_appears_meanwhile(source: Path, tmp_path: Path) -> None:
    """It is not replaced, and the finished files are kept."""
    with pytest.raises(CheckpointError, match="appeared while rulequant was writing") as raised:
        run(source, tmp_path / "out", progress=Stop(5, (tmp_path / "out").mkdir))
    assert names(tmp_path / "out") == []
    kept = tmp_path / ".out.rulequant-staging" / "checkpoint"
    assert str(kept) in str(raised.value.remedy)
    assert check_manifest(kept) == []
