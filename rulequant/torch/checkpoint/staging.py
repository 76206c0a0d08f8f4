"""The folder in which an output is built, out of sight, until one rename makes it appear complete."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from rulequant.errors import CheckpointError, ResumableError, RulequantError
from rulequant.torch.checkpoint.files import close_read, printable, size_text
from rulequant.torch.checkpoint.journal import Journal
from rulequant.torch.checkpoint.partfile import PART_SUFFIX, explained, free_bytes, sync_file, sync_folder
from rulequant.torch.checkpoint.place import check_output
from rulequant.torch.checkpoint.recipe import Recipe
from rulequant.torch.checkpoint.rename import rename_without_replacing
from rulequant.torch.checkpoint.shards import ShardResult

__all__ = ["ATTEMPTS_NAME", "STAGING_SUFFIX", "Staging"]

STAGING_SUFFIX = ".rulequant-staging"
ATTEMPTS_NAME = "attempts"
"""The folder in it for those who write shards elsewhere, each into a folder of its own."""

# Inside the staging folder: the lock is beside the files, so that it is never part of an output.
_LOCK_NAME = "lock"
_FILES_NAME = "checkpoint"
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})
_LOCK_ATTEMPTS = 100
_SECONDS_TO_WAIT = 2.0
"""For a lock that workers of a killed run still hold: they end in a moment."""


class Staging:
    """A hidden folder `.<output>.rulequant-staging` beside the output, locked against a second run.

    Write into `path`, `record` each shard that is finished, then `commit`: the output appears complete, in one step,
    or not at all. What interrupts the `with` block and may be over at the next run leaves the folder with the recorded
    shards, as a kill does, and the error says so; anything else leaves nothing. The next run of the same recipe finds
    the shards in `kept`; one of another recipe removes them after a notice.
    """

    def __init__(
        self,
        output: Path,
        source: Path | None = None,
        needed_bytes: int = 0,
        *,
        recipe: Recipe | None = None,
        shards: int = 0,
        restart: bool = False,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing happens before the `with` block; `notice` is told in words what is taken over or cleared away.

        Without a recipe, or with `restart`, nothing is taken over. `shards` is their number in all, for messages.
        """
        # Absolute, so that a change of the working folder on the way changes nothing.
        self.output = Path(os.path.abspath(output))  # noqa: PTH100 - resolve() would follow a link
        self.folder = self.output.parent / f".{self.output.name}{STAGING_SUFFIX}"
        self.path = self.folder / _FILES_NAME
        self.kept: Mapping[str, ShardResult] = {}
        """Shards by name that are already in `path`, their bytes checked."""
        self._journal = Journal(self.folder, self.path)
        self._source = source
        self._needed_bytes = needed_bytes
        self._recipe = recipe
        self._shards = shards
        self._restart = restart
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
            self._take_over()
            self._check_space()
            self._begin()
        except BaseException as error:
            # Whatever it is: what an earlier run finished is not thrown away for it.
            self._abandon(error, keep=self._holds_work())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the staging folder, or keep what is finished for the next run, and say so.

        Raises:
            ResumableError: the same error, with how to go on.
            KeyboardInterrupt: the same.
        """
        self._abandon(error, keep=_may_be_over(error) and self._holds_work())

    @property
    def lock(self) -> int | None:
        """The descriptor of the lock: as long as any process has a copy of it, no other run gets the folder."""
        return self._lock_fd

    def record(self, result: ShardResult) -> None:
        """Write down that a shard is finished, so that it need not be written again; CheckpointError if that fails."""
        self._journal.add(result)

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
        self._journal.remove()
        try:
            sync_folder(self.output.parent)
        except OSError as error:
            raise CheckpointError(
                f"{printable(self.output)}: complete, but its name could not be brought to the disk: {error.strerror}",
                remedy="before you rely on it, see that it is still there after the system was shut down",
            ) from error

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
            close_read(fd)
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
            except OSError:
                with suppress(OSError):
                    self.folder.rmdir()  # which holds nothing, or stays
                raise

    def _lock(self, fd: int) -> None:
        until = time.monotonic() + _SECONDS_TO_WAIT
        try:
            while not _takes_lock(fd):
                if time.monotonic() >= until:
                    raise self._busy()
                time.sleep(0.02)
        except OSError as error:
            close_read(fd)
            raise CheckpointError(
                f"{printable(self.folder)}: this file system cannot lock a file: {error.strerror}",
                remedy="choose an output on another file system",
            ) from error
        except BaseException:
            close_read(fd)
            raise

    def _busy(self) -> CheckpointError:
        return CheckpointError(
            f"{printable(self.output)}: another rulequant apply is writing it now",
            remedy="wait until that has ended, or choose another output",
        )

    def _take_over(self) -> None:
        """Take what an interrupted run finished, or say why not and remove it."""
        shutil.rmtree(self.folder / ATTEMPTS_NAME, ignore_errors=True)
        if not os.path.lexists(self.path):
            self._journal.remove()
            return
        why_not = self._why_not_taken_over()
        if why_not is None:
            self._check_kept()
            return
        why = f": {why_not}" if why_not else ""
        self._notice(f"removing what an interrupted run left in {printable(self.folder)}{why}")
        self._journal.remove()
        with explained(self.path):
            shutil.rmtree(self.path)

    def _why_not_taken_over(self) -> str | None:
        """None where what is there may be used; otherwise the reason, empty where there is none worth telling."""
        if self._recipe is None or self._restart or not self._journal.names or self.path.is_symlink():
            return ""
        if any(each.lstat().st_uid != os.geteuid() for each in (self.folder, self.path)):
            return "it belongs to another user"
        found = self._journal.found()
        if found is None:
            return "what it was making cannot be read"
        differences = self._recipe.differences(found)
        return f"it was made with {' and '.join(differences)}" if differences else None

    def _check_kept(self) -> None:
        names = self._journal.names
        self._notice(
            f"checking {len(names)} of {self._shards} shards that an interrupted run left in {printable(self.folder)}"
        )
        self.kept = self._journal.take()
        lost = ", ".join(name for name in names if name not in self.kept)
        if lost:
            self._notice(f"written again, since the bytes are not those that were written: {printable(lost)}")

    def _begin(self) -> None:
        with explained(self.path):
            self.path.mkdir(exist_ok=True)
        if self._recipe is not None:
            self._journal.begin(self._recipe)

    def _check_space(self) -> None:
        with explained(self.output):
            free = free_bytes(self.folder)
        needed = self._needed_bytes - sum(each.nbytes for each in self.kept.values())
        if free < needed:
            raise ResumableError(
                f"{printable(self.output)}: not enough space: needs {size_text(needed)}, "
                f"{printable(self.output.parent)} has {size_text(free)} free",
                remedy="free some space, or choose an output on another device",
            )

    def _holds_work(self) -> bool:
        return bool(self._journal.names) and os.path.lexists(self.path)

    def _abandon(self, error: BaseException | None, *, keep: bool) -> None:
        """Leave, and tell how to go on: in the error where its words are ours, otherwise in a notice."""
        kept = len(self._journal.names)
        self._leave(keep=keep)
        if not keep or not _may_be_over(error):
            return
        text = (
            f"{kept} of {self._shards} shards are kept in {printable(self.folder)}: run the same command again to go "
            "on; `--restart` starts over, or remove that folder"
        )
        if isinstance(error, ResumableError):
            raise ResumableError(error.message, remedy=f"{error.remedy or ''}\n  {text}".lstrip()) from error
        if isinstance(error, KeyboardInterrupt):
            raise type(error)(text) from error
        self._notice(text)

    def _leave(self, *, keep: bool) -> None:
        fd, self._lock_fd = self._lock_fd, None
        if fd is None:
            return
        shutil.rmtree(self.folder / ATTEMPTS_NAME, ignore_errors=True)
        if not keep and not self._keep:
            shutil.rmtree(self.path, ignore_errors=True)
            self._journal.remove()
            # While the lock is held: who opened the file meanwhile sees that it is gone, and starts over.
            with suppress(OSError):
                (self.folder / _LOCK_NAME).unlink()
            with suppress(OSError):
                self.folder.rmdir()
        # Not by closing alone: workers that are gone already may have their copies a moment longer.
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)
        close_read(fd)


def _takes_lock(fd: int) -> bool:
    """Whether nobody else has the lock; OSError where there are none."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _may_be_over(error: BaseException | None) -> bool:
    """Whether the same run may get further next time: after all but what is wrong with its arguments or its source."""
    return error is not None and (isinstance(error, ResumableError) or not isinstance(error, RulequantError))


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
