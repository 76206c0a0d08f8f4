"""A job carried out: written into a staging folder, which is renamed into place when all of it is on the disk.

Nothing here imports torch or transformers; who carries out the units of the job does, or does not.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from rulequant.torch.checkpoint.finish import Applied, finish_model
from rulequant.torch.checkpoint.job import BaseJob, Job
from rulequant.torch.checkpoint.manifest import write_manifest
from rulequant.torch.checkpoint.pipeline import finish_pipeline
from rulequant.torch.checkpoint.pipeline_job import PipelineJob
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.shards import Executor, ShardExecutor, ShardJob, ShardResult, write_shards
from rulequant.torch.checkpoint.staging import Staging
from rulequant.torch.checkpoint.step import Step

__all__ = ["Applied", "OpenExecutor", "Progress", "write_output"]

_SPARE_BYTES = 16 << 20
"""For headers, config and side files, beside the tensors."""


class OpenExecutor(Protocol):
    """Who carries out the units of a job, or writes its shards, for files in a folder."""

    def __call__(
        self, job: BaseJob, folder: Path, *, lock: int | None = None
    ) -> AbstractContextManager[Executor | ShardExecutor]:
        """`lock` is the descriptor of the lock on the folder; other processes that write into it hold a copy."""


class Progress(Protocol):
    """Told how far a run is."""

    def start(self, total_bytes: int, tensors: int) -> None:
        """The source bytes to read in all, and the number of tensors."""

    def advance(self, tensor: str, nbytes: int) -> None:
        """A source tensor is done."""


def write_output(
    job: Job | PipelineJob,
    reader: CheckpointReader,
    output: Path,
    open_executor: OpenExecutor,
    *,
    memory: int,
    restart: bool = False,
    progress: Progress | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Applied:
    """Write the output of a job, which must not exist; the source is only read. `memory` is what a unit may take.

    `reader` has the source open since the job was made, or since it is known to be that source.

    Shards that an interrupted run of the same finished are taken over, unless `restart`.

    Raises:
        CheckpointError: the source cannot be trusted, or the output cannot be written.
        ResumableError: the same, where the next run can go on with the shards that are finished.
        NotFiniteError: a weight holds a value that cannot be encoded.
        UsageError: the memory is too little for a row of a weight.
    """
    _check_ties(job, reader)
    with Staging(
        output,
        job.source,
        _needed_bytes(job) + _SPARE_BYTES,
        recipe=job.recipe,
        shards=len(job.shards),
        restart=restart,
        notice=notice,
    ) as stage:
        shards = _write_shards(job, stage, open_executor, memory, progress)
        if isinstance(job, PipelineJob):
            applied: Applied = finish_pipeline(job, shards, stage.path, notice=notice)
        else:
            applied = finish_model(job, shards, stage.path)
        reader.check_unchanged()
        write_manifest(
            stage.path,
            source=job.fingerprint,
            rules_sha256=job.plan.rules_sha256,
            plan_sha256=job.plan.sha256,
            versions=job.recipe.versions,
            base_model=job.origin.to_dict() if job.origin else None,
            known=applied.records,
        )
        stage.commit()
    return replace(applied, output=output)


def _check_ties(job: BaseJob, reader: CheckpointReader) -> None:
    """Refuse a source whose tied weights differ, as CheckpointError: one copy is written."""
    if job.copies:
        from rulequant.torch.checkpoint.copies import check_copies  # start-up: it takes numpy, and few have any

        check_copies(reader, job.copies)


def _needed_bytes(job: BaseJob) -> int:
    """Bytes of the disk for the tensors: the output, and beyond it what the files that are being written take."""
    work = sorted(shard.work_bytes for shard in job.shards)
    return sum(step.nbytes for shard in job.shards for step in shard.steps) + sum(work[-2:]) + job.copied_bytes


def _write_shards(
    job: BaseJob, stage: Staging, open_executor: OpenExecutor, memory: int, progress: Progress | None
) -> list[ShardResult]:
    """Write the shards that the staging folder lacks; all of them, in the order of the job."""
    found = dict(stage.kept)
    missing = [shard for shard in job.shards if shard.name not in found]
    if progress:
        progress.start(sum(shard.source_bytes for shard in missing), sum(len(shard.steps) for shard in missing))

    def done(step: Step) -> None:
        if progress:
            progress.advance(step.key, step.source_bytes)

    with (
        open_executor(job, stage.path, lock=stage.lock) as executor,
        closing(_results(executor, missing, stage.path, memory, done)) as results,
    ):
        for result in results:
            stage.record(result)
            found[result.name] = result
    return [found[shard.name] for shard in job.shards]


def _results(
    executor: Executor | ShardExecutor, jobs: list[ShardJob], folder: Path, memory: int, done: Callable[[Step], None]
) -> Generator[ShardResult, None, None]:
    if isinstance(executor, ShardExecutor):
        return executor.write(jobs, memory=memory, done=done)
    return write_shards(jobs, folder, executor, memory=memory, done=done)
