"""Writing result files, and sizes as options."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import click
import pytest

from rulequant.cli.output import write_text
from rulequant.cli.sizes import SIZE
from rulequant.errors import UsageError


def test_writes_with_the_mode_of_the_umask(tmp_path: Path) -> None:
    """A new file is as readable as any that the user makes."""
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "f", "größe\n")
    finally:
        os.umask(before)
    assert (tmp_path / "f").read_bytes() == "größe\n".encode()
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_replaces_only_what_it_may(tmp_path: Path) -> None:
    """An existing file is asked about, and named with its kind."""
    path = tmp_path / "f"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"f exists and is not a plan\n  choose another name, or remove the file"):
        write_text(path, "x", replaces=lambda _: False, what="a plan")
    with pytest.raises(UsageError, match=r"f exists\n"):
        write_text(path, "x")
    assert path.read_text() == "mine"
    write_text(path, "x", replaces=lambda _: True, what="a plan")
    assert path.read_text() == "x"


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    """Whatever is asked, a folder stays."""
    with pytest.raises(UsageError, match="remove the folder"):
        write_text(tmp_path, "x", replaces=lambda _: True, what="a plan")


def test_follows_a_link(tmp_path: Path) -> None:
    """The file that a link leads to is written, and the link stays."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "new", replaces=lambda _: True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_refuses_a_broken_link(tmp_path: Path) -> None:
    """What a link leads to must be there."""
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match="is a broken link"):
        write_text(tmp_path / "link", "x")


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a part of the file nor its temporary name remains."""

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UsageError, match=r"cannot write .*: No space left on device"):
        write_text(tmp_path / "f", "x")
    assert list(tmp_path.iterdir()) == []


def test_missing_folder(tmp_path: Path) -> None:
    """The folder must exist."""
    with pytest.raises(UsageError, match="No such file or directory"):
        write_text(tmp_path / "gone" / "f", "x")


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        pytest.param("5GB", 5_000_000_000, id="GB"),
        pytest.param("500mb", 500_000_000, id="lower case"),
        pytest.param("2GiB", 2 << 30, id="GiB"),
        pytest.param("1.5 GB", 1_500_000_000, id="a fraction and a space"),
        pytest.param("10G", 10_000_000_000, id="without B"),
        pytest.param("123456", 123_456, id="bytes"),
    ],
)
def test_size(text: str, nbytes: int) -> None:
    """Sizes are decimal unless they say iB."""
    assert SIZE.convert(text, None, None) == nbytes
    assert SIZE.convert(nbytes, None, None) == nbytes


@pytest.mark.parametrize("text", ["", "5XB", "-1GB", "GB", "5iB", "1e9", "five", "999", "0"])
def test_no_size(text: str) -> None:
    """Anything else is refused with examples."""
    with pytest.raises(click.BadParameter, match="write 5GB"):
        SIZE.convert(text, None, None)
