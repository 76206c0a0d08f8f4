"""Output shards as jobs of their own: which steps go into which file, and files written from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from rulequant.torch.checkpoint.cutting import DEFAULT_MEMORY, Cutting
from rulequant.torch.checkpoint.layout import MODEL_STEM
from rulequant.torch.checkpoint.partfile import explained
from rulequant.torch.checkpoint.shardfile import Begun, ShardFile
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.checkpoint.units import Result, Unit
from rulequant.torch.checkpoint.writer import plan_shards, shard_names

__all__ = ["Executor", "ShardExecutor", "ShardJob", "ShardResult", "plan_jobs", "write_shards"]

_FILES_AT_A_TIME = 2
"""While one waits for its end, workers go on with the next."""


@dataclass(frozen=True)
class ShardJob:
    """One file of the output, and the steps whose tensors it holds, in order. Plain data, to be pickled."""

    name: str
    """Its path in the output, which is a name alone save for a pipeline."""
    steps: tuple[Step, ...]

    @property
    def source_bytes(self) -> int:
        """Bytes that are read for it."""
        return sum(step.source_bytes for step in self.steps)

    @property
    def work_bytes(self) -> int:
        """Bytes that its file takes beyond those of its tensors, until it is complete."""
        return sum(step.slicing.work_bytes for step in self.steps if step.slicing)


@dataclass(frozen=True)
class ShardResult:
    """What a shard holds once it is on the disk."""

    name: str
    tensors: Mapping[str, int]
    """Bytes by tensor name, in the order of the file."""
    size: int
    """Bytes of the file."""
    sha256: str
    crc32: Mapping[str, str] = field(default_factory=dict)
    """Of the tensors, in the order of the file."""
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The fields of the `Sample` of each weight that was measured while it was encoded."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without the header."""
        return sum(self.tensors.values())

    @property
    def payload_bytes(self) -> int:
        """The same without the JSON records of 4-bit tensors."""
        return sum(size for name, size in self.tensors.items() if ".quant_state." not in name)


class Executor(Protocol):
    """Who carries out units: this process, or several others."""

    syncs: bool
    """Whether it can sync a file while it does something else."""

    def begun(self, cutting: Cutting) -> Begun | None:
        """What was written of a file before it was asked for, if anything."""

    def has_room(self) -> bool:
        """Whether a unit may be handed in now."""

    def submit(self, ticket: tuple[ShardFile, int], unit: Unit) -> None:
        """Hand a unit in, with a ticket that comes back with its result."""

    def wait(self) -> tuple[tuple[ShardFile, int], Result]:
        """The next result, of any unit.

        Raises:
            NotFiniteError: a weight holds a value that its method cannot encode.
            CheckpointError: the source or the disk failed.
        """


@runtime_checkable
class ShardExecutor(Protocol):
    """Who writes whole shards, elsewhere."""

    def write(
        self, jobs: Sequence[ShardJob], *, memory: int, done: Callable[[Step], None]
    ) -> Generator[ShardResult, None, None]:
        """Write shards, and give each as it is complete and on the disk; as `write_shards`."""


def plan_jobs(steps: Sequence[Step], max_shard_bytes: int, stem: str = MODEL_STEM) -> list[ShardJob]:
    """Consecutive steps grouped into shards of at most so many bytes, save for a single larger tensor.

    `stem` is what the names of the shards begin with.
    """
    by_key = {step.key: step for step in steps}
    groups = plan_shards(((step.key, step.nbytes) for step in steps), max_shard_bytes)
    names = shard_names(len(groups), stem)
    return [ShardJob(name, tuple(by_key[key] for key in group)) for name, group in zip(names, groups, strict=True)]


def write_shards(
    jobs: Sequence[ShardJob],
    folder: Path,
    executor: Executor,
    *,
    memory: int = DEFAULT_MEMORY,
    done: Callable[[Step], None] = lambda _: None,
) -> Generator[ShardResult, None, None]:
    """Write shards into a folder, and give each as it is complete and on the disk; the bytes do not depend on who does.

    `memory` is what a unit may take. `done` is called after each step. What is not complete when the caller stops, or
    when something is raised, is removed.

    Raises:
        NotFiniteError: a weight holds a value that its method cannot encode.
        CheckpointError: the source or the disk failed.
        UsageError: a row of a weight takes more memory than that.
    """
    schedule = _Schedule(jobs, folder, executor, memory, done)
    try:
        while schedule.is_busy:
            while executor.has_room() and (unit := schedule.next_unit()) is not None:
                executor.submit(unit[:2], unit[2])
            complete = schedule.take(*executor.wait())
            if complete is not None:
                yield complete
    finally:
        schedule.abort()


class _Schedule:
    """The files that are being written, and those that are to come."""

    def __init__(
        self,
        jobs: Sequence[ShardJob],
        folder: Path,
        executor: Executor,
        memory: int,
        done: Callable[[Step], None],
    ) -> None:
        self._waiting, self._files = deque(jobs), list[ShardFile]()
        self._folder, self._memory, self._done = folder, memory, done
        self._sync, self._begun = executor.syncs, executor.begun

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting or self._files)

    def next_unit(self) -> tuple[ShardFile, int, Unit] | None:
        """A unit that may be done now, of the oldest file that has one; None until a result is taken."""
        for file in self._files:
            if (found := file.next_unit()) is not None:
                return (file, *found)
        if not self._waiting or len(self._files) == _FILES_AT_A_TIME:
            return None
        job = self._waiting.popleft()
        with explained(self._folder / job.name):
            (self._folder / job.name).parent.mkdir(exist_ok=True)
        cutting = Cutting(job.name, job.steps, self._memory)
        self._files.append(ShardFile(self._folder, cutting, sync=self._sync, begun=self._begun(cutting)))
        for step in self._files[-1].done_at_once:
            self._done(step)
        return self.next_unit()

    def take(self, ticket: tuple[ShardFile, int], result: Result) -> ShardResult | None:
        """Take a result in; returns the shard that is complete by it."""
        file, number = ticket
        step = file.take(number, result)
        if step is not None:
            self._done(step)
        if not file.is_complete:
            return None
        self._files.remove(file)
        tensors, digest = file.close()
        return ShardResult(file.name, tensors, *digest, file.samples)

    def abort(self) -> None:
        for file in self._files:
            file.abort()
