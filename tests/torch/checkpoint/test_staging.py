"""An output appears complete, in one step, or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint import rename as rename_module
from rulequant.torch.checkpoint import staging as staging_module
from rulequant.torch.checkpoint.staging import Staging

HOLDER = """
import sys, time
from pathlib import Path
from rulequant.torch.checkpoint.staging import Staging
with Staging(Path(sys.argv[1])) as stage:
    (stage.path / "config.json").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def _names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is writing `out`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
        # A shell without job control starts background jobs, and so this test, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_committed_folder_is_the_output(tmp_path: Path) -> None:
    """Nothing is seen under the output's name before the commit, and nothing else remains after it."""
    with Staging(tmp_path / "out", tmp_path / "in", 1000) as stage:
        (stage.path / "sub").mkdir()
        (stage.path / "sub" / "config.json").write_text("{}")
        assert _names(tmp_path) == [".out.rulequant-staging"]
        stage.commit()
    assert _names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "sub" / "config.json").read_text() == "{}"


def test_the_folder_has_the_mode_of_any_new_folder(tmp_path: Path) -> None:
    """The umask decides, so that a shared group can read the output."""
    before = os.umask(0o027)
    try:
        with Staging(tmp_path / "out") as stage:
            stage.commit()
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_without_a_commit_nothing_is_left(tmp_path: Path, error: type[BaseException] | None) -> None:
    """An exception, Ctrl-C or a forgotten commit removes the staging folder and all in it."""

    def run() -> None:
        with Staging(tmp_path / "out") as stage:
            (stage.path / "sub").mkdir()
            (stage.path / "sub" / "x").write_text("half")
            if error:
                raise error

    if error:
        with pytest.raises(error):
            run()
    else:
        run()
    assert _names(tmp_path) == []


def test_a_relative_output_stays_where_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the working folder on the way changes nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with Staging(Path("out")) as stage:
        monkeypatch.chdir(tmp_path / "elsewhere")
        stage.commit()
    assert _names(tmp_path) == ["elsewhere", "out"]


def _file(path: Path) -> None:
    path.write_text("mine")


def _empty_folder(path: Path) -> None:
    path.mkdir()


def _full_folder(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text("mine")


def _dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_file, id="file"),
        pytest.param(_empty_folder, id="empty folder"),
        pytest.param(_full_folder, id="full folder"),
        pytest.param(_dangling_link, id="dangling link"),
    ],
)
def test_an_output_that_exists_is_refused(tmp_path: Path, make: object) -> None:
    """Whatever it is, it stays as it is."""
    make(tmp_path / "out")  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="out: the output already exists") as caught:
        Staging(tmp_path / "out").__enter__()
    assert caught.value.remedy == "choose another output, or remove this one first"
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("output", ["/", ".", ".."])
def test_names_that_are_no_new_folder_are_refused(output: str) -> None:
    """The root and the working folder exist already."""
    with pytest.raises(CheckpointError, match="already exists"):
        Staging(Path(output)).__enter__()


def test_too_little_space_is_told_first(tmp_path: Path) -> None:
    """With what is needed and what there is; and nothing is left."""
    with pytest.raises(CheckpointError, match=r"out: not enough space: needs 1000.00 TB, .* has \d.* free") as caught:
        Staging(tmp_path / "out", None, 10**15).__enter__()
    assert "another device" in (caught.value.remedy or "")
    assert _names(tmp_path) == []


def test_a_second_run_for_the_same_output_is_refused(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """It waits for a moment only, and does not touch the work of the first."""
    with pytest.raises(CheckpointError, match="out: another rulequant apply is writing it now"):
        Staging(tmp_path / "out").__enter__()
    assert (tmp_path / ".out.rulequant-staging" / "checkpoint" / "config.json").read_text() == "half"
    with Staging(tmp_path / "other") as stage:
        stage.commit()
    assert holder.poll() is None


def test_a_second_run_in_the_same_process_is_refused(tmp_path: Path) -> None:
    """The lock holds between threads as between processes."""
    with Staging(tmp_path / "out") as stage:
        with pytest.raises(CheckpointError, match="another rulequant apply is writing"):
            Staging(tmp_path / "out").__enter__()
        stage.commit()
    assert _names(tmp_path) == ["out"]


def test_a_lock_that_is_let_go_in_a_moment_is_waited_for(tmp_path: Path) -> None:
    """A worker of a killed run may hold it a little longer than that lived."""
    folder = tmp_path / ".out.rulequant-staging"
    folder.mkdir()
    held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    timer = threading.Timer(0.2, os.close, [held])
    timer.start()
    with Staging(tmp_path / "out") as stage:
        assert timer.finished.is_set()
        stage.commit()
    assert _names(tmp_path) == ["out"]


def test_without_a_recipe_the_next_run_clears_what_a_killed_one_left(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    """Nothing that looks like an output remains; the notice names the folder."""
    holder.kill()
    holder.wait()
    assert _names(tmp_path) == [".out.rulequant-staging"]
    notices: list[str] = []
    with Staging(tmp_path / "out", notice=notices.append) as stage:
        assert _names(stage.path) == []
        stage.commit()
    assert notices == [f"removing what an interrupted run left in {tmp_path}/.out.rulequant-staging"]
    assert _names(tmp_path) == ["out"]


def test_ctrl_c_before_a_shard_is_finished_leaves_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """A real SIGINT to a real process."""
    holder.send_signal(signal.SIGINT)
    holder.wait()
    assert _names(tmp_path) == []


def test_a_first_run_gives_no_notice(tmp_path: Path) -> None:
    """There is nothing to say when nothing was left."""
    notices: list[str] = []
    with Staging(tmp_path / "out", notice=notices.append):
        pass
    assert notices == []


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_trap_in_place_of_the_staging_folder_is_refused(tmp_path: Path, kind: str) -> None:
    """A link there must not aim the removal of stale files at another folder."""
    victim = tmp_path / "victim" / "checkpoint"
    victim.mkdir(parents=True)
    trap = tmp_path / ".out.rulequant-staging"
    trap.symlink_to("victim") if kind == "link" else trap.write_text("")
    with pytest.raises(CheckpointError, match="staging: not a folder, though rulequant builds its output"):
        Staging(tmp_path / "out").__enter__()
    assert victim.is_dir()


def test_a_link_among_stale_files_is_removed_not_followed(tmp_path: Path) -> None:
    """Clearing away stays inside the staging folder."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "x").write_text("precious")
    stale = tmp_path / ".out.rulequant-staging" / "checkpoint"
    stale.mkdir(parents=True)
    (stale / "link").symlink_to("../../victim")
    with Staging(tmp_path / "out") as stage:
        stage.commit()
    assert (tmp_path / "victim" / "x").read_text() == "precious"


@pytest.mark.parametrize("atomic", [True, False], ids=["renameat2", "plain rename"])
@pytest.mark.parametrize("kind", ["file", "folder", "empty folder"])
def test_an_output_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, atomic: bool
) -> None:
    """Hours of work are not thrown away either: the message says where they are."""
    if not atomic:
        monkeypatch.setattr(rename_module, "_renameat2", lambda *_: False)
    output = tmp_path / "out"

    def run() -> None:
        with Staging(output) as stage:
            (stage.path / "x").write_text("finished")
            _file(output) if kind == "file" else _empty_folder(output)
            if kind == "folder":
                (output / "x").write_text("mine")
            stage.commit()

    with pytest.raises(CheckpointError, match="appeared while rulequant was writing, and is not replaced") as caught:
        run()
    kept = tmp_path / ".out.rulequant-staging" / "checkpoint"
    assert str(kept) in (caught.value.remedy or "")
    assert (kept / "x").read_text() == "finished"
    assert output.is_file() or [each.read_text() for each in output.iterdir()] in ([], ["mine"])


def test_the_plain_rename_serves_where_the_kernel_cannot_do_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old kernels and some file systems do not know RENAME_NOREPLACE."""
    monkeypatch.setattr(rename_module, "_RENAME_NOREPLACE", 1 << 20)  # the kernel answers EINVAL
    with Staging(tmp_path / "out") as stage:
        stage.commit()
    assert _names(tmp_path) == ["out"]


def test_a_file_still_being_written_is_not_committed(tmp_path: Path) -> None:
    """A forgotten close must not become an output."""

    def run() -> None:
        with Staging(tmp_path / "out") as stage:
            (stage.path / "model.safetensors.part").write_text("half")
            stage.commit()

    with pytest.raises(RuntimeError, match=r"model.safetensors.part was not finished"):
        run()
    assert _names(tmp_path) == []


@pytest.mark.parametrize("call", ["sync_file", "sync_folder", "rename_without_replacing"])
def test_a_commit_that_fails_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A disk error on the way to the rename leaves nothing under the output's name."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(staging_module, call, fail)

    def run() -> None:
        with Staging(tmp_path / "out") as stage:
            (stage.path / "x").write_text("finished")
            stage.commit()

    with pytest.raises(CheckpointError, match="out: cannot write: Input/output error"):
        run()
    assert _names(tmp_path) == []


def test_everything_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, then their folders, then the rename, then the folder that holds the new name."""
    steps: list[str] = []
    real_rename = staging_module.rename_without_replacing
    monkeypatch.setattr(staging_module, "sync_file", lambda path: steps.append(path.name))
    monkeypatch.setattr(staging_module, "sync_folder", lambda path: steps.append(path.name))

    def rename(source: Path, destination: Path) -> None:
        steps.append("rename")
        real_rename(source, destination)

    monkeypatch.setattr(staging_module, "rename_without_replacing", rename)
    with Staging(tmp_path / "out") as stage:
        (stage.path / "sub").mkdir()
        (stage.path / "sub" / "x").write_text("")
        stage.commit()
    assert steps == ["x", "sub", "checkpoint", "rename", tmp_path.name]


def test_a_lock_taken_from_a_run_that_just_ended_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the lock file and locking it, the other run may finish and remove it."""
    real_open = Staging._open_lock
    removed = []

    def open_lock(stage: Staging, path: Path) -> int | None:
        fd = real_open(stage, path)
        if not removed:
            removed.append(path)
            shutil.rmtree(stage.folder)
        return fd

    monkeypatch.setattr(Staging, "_open_lock", open_lock)
    with Staging(tmp_path / "out") as stage:
        stage.commit()
    assert _names(tmp_path) == ["out"]


def test_an_output_made_while_the_lock_was_awaited_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is made again under the lock."""
    real_take = Staging._take_lock

    def take_lock(stage: Staging) -> int:
        (tmp_path / "out").mkdir()
        return real_take(stage)

    monkeypatch.setattr(Staging, "_take_lock", take_lock)
    with pytest.raises(CheckpointError, match="the output already exists"):
        Staging(tmp_path / "out").__enter__()
    assert _names(tmp_path) == ["out"]


def test_many_runs_at_once_make_one_output(tmp_path: Path) -> None:
    """Of processes that start together, one commits and the others are refused."""
    code = (
        "import sys; from pathlib import Path; from rulequant.errors import CheckpointError;"
        "from rulequant.torch.checkpoint.staging import Staging"
        "\nsys.stdin.read()"
        "\ntry:"
        "\n    with Staging(Path(sys.argv[1])) as stage:"
        "\n        (stage.path / 'x').write_text(sys.argv[2]); stage.commit(); print('made')"
        "\nexcept CheckpointError as error: print(error.message)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    runs = [
        subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for i in range(4)
    ]
    time.sleep(0.2)
    for run in runs:
        assert run.stdin is not None
        run.stdin.close()
    answers = [run.stdout.read().strip() for run in runs if run.stdout]
    for run in runs:
        assert run.wait() == 0
        assert run.stdout is not None
        run.stdout.close()
    assert answers.count("made") == 1
    assert _names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "x").read_text() == str(answers.index("made"))
