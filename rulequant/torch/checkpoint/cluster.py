"""Shards written on a cluster: each is a task of Ray, and this process alone gives files their names.

Source and staging folder are on a file system that all machines have under the same path. A task writes into a folder
of its own, so that one that was given up, or that outlives its run, cannot touch what another writes.
"""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rulequant.errors import MissingExtraError, ResumableError, UsageError
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.job import BaseJob
from rulequant.torch.checkpoint.partfile import explained, sync_folder
from rulequant.torch.checkpoint.shards import ShardJob, ShardResult
from rulequant.torch.checkpoint.staging import ATTEMPTS_NAME
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.checkpoint.wire import Failure, failure_of, failure_to_raise

__all__ = ["ClusterExecutor", "on_cluster", "require_ray"]

INSTALL = "pip install 'rulequant[ray]'"
_TOKEN_NAME = "token"  # noqa: S105  by which a machine shows that it sees the same folder
_RETRIES = 3
"""Of a task whose process or machine was lost."""
_SECONDS_TO_ANSWER = 10.0


@dataclass(frozen=True)
class _Task:
    """What a machine is told, beside the shard. Plain data, to be pickled."""

    source: Path
    fingerprint: Mapping[str, Mapping[str, int]]
    attempts: Path
    token: str
    mean_threads: int
    memory: int


def require_ray() -> Any:
    """The module `ray`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("--executor ray needs ray, which is not installed", remedy=INSTALL) from error
    return ray


@contextmanager
def on_cluster(
    job: BaseJob, folder: Path, *, lock: int | None = None, address: str | None = None
) -> Iterator[ClusterExecutor]:
    """Have the shards of a job written by the cluster at an address; None: RAY_ADDRESS, or one made of this machine.

    The `lock` is of no use to tasks: each writes into a folder of its own.

    Raises:
        UsageError: the model is in the memory of this process.
        MissingExtraError: ray is not installed.
        ResumableError: there is no cluster at that address.
    """
    del lock
    if job.source is None:
        raise UsageError(
            f"{printable(job.model)} is in the memory of this process, and a cluster reads files",
            remedy="let the executor be `local`",
        )
    ray = require_ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray, address)
    try:
        yield ClusterExecutor(ray, job, folder)
    finally:
        if is_ours:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    wanted = address or os.environ.get("RAY_ADDRESS")
    try:
        _require_answer(wanted)
        # A new cluster needs no dashboard; one that runs takes no such option.
        options = {} if wanted else {"include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ResumableError(
            f"no Ray cluster answers at {printable(wanted or 'this machine')}: {printable(error)}",
            remedy="start one with `ray start --head`, or give its address as --ray-address HOST:PORT",
        ) from error


def _require_answer(address: str | None) -> None:
    """Knock first, as OSError: Ray itself tries for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()


class ClusterExecutor:
    """A `ShardExecutor` whose tasks run wherever Ray finds room, one core each."""

    def __init__(self, ray: Any, job: BaseJob, folder: Path) -> None:
        """`folder` is where the finished shards go."""
        self._ray, self._job, self._folder = ray, job, folder

    def write(
        self, jobs: Sequence[ShardJob], *, memory: int, done: Callable[[Step], None]
    ) -> Generator[ShardResult, None, None]:
        """Write shards, and give each when it is complete; a task whose process was lost is given out again.

        Raises:
            NotFiniteError: a weight holds a value that its method cannot encode.
            CheckpointError: the source or the disk failed, or a machine does not see the folders.
            ResumableError: a shard's processes were lost again and again.
        """
        task = self._prepare(memory)
        remote = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(_write_shard)
        by_reference = {remote.remote(task, job): job for job in jobs}
        try:
            while by_reference:
                (ready, *_), _ = self._ray.wait(list(by_reference))
                job = by_reference.pop(ready)
                yield self._take(ready, job)
                for step in job.steps:
                    done(step)
        finally:
            for each in by_reference:
                self._ray.cancel(each, force=True)

    def _prepare(self, memory: int) -> _Task:
        attempts, token = self._folder.parent / ATTEMPTS_NAME, uuid.uuid4().hex
        shutil.rmtree(attempts, ignore_errors=True)
        with explained(attempts):
            attempts.mkdir()
            (attempts / _TOKEN_NAME).write_text(token)
        source, fingerprint = cast(Path, self._job.source).absolute(), self._job.fingerprint
        stamps = {name: dict(each) for name, each in fingerprint.items()}
        return _Task(source, stamps, attempts, token, self._job.mean_threads, memory)

    def _take(self, reference: Any, job: ShardJob) -> ShardResult:
        """Give a shard its name, once a task has finished it."""
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise ResumableError(
                f"{printable(job.name)}: Ray could not have it written: {printable(error)}",
                remedy="see that the machines have memory enough (some 300 MB a task), and run again",
            ) from error
        if isinstance(answer, Failure):
            raise failure_to_raise(answer)
        folder, result = cast("tuple[Path, ShardResult]", answer)
        path = self._folder / job.name
        with explained(path):
            path.parent.mkdir(exist_ok=True)
            (folder / job.name).replace(path)
            sync_folder(path.parent)
            shutil.rmtree(folder)
        return result


def _write_shard(task: _Task, job: ShardJob) -> tuple[Path, ShardResult] | Failure:
    """On a machine of the cluster: a shard, in a folder of this attempt alone."""
    from rulequant.torch.checkpoint.local import write_shard

    try:
        _require_shared(task)
        folder = task.attempts / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"
        with explained(folder):
            folder.mkdir()
        try:
            result = write_shard(
                task.source,
                job,
                folder,
                mean_threads=task.mean_threads,
                fingerprint=task.fingerprint,
                memory=task.memory,
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except Exception as error:  # whatever it is, it is told where the command was given
        return failure_of(error)
    return folder, result


def _require_shared(task: _Task) -> None:
    """Refuse a machine that does not see the folders of the run, as ResumableError."""
    seen = None
    with suppress(OSError):
        seen = (task.attempts / _TOKEN_NAME).read_text()
    unseen = None if seen == task.token else task.attempts.parent.parent
    if unseen is None and not task.source.is_dir():
        unseen = task.source
    if unseen is not None:
        raise ResumableError(
            f"the machine {socket.gethostname()} of the cluster does not see {printable(unseen)} as this one does",
            remedy="put model and output on a file system that all machines have under the same path",
        )
