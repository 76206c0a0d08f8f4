"""Untrusted files: names made printable, JSON read strictly, only regular files inside the folder opened."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from pathlib import Path

import pytest

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint import files
from rulequant.torch.checkpoint.files import (
    hash_file,
    open_regular,
    printable,
    read_exactly,
    read_into,
    size_text,
    strict_json,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("model.layers.0.weight", "model.layers.0.weight", id="plain"),
        pytest.param("a\x1b[31mb", "a\\x1b[31mb", id="ansi escape"),
        pytest.param("a\nb\0c", "a\\nb\\x00c", id="newline and nul"),
        pytest.param("a\u202eb", "a\\u202eb", id="right-to-left override"),
        pytest.param("a\ud800b", "a\\ud800b", id="lone surrogate"),
        pytest.param("größe", "größe", id="letters stay"),
        pytest.param("x" * 10_000, "x" * 150 + "…" + "x" * 150, id="long"),
    ],
)
def test_printable_escapes_what_a_terminal_would_obey(text: str, shown: str) -> None:
    """Names reach the terminal on one line, without control characters."""
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        pytest.param(0, "0 bytes", id="none"),
        pytest.param(999, "999 bytes", id="bytes"),
        pytest.param(1_500_000_000, "1.50 GB", id="gigabytes"),
        pytest.param(2_000_000_000_000, "2.00 TB", id="terabytes"),
    ],
)
def test_sizes_are_told_in_decimal_units(count: int, shown: str) -> None:
    """A size is readable at any magnitude."""
    assert size_text(count) == shown


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(b'{"a": 1, "a": 2}', "key `a` appears twice", id="duplicate key"),
        pytest.param(b'{"a": {"b": 1, "c": 2, "b": 3}}', "key `b` appears twice", id="nested duplicate"),
        pytest.param(b'{"a\\u001b": 1, "a\\u001b": 2}', r"key `a\\x1b` appears twice", id="escaped in message"),
        pytest.param(b'{"a": \xff}', r"not UTF-8 text \(byte 6\)", id="not utf-8"),
        pytest.param(b'{"a": ', "not valid JSON: Expecting value at character 6", id="cut short"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', "not valid JSON", id="byte order mark"),
        pytest.param(b'{"a": NaN}', "NaN is not a JSON value", id="nan"),
        pytest.param(b'{"a": -Infinity}', "-Infinity is not a JSON value", id="infinity"),
        pytest.param(b"[" * 200_000, "nested too deeply", id="deep list"),
        pytest.param(b'{"a":' * 200_000, "nested too deeply", id="deep object"),
        pytest.param(b"9" * 20, "larger than 64 bits hold", id="long number"),
        pytest.param(b"-" + b"9" * 10_000, "larger than 64 bits hold", id="thousands of digits"),
    ],
)
def test_strict_json_refuses(text: bytes, problem: str) -> None:
    """What other readers take by halves is refused, with the file's name."""
    with pytest.raises(CheckpointError, match=problem) as caught:
        strict_json(text, "x.json")
    assert str(caught.value).startswith("x.json: ")


def test_strict_json_reads_long_digits_inside_strings() -> None:
    """Only numbers are bounded, not the digits of a name."""
    name = "9" * 30
    assert strict_json(f'{{"{name}": [1, -2.5, true, null]}}'.encode(), "x") == {name: [1, -2.5, True, None]}


def test_a_short_read_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may return less than was asked for, which is no end of file."""
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)))
    preadv = os.preadv

    def stingy(fd: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(fd, [buffers[0][:7]], offset)

    monkeypatch.setattr(files.os, "preadv", stingy)
    with path.open("rb") as file:
        assert read_exactly(file.fileno(), 3, 250, path) == bytes(range(3, 253))


def test_a_call_never_asks_for_more_than_systems_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor larger than one call may move is read in several."""
    path = tmp_path / "data"
    path.write_bytes(bytes(range(100)))
    monkeypatch.setattr(files, "MAX_CALL_BYTES", 9)
    buffer = bytearray(100)
    with path.open("rb") as file:
        read_into(file.fileno(), 0, buffer, path)
    assert buffer == bytes(range(100))


def test_the_end_of_a_file_is_an_error(tmp_path: Path) -> None:
    """A file that shrinks while it is read is told, with the position."""
    path = tmp_path / "data"
    path.write_bytes(b"12345")
    with path.open("rb") as file, pytest.raises(CheckpointError, match="ends at byte 5, and 3 more bytes"):
        read_exactly(file.fileno(), 2, 6, path)


def test_a_failing_read_is_an_error_of_the_checkpoint(tmp_path: Path) -> None:
    """A device that gives up is reported in words, not with a traceback."""
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(CheckpointError, match="cannot read: Is a directory"):
            read_exactly(fd, 0, 1, tmp_path)
    finally:
        os.close(fd)


def test_hash_file_is_sha256(tmp_path: Path) -> None:
    """The hash covers all chunks of a file larger than the buffer."""
    data = os.urandom(3_000_001)
    (tmp_path / "data").write_bytes(data)
    assert hash_file(tmp_path / "data", root=tmp_path) == hashlib.sha256(data).hexdigest()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the address of a socket is at most 107 bytes long
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def _folder(path: Path) -> None:
    path.mkdir()


def _link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _link_out(path: Path) -> None:
    (path.parent.parent / "secret").write_bytes(b"secret")
    path.symlink_to("../secret")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        pytest.param(_fifo, "not a regular file but a pipe", id="fifo"),
        pytest.param(_socket, "not a regular file but a socket", id="socket"),
        pytest.param(_folder, "not a regular file but a folder", id="folder"),
        pytest.param(_link_to_device, "leads out of the checkpoint's folder, to /dev/zero", id="device"),
        pytest.param(_link_out, "leads out of the checkpoint's folder, to .*/secret", id="link out"),
        pytest.param(_dangling, "no such file", id="dangling link"),
        pytest.param(_loop, "not a regular file but a link", id="link to itself"),
    ],
)
def test_only_regular_files_inside_the_folder_are_opened(tmp_path: Path, make: object, problem: str) -> None:
    """Anything else is refused before a byte of it is read, and never hangs."""
    root = tmp_path / "model"
    root.mkdir()
    make(root / "x")  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=problem):
        open_regular(root / "x", root=root)


def test_a_pipe_that_takes_the_place_after_the_check_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The open descriptor is checked again, and opening does not wait for a writer."""
    path = tmp_path / "x"
    os.mkfifo(path)
    real_stat = Path.stat
    regular = tmp_path / "regular"
    regular.write_bytes(b"")
    monkeypatch.setattr(Path, "stat", lambda _, **options: real_stat(regular, **options))
    with pytest.raises(CheckpointError, match="a pipe"):
        open_regular(path, root=tmp_path)


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    """Only links that lead out are a danger."""
    (tmp_path / "real").write_bytes(b"data")
    (tmp_path / "link").symlink_to("real")
    os.close(open_regular(tmp_path / "link", root=tmp_path))


def test_a_folder_reached_by_a_link_is_as_good_as_the_real_one(tmp_path: Path) -> None:
    """The user may name the folder itself through a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_bytes(b"data")
    (tmp_path / "link").symlink_to("real")
    os.close(open_regular(tmp_path / "link" / "x", root=tmp_path / "link"))


@pytest.mark.parametrize("where", ["snapshots/abc", "snapshots/abc/onnx"])
def test_the_links_of_the_hub_cache_are_followed(tmp_path: Path, where: str) -> None:
    """A snapshot's file is a link into the blobs of the same repository."""
    repo = tmp_path / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    (repo / "blobs" / "0123").write_bytes(b"data")
    snapshot = repo / where
    snapshot.mkdir(parents=True)
    (snapshot / "x").symlink_to(repo / "blobs" / "0123")
    os.close(open_regular(snapshot / "x", root=snapshot))


@pytest.mark.parametrize(
    ("blob", "allowed"),
    [("ab/" + "ab" * 32, True), ("ab/" + "cd" * 32, False), ("ab/short", False), ("ab" * 32, False)],
    ids=["shared", "other shelf", "no hash", "no shelf"],
)
def test_the_blobs_that_repositories_share(tmp_path: Path, blob: str, allowed: bool) -> None:
    """What comes over Xet is kept once for all: the repository's blob is a link into `<cache>/blobs/<2 digits>/`."""
    shared = tmp_path / "blobs" / blob
    shared.parent.mkdir(parents=True)
    shared.write_bytes(b"data")
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--name" / "blobs").mkdir()
    (tmp_path / "models--org--name" / "blobs" / "0123").symlink_to(shared)
    (snapshot / "x").symlink_to("../../blobs/0123")
    if allowed:
        os.close(open_regular(snapshot / "x", root=snapshot))
    else:
        with pytest.raises(CheckpointError, match="leads out of the checkpoint's folder"):
            open_regular(snapshot / "x", root=snapshot)


def test_the_blobs_of_another_repository_are_out_of_bounds(tmp_path: Path) -> None:
    """The exception for the Hub cache covers one repository."""
    other = tmp_path / "models--other--name" / "blobs"
    other.mkdir(parents=True)
    (other / "0123").write_bytes(b"data")
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "x").symlink_to(other / "0123")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint's folder"):
        open_regular(snapshot / "x", root=snapshot)


def test_a_file_without_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing permission is named. (Played, because root may read everything.)"""
    (tmp_path / "x").write_bytes(b"data")

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(files.os, "open", refuse)
    with pytest.raises(CheckpointError, match="x: cannot open: Permission denied"):
        open_regular(tmp_path / "x", root=tmp_path)
