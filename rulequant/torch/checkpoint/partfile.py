"""Files that are complete or absent: written as `.part`, synced, then renamed; disk trouble told in words."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from rulequant.errors import ResumableError
from rulequant.torch.checkpoint.files import MAX_CALL_BYTES, close_read, open_regular, printable, read_into, size_text

__all__ = [
    "PART_SUFFIX",
    "PartFile",
    "copy_file",
    "explained",
    "free_bytes",
    "open_nameless",
    "open_part",
    "sync_file",
    "sync_folder",
    "write_at",
    "write_file",
]

PART_SUFFIX = ".part"

_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
# Less the umask, which the kernel takes off itself: reading it in Python means setting it for all threads.
_MODE = 0o666
_COPY_CHUNK = 1 << 20
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM})
# A file system that cannot sync a folder says so with one of these.
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})


class PartFile:
    """A file that takes its name only when it is complete; until then it is `<name>.part`.

    Leaving the `with` block completes it; an exception removes it.
    """

    def __init__(self, path: Path, nameless: int | None = None) -> None:
        """Create `<path>.part`; one that an earlier run left there goes.

        With the descriptor of a file of `open_nameless`, that file becomes it; the descriptor stays its owner's.
        """
        self.path = path
        self._part = path.with_name(path.name + PART_SUFFIX)
        self._fd: int | None = None
        with explained(path):
            self._part.unlink(missing_ok=True)
            self._fd = os.open(self._part, _CREATE_FLAGS, _MODE) if nameless is None else self._name(nameless)

    def __enter__(self) -> PartFile:
        """The file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish, or discard after an exception."""
        if kind is None:
            self.finish()
        else:
            self.discard()

    def write(self, data: bytes | bytearray | memoryview, offset: int, *, needed: int = 0) -> None:
        """Write all bytes at a byte offset; `needed` is what a message about a full disk says is to come."""
        fd = self._descriptor()
        write_at(fd, data, offset, self.path, needed=needed)

    def truncate(self, size: int) -> None:
        """Take away what lies behind so many bytes."""
        with explained(self.path):
            os.ftruncate(self._descriptor(), size)

    def finish(self) -> None:
        """Bring the bytes to the disk and give the file its name; on failure it is removed."""
        fd = self._descriptor()
        try:
            with explained(self.path):
                os.fsync(fd)
                self._fd = None
                os.close(fd)
                self._part.replace(self.path)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what was written so far; does nothing to a finished file."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with suppress(OSError):
                os.close(fd)
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    def _name(self, nameless: int) -> int:
        # Given a src_dir_fd, of which an absolute path makes no use, Python calls linkat, which can follow the link.
        os.link(f"/proc/self/fd/{nameless}", self._part, src_dir_fd=nameless, follow_symlinks=True)
        return open_part(self.path)

    def _descriptor(self) -> int:
        if self._fd is None:
            raise ValueError(f"{self.path} is finished or was discarded")
        return self._fd


def open_nameless(folder: Path) -> int:
    """The descriptor of a new file in a folder that has no name there, until a `PartFile` gives it one.

    Raises:
        OSError: the file system or the system cannot do that.
    """
    flags = getattr(os, "O_TMPFILE", None)
    if flags is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    return os.open(folder, os.O_RDWR | os.O_CLOEXEC | flags, _MODE)


def open_part(path: Path) -> int:
    """The descriptor of a `PartFile` of this path that exists, maybe in another process, for reading and writing."""
    with explained(path):
        return os.open(path.with_name(path.name + PART_SUFFIX), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def write_at(fd: int, data: bytes | bytearray | memoryview, offset: int, path: Path, *, needed: int = 0) -> None:
    """Write all bytes at a byte offset of an open file; errors call it by its path."""
    view = memoryview(data)
    if not view.nbytes:
        return  # an empty view of more than one dimension cannot be cast
    view = view.cast("B")
    with explained(path, needed=needed or len(view)):
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done : done + MAX_CALL_BYTES], offset + done)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file whole; CheckpointError if it cannot be."""
    with PartFile(path) as file:
        file.write(data, 0)


def copy_file(source: Path, destination: Path, *, root: Path | None = None) -> None:
    """Copy a regular file inside `root` (absent: its folder), making the destination's folder.

    The copy gets its mode from the umask. Links are followed as `open_regular` allows.

    Raises:
        CheckpointError: the source is not a regular file inside `root`, or a read or write fails.
    """
    fd = open_regular(source, root=root or source.parent)
    try:
        with explained(destination):
            destination.parent.mkdir(parents=True, exist_ok=True)
        with PartFile(destination) as copy:
            _copy_bytes(fd, source, copy)
    finally:
        close_read(fd)


def sync_file(path: Path) -> None:
    """Bring the bytes of a file to the disk, whoever wrote them."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        close_read(fd)


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the file system can do that."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        close_read(fd)


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write in the file system of a folder."""
    return shutil.disk_usage(folder).free


@contextmanager
def explained(path: Path, *, needed: int = 0) -> Iterator[None]:
    """Turn an OSError into a ResumableError that says what could not be written, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise _write_error(path, error, needed) from error


def _write_error(path: Path, error: OSError, needed: int) -> ResumableError:
    where = printable(path)
    if error.errno in _NO_SPACE:
        return _no_space(path, needed)
    if error.errno == errno.EFBIG:
        return ResumableError(
            f"{where}: the file would be larger than is allowed here{_size_limit()}",
            remedy="raise the limit (`ulimit -f`), choose another file system, or write smaller shards",
        )
    if error.errno in _NO_PERMISSION:
        return ResumableError(
            f"{where}: no permission to write: {error.strerror}",
            remedy="choose a folder that you may write to, or change its permissions",
        )
    if error.errno == errno.EROFS:
        return ResumableError(
            f"{where}: cannot write: the file system is read-only", remedy="choose a folder elsewhere"
        )
    return ResumableError(f"{where}: cannot write: {error.strerror}", remedy="choose a folder elsewhere")


def _no_space(path: Path, needed: int) -> ResumableError:
    needs = f"needs {size_text(needed)} more, " if needed else ""
    try:
        has = f"the device has {size_text(free_bytes(path.parent))} left"
    except OSError:
        has = "the device has too little left"
    return ResumableError(
        f"no space left on the device for {printable(path)}: {needs}{has}",
        remedy="free some space (or raise the quota), or choose a folder on another device",
    )


def _size_limit() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return "" if limit == resource.RLIM_INFINITY else f" ({limit:,} bytes)"


def _copy_bytes(fd: int, source: Path, copy: PartFile) -> None:
    buffer = memoryview(bytearray(_COPY_CHUNK))
    position, size = 0, os.fstat(fd).st_size
    while position < size:
        chunk = buffer[: size - position]
        read_into(fd, position, chunk, source)
        copy.write(chunk, position, needed=size - position)
        position += len(chunk)
