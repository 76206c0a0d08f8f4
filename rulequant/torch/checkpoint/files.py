"""Files of a checkpoint as untrusted input: opened only where regular and inside, read by position."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections import Counter
from contextlib import suppress
from pathlib import Path

from rulequant import escaping
from rulequant.errors import CheckpointError, ResumableError

__all__ = [
    "LARGEST_INT",
    "MAX_CALL_BYTES",
    "close_read",
    "cut_short",
    "damaged",
    "hash_fd",
    "hash_file",
    "open_regular",
    "printable",
    "read_exactly",
    "read_into",
    "size_text",
    "strict_json",
]

LARGEST_INT = 2**63 - 1
# One system call moves at most 0x7ffff000 bytes on Linux, and macOS refuses more than 2**31 - 1.
MAX_CALL_BYTES = 1 << 30

_MAX_DIGITS = len(str(LARGEST_INT))
_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % (_MAX_DIGITS + 1))
_HASH_CHUNK = 1 << 20
# O_NONBLOCK: opening a FIFO that took the file's place must not hang. O_NOFOLLOW: nor may a link take it.
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
# `snapshots/<revision>/file` may be a link into `blobs/` of the same repository folder.
_HUB_SNAPSHOTS, _HUB_BLOBS = "snapshots", "blobs"
_HUB_SHARED = re.compile(r"[0-9a-f]{64}")
_DAMAGED = "the file is damaged or comes from a source not to be trusted: get it again"


def printable(text: object, *, limit: int = 300) -> str:
    """The text on one line: control characters escaped, its middle left out past `limit` characters."""
    raw = str(text)
    if len(raw) > limit:
        half = limit // 2
        raw = f"{raw[:half]}…{raw[-half:]}"
    return escaping.printable(raw)


def size_text(count: int) -> str:
    """A number of bytes for a reader, in decimal units: `1.50 GB`."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


def read_into(fd: int, start: int, buffer: bytearray | memoryview, path: Path) -> None:
    """Fill the buffer with the bytes of an open file from offset `start` on.

    The position of the descriptor is neither used nor moved, so threads may share it.

    Raises:
        CheckpointError: the file ends before the buffer is full, or cannot be read.
    """
    view = memoryview(buffer).cast("B")
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done : done + MAX_CALL_BYTES]], start + done)
        except OSError as error:
            raise ResumableError(f"{printable(path)}: cannot read: {error.strerror}") from error
        if count == 0:
            raise cut_short(path, start + done, len(view) - done)
        done += count


def cut_short(path: Path, position: int, missing: int) -> CheckpointError:
    """The error for a file that ends at a byte, with so many bytes missing."""
    return CheckpointError(
        f"{printable(path)}: ends at byte {position:,}, and {missing:,} more bytes were "
        "expected: it was cut short while it was read",
        remedy="let the download finish, or leave the file alone, and run again",
    )


def read_exactly(fd: int, start: int, length: int, path: Path) -> bytearray:
    """`length` bytes of an open file from offset `start` on; raises as `read_into`."""
    data = bytearray(length)
    read_into(fd, start, data, path)
    return data


def strict_json(data: bytes | bytearray, where: str) -> object:
    """The value of a JSON text in UTF-8, without duplicate keys, NaN, or numbers past 64 bits.

    Raises:
        CheckpointError: the text is none of that; `where` says which file in the message.
    """

    def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise damaged(where, f"the key `{printable(key)}` appears twice")
        return found

    def bounded_int(text: str) -> int:
        if len(text.lstrip("-")) > _MAX_DIGITS:
            raise damaged(where, f"the number {printable(text, limit=40)} is larger than 64 bits hold")
        return int(text)

    def no_constant(text: str) -> object:
        raise damaged(where, f"{text} is not a JSON value")

    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=without_duplicates,
            # A check per number costs as much as the rest: it is made only where a long one may be.
            parse_int=bounded_int if _LONG_NUMBER.search(data) else None,
            parse_constant=no_constant,
        )
    except UnicodeDecodeError as error:
        raise damaged(where, f"not UTF-8 text (byte {error.start:,})") from error
    except json.JSONDecodeError as error:
        raise damaged(where, f"not valid JSON: {error.msg} at character {error.pos:,}") from error
    except RecursionError as error:
        raise damaged(where, "JSON nested too deeply") from error


def damaged(where: str, problem: str) -> CheckpointError:
    """The error for a file whose content cannot be trusted."""
    return CheckpointError(f"{where}: {problem}", remedy=_DAMAGED)


def open_regular(path: Path, *, root: Path) -> int:
    """Open a regular file for reading whose real path is inside `root`, and return the descriptor.

    The links out of `root` that are followed are the Hub cache's own, from a snapshot into `blobs`.

    Raises:
        CheckpointError: the file is missing, unreadable, not a regular file, or outside of `root`.
    """
    real = _real_path_inside(path, root)
    try:
        # Before opening too: opening a device may already have an effect.
        _require_regular(real.stat(follow_symlinks=False), path)
        fd = os.open(real, _OPEN_FLAGS)
    except FileNotFoundError as error:
        raise CheckpointError(f"{printable(path)}: no such file", remedy="download the checkpoint again") from error
    except OSError as error:
        raise ResumableError(f"{printable(path)}: cannot open: {error.strerror}") from error
    try:
        _require_regular(os.fstat(fd), path)
    except BaseException:
        close_read(fd)
        raise
    return fd


def close_read(fd: int) -> None:
    """Close a descriptor through which nothing was written: no byte depends on how that goes."""
    with suppress(OSError):
        os.close(fd)


def hash_file(path: Path, *, root: Path) -> str:
    """The sha256 of a file, in hex; raises as `open_regular`."""
    fd = open_regular(path, root=root)
    try:
        return hash_fd(fd, path)
    finally:
        close_read(fd)


def hash_fd(fd: int, path: Path) -> str:
    """The sha256, in hex, of all bytes of an open file; its position is neither used nor moved."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_HASH_CHUNK))
    position, size = 0, os.fstat(fd).st_size
    while position < size:
        chunk = buffer[: size - position]
        read_into(fd, position, chunk, path)
        digest.update(chunk)
        position += len(chunk)
    return digest.hexdigest()


def _require_regular(state: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise CheckpointError(
            f"{printable(path)}: not a regular file but {_kind(state.st_mode)}",
            remedy="put the file itself in its place",
        )


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe (FIFO)",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a link",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def _real_path_inside(path: Path, root: Path) -> Path:
    real, real_root = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if real.is_relative_to(real_root) or _is_hub_blob(real, real_root):
        return real
    raise CheckpointError(
        f"{printable(path)}: leads out of the checkpoint's folder, to {printable(real)}",
        remedy=f"copy the file itself into {printable(root)}",
    )


def _is_hub_blob(real: Path, real_root: Path) -> bool:
    """Whether a file is what a snapshot's links lead to: a blob of the same repository, or of the store that all share.

    The store, `<cache>/blobs/<2 digits>/<hash>`, has what came over Xet once for all repositories.
    """
    for parent in real_root.parents:
        if parent.name == _HUB_SNAPSHOTS:
            repository = parent.parent
            shared = repository.parent / _HUB_BLOBS / real.name[:2]
            return real.parent == repository / _HUB_BLOBS or (
                real.parent == shared and _HUB_SHARED.fullmatch(real.name) is not None
            )
    return False
