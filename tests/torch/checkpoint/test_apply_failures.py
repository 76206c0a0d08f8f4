"""Whatever stops a run, the output is absent or complete, nothing else is left, and a rerun works."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from children import in_child
from tiny_models import save_tiny

from rulequant.errors import CheckpointError
from rulequant.loader import load_rules
from rulequant.torch.checkpoint.apply import Applied, apply_to_folder
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


class Stop:
    """Progress that does something after so many tensors."""

    def __init__(self, after: int, action: Any) -> None:
        self.after, self.action = after, action

    def start(self, total_bytes: int, tensors: int) -> None:
        pass

    def advance(self, tensor: str, nbytes: int) -> None:
        self.after -= 1
        if self.after == 0:
            self.action()


def _interrupt() -> None:
    raise KeyboardInterrupt


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.mark.parametrize("after", [1, 10, 21])
def test_interrupt_leaves_nothing(after: int, source: Path, tmp_path: Path) -> None:
    """Ctrl-C at the first tensor, midway and at the last."""
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", progress=Stop(after, _interrupt))
    assert names(tmp_path) == []


def kill_after(source: Path, output: Path, after: int) -> None:
    run(source, output, progress=Stop(after, _kill))


@pytest.mark.parametrize("after", [1, 13, 21])
def test_kill_leaves_only_the_staging_folder(after: int, source: Path, tmp_path: Path) -> None:
    """No output, and a rerun says what it clears away, and gives the bytes of an undisturbed run."""
    place = tmp_path / "place"
    place.mkdir()
    code, _ = in_child(kill_after, source, place / "out", after, report=tmp_path / "report")
    assert code == -signal.SIGKILL
    assert names(place) == [".out.rulequant-staging"]
    notices: list[str] = []
    run(source, place / "out", notice=notices.append)
    assert [each for each in notices if "interrupted run" in each] == notices != []
    assert names(place) == ["out"]
    run(source, tmp_path / "undisturbed")
    assert contents(place / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace"])
@pytest.mark.parametrize("number", [1, 5, 10])
def test_full_disk(call: str, number: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space in any write, sync or rename is told with the file, and nothing stays."""
    home: Any = Path if call == "replace" else os
    usual, calls = getattr(home, call), 0

    def fail(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return usual(*arguments, **options)

    monkeypatch.setattr(home, call, fail)
    with pytest.raises(CheckpointError, match=r"no space left on the device for .*staging/checkpoint/[\w.-]+: "):
        run(source, tmp_path / "out")
    assert names(tmp_path) == []


def with_size_limit(source: Path, output: Path) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        run(source, output)
    except CheckpointError as error:
        return str(error)
    return "no error"


def test_limit_on_file_size(source: Path, tmp_path: Path) -> None:
    """A file that may not grow any more is told with the limit, and nothing stays."""
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
