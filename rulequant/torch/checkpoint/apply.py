"""From a checkpoint folder, or that of a pipeline, to a quantized one: the job prepared in this process, and done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rulequant.containers import ContainerName
from rulequant.pipeline_plan import PipelinePlan
from rulequant.plan import Plan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.crew import Crew, memory_of_each, worthwhile_workers
from rulequant.torch.checkpoint.finish import Applied
from rulequant.torch.checkpoint.footprint import Footprint
from rulequant.torch.checkpoint.job import DEFAULT_SHARD_BYTES, BaseJob
from rulequant.torch.checkpoint.local import in_process
from rulequant.torch.checkpoint.pipeline_prepare import prepare_pipeline
from rulequant.torch.checkpoint.place import check_output
from rulequant.torch.checkpoint.prepare import prepare
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.sources import source_of
from rulequant.torch.checkpoint.write import OpenExecutor, Progress, write_output
from rulequant.torch.pipeline import Pipeline
from rulequant.torch.skeleton import Skeleton

__all__ = ["apply_pipeline", "apply_to_folder", "open_workers"]


def apply_to_folder(
    skeleton: Skeleton,
    rules: RuleSet | Plan,
    output: Path,
    *,
    made_with: RuleSet | None = None,
    container: ContainerName = "auto",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    restart: bool = False,
    workers: int = 1,
    memory: int | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Applied:
    """Quantize the skeleton's checkpoint folder, or its weights in memory, into `output`, which must not exist.

    The source is only read. With more than one of `workers`, those are processes of their own, if the checkpoint is
    large enough for it; `memory` is what they may take in all for what they read, encode and write.

    Nothing appears under `output` before all of it is complete and on the disk. Beside the checkpoint it gets the plan,
    the rules and a README.md; where a plan is given, `made_with` are its rules, if they are to be kept too. Shards that
    an interrupted run of the same finished are taken over, unless `restart`.

    Raises:
        DiagnosticsError: the rules do not fit the model, or no checkpoint can express the plan.
        CheckpointError: the source cannot be trusted, or the output cannot be written.
        ResumableError: the same, where the next run can go on with the shards that are finished.
        NotFiniteError: a weight holds a value that cannot be encoded.
        ModelError: the model has no weights.
        UsageError: the plan is for another model, or was not made with those rules; or the memory is too little.
    """
    source = source_of(skeleton)
    check_output(output, source.folder)
    job = prepare(skeleton, source, rules, made_with=made_with, container=container, max_shard_bytes=max_shard_bytes)
    each = memory_of_each(memory, workers)
    with source.attach(job.fingerprint) as reader, open_workers(job, reader, workers) as (open_executor, _):
        return write_output(
            job, reader, output, open_executor, memory=each, restart=restart, progress=progress, notice=notice
        )


def apply_pipeline(
    pipeline: Pipeline,
    rules: RuleSet | PipelinePlan,
    output: Path,
    *,
    container: ContainerName = "auto",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    restart: bool = False,
    workers: int = 1,
    memory: int | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Applied:
    """As `apply_to_folder`: quantize the components that the rules name, and copy the rest.

    Raises as `apply_to_folder`.
    """
    check_output(output, pipeline.folder)
    job = prepare_pipeline(pipeline, rules, container=container, max_shard_bytes=max_shard_bytes)
    each = memory_of_each(memory, workers)
    with pipeline.attach(job.fingerprint) as reader, open_workers(job, reader, workers) as (open_executor, _):
        return write_output(
            job, reader, output, open_executor, memory=each, restart=restart, progress=progress, notice=notice
        )


@contextmanager
def open_workers(job: BaseJob, reader: CheckpointReader, workers: int) -> Iterator[tuple[OpenExecutor, Footprint]]:
    """Who carries out the units of a job, and the memory that they take: this process, or several others."""
    count = worthwhile_workers(job, workers)
    if count == 1 or job.source is None:  # what is in this memory no other process reads
        yield in_process(reader), Footprint([os.getpid()])
        return
    with Crew(count, torch=job.takes_torch) as crew:
        yield crew.executor, crew.footprint
