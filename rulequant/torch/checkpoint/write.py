"""A job carried out: written into a staging folder, which is renamed into place when all of it is on the disk.

Nothing here imports torch or transformers; who carries out the units of the job does, or does not.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from rulequant.plan import Plan
from rulequant.torch.checkpoint.job import Job
from rulequant.torch.checkpoint.manifest import FileRecord, stock_versions, write_manifest
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.records import PLAN_NAME, RULES_NAME, write_card, write_plan, write_rules
from rulequant.torch.checkpoint.shards import Executor, ShardExecutor, ShardJob, ShardResult, write_shards
from rulequant.torch.checkpoint.sidefiles import copy_side_files, write_config
from rulequant.torch.checkpoint.staging import Staging
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.checkpoint.writer import write_index
from rulequant.verification import Sample

__all__ = ["Applied", "OpenExecutor", "Progress", "check_ties", "needed_bytes", "write_model", "write_output"]

_SPARE_BYTES = 16 << 20
"""For headers, config and side files, beside the tensors."""


class OpenExecutor(Protocol):
    """Who carries out the units of a job, or writes its shards, for files in a folder."""

    def __call__(
        self, job: Job, folder: Path, *, lock: int | None = None
    ) -> AbstractContextManager[Executor | ShardExecutor]:
        """`lock` is the descriptor of the lock on the folder; other processes that write into it hold a copy."""


class Progress(Protocol):
    """Told how far a run is."""

    def start(self, total_bytes: int, tensors: int) -> None:
        """The source bytes to read in all, and the number of tensors."""

    def advance(self, tensor: str, nbytes: int) -> None:
        """A source tensor is done."""


@dataclass(frozen=True)
class Applied:
    """What a run wrote."""

    plan: Plan
    output: Path
    container: str = ""
    """The `quant_method` of its config.json."""
    library: str = "transformers"
    """What loads it: transformers, diffusers, or rulequant."""
    tensors: int = 0
    bytes_written: int = 0
    """Bytes of all tensors in the output, the JSON records of 4-bit tensors included."""
    payload_bytes: int = 0
    """The same without those records: what the plan promises as `bytes_after`."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    weight_map: dict[str, str] = field(default_factory=dict)
    records: Mapping[str, FileRecord] = field(default_factory=dict)
    """Size and checksums of each shard."""
    samples: Mapping[str, Sample] = field(default_factory=dict)
    """How far values of weights are from the original, by module (of fused experts by parameter), worst first.

    They were measured while encoding, on a few values of each, and only where the method does so.
    """


def write_output(
    job: Job,
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
    check_ties(job, reader)
    with Staging(
        output,
        job.source,
        needed_bytes(job) + _SPARE_BYTES,
        recipe=job.recipe,
        shards=len(job.shards),
        restart=restart,
        notice=notice,
    ) as stage:
        applied = write_model(
            job,
            stage.path,
            partial(open_executor, lock=stage.lock),
            memory=memory,
            kept=stage.kept,
            record=stage.record,
            progress=progress,
        )
        applied = replace(applied, output=output)
        reader.check_unchanged()
        write_manifest(
            stage.path,
            source=job.fingerprint,
            rules_sha256=job.plan.rules_sha256,
            plan_sha256=job.plan.sha256,
            versions=stock_versions(),
            base_model=job.origin.to_dict() if job.origin else None,
            known=applied.records,
        )
        stage.commit()
    return applied


def write_model(
    job: Job,
    folder: Path,
    open_executor: OpenExecutor,
    *,
    memory: int,
    kept: Mapping[str, ShardResult] = MappingProxyType({}),
    record: Callable[[ShardResult], None] = lambda _: None,
    progress: Progress | None = None,
    card: bool = True,
) -> Applied:
    """Write the model of a job, and what belongs beside it, into a folder that is not an output yet.

    `kept` are the shards that it has already; `record` is told of each that is finished. Raises as `write_output`.
    """
    shards = _write_shards(job, folder, open_executor, memory, kept, record, progress)
    applied = _applied(job, folder, shards)
    _write_beside(job, applied, folder, card=card)
    return applied


def check_ties(job: Job, reader: CheckpointReader) -> None:
    """Refuse a source whose tied weights differ, as CheckpointError: one copy is written."""
    if job.copies:
        from rulequant.torch.checkpoint.copies import check_copies  # start-up: it takes numpy, and few have any

        check_copies(reader, job.copies)


def needed_bytes(job: Job) -> int:
    """Bytes of the disk for the tensors: the output, and beyond it what the files that are being written take."""
    work = sorted(shard.work_bytes for shard in job.shards)
    return sum(step.nbytes for shard in job.shards for step in shard.steps) + sum(work[-2:])


def _write_shards(
    job: Job,
    folder: Path,
    open_executor: OpenExecutor,
    memory: int,
    kept: Mapping[str, ShardResult],
    record: Callable[[ShardResult], None],
    progress: Progress | None,
) -> list[ShardResult]:
    found = dict(kept)
    missing = [shard for shard in job.shards if shard.name not in found]
    if progress:
        progress.start(sum(shard.source_bytes for shard in missing), sum(len(shard.steps) for shard in missing))

    def done(step: Step) -> None:
        if progress:
            progress.advance(step.key, step.source_bytes)

    with (
        open_executor(job, folder) as executor,
        closing(_results(executor, missing, folder, memory, done)) as results,
    ):
        for result in results:
            record(result)
            found[result.name] = result
    ordered = [found[shard.name] for shard in job.shards]
    if len(ordered) > 1:
        weight_map = {name: result.name for result in ordered for name in result.tensors}
        write_index(folder, weight_map, total_size=sum(result.nbytes for result in ordered), stem=job.stem)
    return ordered


def _results(
    executor: Executor | ShardExecutor, jobs: list[ShardJob], folder: Path, memory: int, done: Callable[[Step], None]
) -> Generator[ShardResult, None, None]:
    if isinstance(executor, ShardExecutor):
        return executor.write(jobs, memory=memory, done=done)
    return write_shards(jobs, folder, executor, memory=memory, done=done)


def _applied(job: Job, output: Path, shards: list[ShardResult]) -> Applied:
    return Applied(
        job.plan,
        output,
        container=job.quant_method,
        library=job.library,
        tensors=sum(len(shard.tensors) for shard in shards),
        bytes_written=sum(shard.nbytes for shard in shards),
        payload_bytes=sum(shard.payload_bytes for shard in shards),
        dropped=job.dropped,
        weight_map={name: shard.name for shard in shards for name in shard.tensors},
        records={shard.name: FileRecord(shard.size, shard.sha256, shard.crc32) for shard in shards},
        samples=_samples(shards),
    )


def _samples(shards: list[ShardResult]) -> dict[str, Sample]:
    found = {name: Sample(each[0], each[1], int(each[2])) for shard in shards for name, each in shard.samples.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1].relative_error))


def _write_beside(job: Job, applied: Applied, folder: Path, *, card: bool) -> None:
    """What the source has beside its weights; and what the output is made of, and how to make it again."""
    if job.source is not None and job.config is not None:
        copy_side_files(job.source, folder)
        # The config of a model of diffusers says no dtype: whoever loads it does.
        dtype = job.dtype if job.library == "transformers" else None
        write_config(dict(job.config), dict(job.quantization), dtype, folder)
    write_plan(job.plan, folder)
    if job.rules is not None:
        write_rules(job.rules, folder)
    if not card:
        return
    what = RULES_NAME if job.rules is not None else f"--plan {PLAN_NAME}"
    option = "" if job.asked == "auto" else f" --container {job.asked}"
    write_card(
        job.source,
        folder,
        job.plan,
        container=applied.container,
        dtype=job.dtype,
        bytes_written=applied.bytes_written,
        command=f"rulequant apply {job.model} {what} -o OUTPUT{option}",
        origin=job.origin,
        library=job.library,
        loading=job.loading,
        model_class=job.model_class,
    )
