"""The folder in which an output is built, out of sight, until one rename makes it appear complete."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import printable, size_text
from rulequant.torch.checkpoint.partfile import PART_SUFFIX, explained, free_bytes, sync_file, sync_folder

__all__ = ["STAGING_SUFFIX", "Staging", "check_output", "rename_without_replacing"]

STAGING_SUFFIX = ".rulequant-staging"

# Inside the staging folder: the lock is beside the files, so that it is never part of an output.
_LOCK_NAME = "lock"
_FILES_NAME = "checkpoint"
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
# What the kernel or a file system without RENAME_NOREPLACE answers.
_NO_RENAMEAT2 = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM})
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})
_LOCK_ATTEMPTS = 100


def check_output(output: Path, source: Path | None = None) -> None:
    """Refuse an output that exists, has no writable folder to be in, or overlaps with the source.

    Raises:
        CheckpointError: saying which, and what to choose instead.
    """
    _refuse_overlap(output, source)
    where = printable(output)
    if os.path.lexists(output):
        raise CheckpointError(
            f"{where}: the output already exists; nothing is ever replaced",
            remedy="choose another output, or remove this one first",
        )
    parent = output.parent
    if not parent.is_dir():
        raise CheckpointError(
            f"{where}: {printable(parent)} is not a folder, so the output cannot be made in it",
            remedy="make that folder first, or choose another output",
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"{where}: no permission to write in {printable(parent)}",
            remedy="choose a folder that you may write to, or change its permissions",
        )


class Staging:
    """A hidden folder `.<output>.rulequant-staging` beside the output, locked against a second run.

    Write into `path`, then `commit`: the output appears complete, in one step, or not at all. Leaving the
    `with` block without a commit removes everything. A killed process leaves the hidden folder, which the
    next run for the same output removes after a notice.
    """

    def __init__(
        self,
        output: Path,
        source: Path | None = None,
        needed_bytes: int = 0,
        *,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing happens before the `with` block; `notice` is told in words what is cleared away."""
        # Absolute, so that a change of the working folder on the way changes nothing.
        self.output = Path(os.path.abspath(output))  # noqa: PTH100 - resolve() would follow a link
        self.folder = self.output.parent / f".{self.output.name}{STAGING_SUFFIX}"
        self.path = self.folder / _FILES_NAME
        self._source = source
        self._needed_bytes = needed_bytes
        self._notice = notice
        self._lock_fd: int | None = None
        self._keep = False

    def __enter__(self) -> Staging:
        """Check the output, take the lock, check the space, and make the folder.

        Raises:
            CheckpointError: as `check_output`; or another run holds the lock, or the space is too small.
        """
        check_output(self.output, self._source)
        self._lock_fd = self._take_lock()
        try:
            check_output(self.output)  # the run that held the lock a moment ago may have made it
            self._remove_stale()
            self._check_space()
            with explained(self.path):
                self.path.mkdir()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the staging folder, and with it whatever was not committed."""
        self._leave()

    def commit(self) -> None:
        """Bring all names to the disk and rename the folder to the output, replacing nothing.

        Raises:
            CheckpointError: the output has appeared meanwhile (the finished files are then kept in the
                staging folder, and the message says where), or the rename fails.
            RuntimeError: a file is still being written (the caller's mistake).
        """
        with explained(self.output):
            _sync_tree(self.path)
            try:
                rename_without_replacing(self.path, self.output)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                self._keep = True
                raise self._taken() from error
            sync_folder(self.output.parent)

    def _taken(self) -> CheckpointError:
        return CheckpointError(
            f"{printable(self.output)}: appeared while rulequant was writing, and is not replaced",
            remedy=f"the finished checkpoint is in {printable(self.path)}: move it where you want it",
        )

    def _take_lock(self) -> int:
        path = self.folder / _LOCK_NAME
        for _ in range(_LOCK_ATTEMPTS):
            fd = self._open_lock(path)
            if fd is None:
                continue
            self._lock(fd)
            if _is_same_file(fd, path):
                return fd
            # The run that held it has just ended, and took the folder with it.
            os.close(fd)
        raise self._busy()

    def _open_lock(self, path: Path) -> int | None:
        with explained(self.folder):
            with suppress(FileExistsError):
                self.folder.mkdir()
            try:
                _require_own_folder(self.folder)
                return os.open(path, _LOCK_FLAGS, 0o666)
            except FileNotFoundError:
                return None  # the folder went away with the run that held it

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(fd)
            raise self._busy() from error
        except OSError as error:
            os.close(fd)
            raise CheckpointError(
                f"{printable(self.folder)}: this file system cannot lock a file: {error.strerror}",
                remedy="choose an output on another file system",
            ) from error

    def _busy(self) -> CheckpointError:
        return CheckpointError(
            f"{printable(self.output)}: another rulequant apply is writing it now",
            remedy="wait until that has ended, or choose another output",
        )

    def _remove_stale(self) -> None:
        if not os.path.lexists(self.path):
            return
        self._notice(f"removing what an interrupted run left in {printable(self.folder)}")
        with explained(self.path):
            shutil.rmtree(self.path)

    def _check_space(self) -> None:
        with explained(self.output):
            free = free_bytes(self.folder)
        if free < self._needed_bytes:
            raise CheckpointError(
                f"{printable(self.output)}: not enough space: needs {size_text(self._needed_bytes)}, "
                f"{printable(self.output.parent)} has {size_text(free)} free",
                remedy="free some space, or choose an output on another device",
            )

    def _leave(self) -> None:
        fd, self._lock_fd = self._lock_fd, None
        if fd is None:
            return
        if not self._keep:
            shutil.rmtree(self.path, ignore_errors=True)
            # While the lock is held: who opened the file meanwhile sees that it is gone, and starts over.
            with suppress(OSError):
                (self.folder / _LOCK_NAME).unlink()
            with suppress(OSError):
                self.folder.rmdir()
        os.close(fd)


def rename_without_replacing(source: Path, destination: Path) -> None:
    """Rename a folder; OSError (EEXIST, ENOTEMPTY or ENOTDIR) where the destination exists.

    Where the system cannot do both in one step, an empty folder made in that instant would be replaced.
    """
    if _renameat2(source, destination):
        return
    if os.path.lexists(destination):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination))
    source.rename(destination)


def _renameat2(source: Path, destination: Path) -> bool:
    """Whether the kernel renamed; False where it cannot do so without replacing."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    paths = os.fsencode(source), os.fsencode(destination)
    if function(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(_RENAME_NOREPLACE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_RENAMEAT2:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(destination))


def _refuse_overlap(output: Path, source: Path | None) -> None:
    if source is None or not os.path.lexists(source):
        return
    # Only what exists can be the same file; so the output is placed by its folder's real path.
    real_output = Path(os.path.realpath(output.parent)) / output.name
    real_source = Path(os.path.realpath(source))
    if _is_within(real_output, real_source):
        relation = "is the source itself" if _is_same(real_output, real_source) else "lies inside the source"
    elif _is_within(real_source, Path(os.path.realpath(output))):
        relation = "contains the source"
    else:
        return
    raise CheckpointError(
        f"{printable(output)}: the output {relation}, {printable(source)}, which is never written to",
        remedy="choose an output outside of the source",
    )


def _is_within(path: Path, folder: Path) -> bool:
    return any(_is_same(each, folder) for each in (path, *path.parents))


def _is_same(first: Path, second: Path) -> bool:
    # samefile, because one folder can have two names: bind mounts, file systems that ignore case.
    if first == second:
        return True
    try:
        return first.samefile(second)
    except OSError:
        return False


def _require_own_folder(folder: Path) -> None:
    # In a folder that others can write to, a link could aim the removal of stale files anywhere.
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise CheckpointError(
            f"{printable(folder)}: not a folder, though rulequant builds its output under that name",
            remedy="find out who put it there, and remove it",
        )


def _sync_tree(root: Path) -> None:
    """Bring every file and folder to the disk: not all were written by `PartFile`, which syncs its own."""
    for folder, _, names in os.walk(root, topdown=False):
        for path in (Path(folder, name) for name in names):
            if path.name.endswith(PART_SUFFIX):
                raise RuntimeError(f"{path.name} was not finished")
            sync_file(path)
        sync_folder(Path(folder))


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False
