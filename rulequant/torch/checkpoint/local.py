"""Shards written by the process that is asked to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from rulequant.torch.checkpoint.bench import Bench
from rulequant.torch.checkpoint.cutting import DEFAULT_MEMORY, Cutting
from rulequant.torch.checkpoint.job import BaseJob
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.shardfile import Begun, ShardFile
from rulequant.torch.checkpoint.shards import Executor, ShardJob, ShardResult, write_shards
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.checkpoint.units import Result, Unit
from rulequant.torch.checkpoint.work import carry_out
from rulequant.torch.checkpoint.write import OpenExecutor

__all__ = ["InProcess", "in_process", "write_shard"]


class InProcess:
    """An `Executor` that does each unit when it is handed in."""

    syncs = False

    def __init__(self, bench: Bench) -> None:
        """`bench` stays its owner's."""
        self._bench = bench
        self._done: deque[tuple[tuple[ShardFile, int], Result]] = deque()

    def begun(self, cutting: Cutting) -> Begun | None:
        """Nothing."""

    def has_room(self) -> bool:
        """One at a time."""
        return not self._done

    def submit(self, ticket: tuple[ShardFile, int], unit: Unit) -> None:
        """Do it."""
        self._done.append((ticket, carry_out(self._bench, unit)))

    def wait(self) -> tuple[tuple[ShardFile, int], Result]:
        """The result of the last."""
        return self._done.popleft()


def in_process(reader: CheckpointReader) -> OpenExecutor:
    """Have the units of a job carried out here, by a reader that is its owner's."""

    @contextmanager
    def open_executor(job: BaseJob, folder: Path, *, lock: int | None = None) -> Iterator[Executor]:
        del lock  # this process has it
        with closing(Bench(reader, folder, mean_threads=job.mean_threads)) as bench:
            yield InProcess(bench)

    return open_executor


def write_shard(
    source: Path,
    job: ShardJob,
    folder: Path,
    *,
    mean_threads: int,
    fingerprint: Mapping[str, Mapping[str, int]] | None = None,
    memory: int = DEFAULT_MEMORY,
    done: Callable[[Step], None] = lambda _: None,
) -> ShardResult:
    """Write one shard, in a process that need know nothing else of the checkpoint.

    `mean_threads` is that of `Bench`. A source that is not as the `fingerprint` of `CheckpointReader` says is refused.
    `done` is called after each step.

    Raises:
        NotFiniteError: a weight holds a value that its method cannot encode.
        CheckpointError: the source or the disk failed.
    """
    with (
        CheckpointReader.attach(source, fingerprint or {}) as reader,
        closing(Bench(reader, folder, mean_threads=mean_threads)) as bench,
    ):
        (result,) = write_shards([job], folder, InProcess(bench), memory=memory, done=done)
    return result
