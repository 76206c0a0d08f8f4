"""Files that are complete or absent, whatever the disk does."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rulequant.errors import CheckpointError, ResumableError
from rulequant.torch.checkpoint import partfile
from rulequant.torch.checkpoint.partfile import (
    PartFile,
    copy_file,
    explained,
    open_nameless,
    sync_folder,
    write_at,
    write_file,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="files without a name")


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    """Sets the umask for one test."""
    before = os.umask(0o022)

    def change(mask: int) -> None:
        os.umask(mask)

    yield change
    os.umask(before)


def _names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_file_appears_under_its_name_when_it_is_complete(tmp_path: Path) -> None:
    """Until then there is only the .part file; bytes may come in any order."""
    with PartFile(tmp_path / "x") as file:
        file.write(b"world", 6)
        file.write(b"hello ", 0)
        assert _names(tmp_path) == ["x.part"]
    assert _names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"hello world"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    """Ctrl-C too."""

    def interrupted() -> None:
        with PartFile(tmp_path / "x") as file:
            file.write(b"half", 0)
            raise error

    with pytest.raises(error):
        interrupted()
    assert _names(tmp_path) == []


def test_a_part_file_of_an_earlier_run_is_started_over(tmp_path: Path) -> None:
    """Its old bytes do not shine through; and a link in its place is removed, not followed."""
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "x.part").symlink_to("victim")
    write_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert (tmp_path / "victim").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("mask", "mode"),
    [
        pytest.param(0o022, 0o644, id="usual"),
        pytest.param(0o002, 0o664, id="group"),
        pytest.param(0o077, 0o600, id="private"),
        pytest.param(0o000, 0o666, id="open"),
    ],
)
def test_the_umask_decides_the_mode(tmp_path: Path, umask: Callable[[int], None], mask: int, mode: int) -> None:
    """A written and a copied file have the mode of any new file, whatever the source's is."""
    umask(mask)
    write_file(tmp_path / "x", b"")
    (tmp_path / "x").chmod(0o700)
    copy_file(tmp_path / "x", tmp_path / "y")
    write_file(tmp_path / "z", b"")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "yz"] == [mode, mode]


def test_a_short_write_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take less than it was given."""
    pwrite = os.pwrite
    monkeypatch.setattr(partfile.os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    write_file(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_a_write_after_the_end_is_the_callers_mistake(tmp_path: Path) -> None:
    """A finished file is not written to."""
    file = PartFile(tmp_path / "x")
    file.finish()
    with pytest.raises(ValueError, match="is finished or was discarded"):
        file.write(b"x", 0)
    file.discard()
    assert _names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("code", "problem", "remedy"),
    [
        pytest.param(
            errno.ENOSPC,
            r"no space left on the device for .*/x: needs 1.50 GB more, the device has \d.* left",
            "free some space",
            id="disk full",
        ),
        pytest.param(errno.EDQUOT, "no space left on the device for .*/x", "raise the quota", id="quota"),
        pytest.param(errno.EFBIG, "x: the file would be larger than is allowed", "smaller shards", id="limit"),
        pytest.param(errno.EACCES, "x: no permission to write: Permission denied", "change its", id="access"),
        pytest.param(errno.EPERM, "x: no permission to write: Operation not permitted", "choose", id="perm"),
        pytest.param(errno.EROFS, "x: cannot write: the file system is read-only", "elsewhere", id="read-only"),
        pytest.param(errno.EIO, "x: cannot write: Input/output error", "elsewhere", id="broken disk"),
    ],
)
def test_trouble_with_the_disk_is_told_in_words(tmp_path: Path, code: int, problem: str, remedy: str) -> None:
    """The message says what could not be written, why, and what to do."""

    def fail() -> None:
        with explained(tmp_path / "x", needed=1_500_000_000):
            raise OSError(code, os.strerror(code))

    with pytest.raises(CheckpointError, match=problem) as caught:
        fail()
    assert remedy in (caught.value.remedy or "")


@pytest.mark.parametrize("call", ["open", "pwrite", "fsync", "close", "replace"])
def test_an_error_at_any_step_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Neither the file nor its .part remains when the disk fails at one of the steps."""
    real_close = os.close

    def fail(*arguments: object, **options: object) -> None:
        if call == "close":
            real_close(arguments[0])  # type: ignore[arg-type]
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "replace") if call == "replace" else (partfile.os, call)), fail)
        with pytest.raises(CheckpointError, match="cannot write: Input/output error"):
            write_file(tmp_path / "x", b"data")
    assert _names(tmp_path) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """A real limit of the kernel: the write stops half way, the message says why, no file remains."""
    code = (
        "import resource, sys; from pathlib import Path;"
        "from rulequant.torch.checkpoint.partfile import write_file;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "write_file(Path(sys.argv[1]), bytes(5000))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ResumableError" in done.stderr
    assert "x: the file would be larger than is allowed here (1,000 bytes)" in done.stderr
    assert _names(tmp_path) == []


def test_side_files_are_copied_with_their_folder(tmp_path: Path) -> None:
    """A file in a sub-folder of the source lands in the same sub-folder, byte for byte."""
    data = os.urandom(2_500_000)
    (tmp_path / "in" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "in" / "1_Pooling" / "config.json").write_bytes(data)
    (tmp_path / "in" / "empty").write_bytes(b"")
    for name in ("1_Pooling/config.json", "empty"):
        copy_file(tmp_path / "in" / name, tmp_path / "out" / name, root=tmp_path / "in")
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_bytes() == data
    assert (tmp_path / "out" / "empty").read_bytes() == b""


def test_a_side_file_that_leads_out_is_not_copied(tmp_path: Path) -> None:
    """A link in the source must not publish what lies elsewhere, through a linked sub-folder neither."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").symlink_to("../secret/key")
    (tmp_path / "in" / "sub").symlink_to("../secret")
    for name in ("file", "sub/key"):
        with pytest.raises(CheckpointError, match="leads out of the checkpoint's folder"):
            copy_file(tmp_path / "in" / name, tmp_path / "out" / name, root=tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_a_side_file_that_is_a_pipe_is_not_copied(tmp_path: Path) -> None:
    """Copying must not hang."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file but a pipe"):
        copy_file(tmp_path / "pipe", tmp_path / "copy")


def test_a_file_system_that_cannot_sync_folders_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some answer EINVAL; a broken disk's EIO is still an error."""

    def fail_with(code: int) -> None:
        def fsync(fd: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(partfile.os, "fsync", fsync)

    fail_with(errno.EINVAL)
    sync_folder(tmp_path)
    fail_with(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)


@linux
def test_a_file_without_a_name_gets_one(tmp_path: Path) -> None:
    """It becomes the file, with the mode of any other, in place of a part that was left; its descriptor stays open."""
    (tmp_path / "x.part").write_text("left")
    fd = open_nameless(tmp_path)
    write_at(fd, b"begun", 0, tmp_path)
    assert _names(tmp_path) == ["x.part"]
    with PartFile(tmp_path / "x", fd) as file:
        assert (tmp_path / "x.part").read_bytes() == b"begun"
        file.write(b", done", 5)
    (tmp_path / "y").touch()
    assert (tmp_path / "x").read_bytes() == b"begun, done"
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode
    assert _names(tmp_path) == ["x", "y"]
    assert os.fstat(fd).st_nlink == 1
    os.close(fd)


@linux
def test_what_is_no_longer_wanted_loses_the_name(tmp_path: Path) -> None:
    """As any other."""
    fd = open_nameless(tmp_path)
    PartFile(tmp_path / "x", fd).discard()
    assert _names(tmp_path) == []
    os.close(fd)


@linux
def test_where_a_name_cannot_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is gone, or the system has no such files."""
    fd = open_nameless(tmp_path)
    with pytest.raises(ResumableError, match="cannot write"):
        PartFile(tmp_path / "gone" / "x", fd)
    os.close(fd)
    monkeypatch.delattr(os, "O_TMPFILE")
    with pytest.raises(OSError, match="not supported"):
        open_nameless(tmp_path)
