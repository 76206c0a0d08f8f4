"""From a checkpoint folder to a quantized one, in this process: the job prepared, and carried out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rulequant.containers import ContainerName
from rulequant.plan import Plan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.job import DEFAULT_SHARD_BYTES
from rulequant.torch.checkpoint.local import in_process
from rulequant.torch.checkpoint.place import check_output
from rulequant.torch.checkpoint.prepare import prepare
from rulequant.torch.checkpoint.shardfile import DEFAULT_MEMORY
from rulequant.torch.checkpoint.sources import source_of
from rulequant.torch.checkpoint.write import Applied, OpenExecutor, Progress, write_output
from rulequant.torch.skeleton import Skeleton

__all__ = ["apply_to_folder"]


def apply_to_folder(
    skeleton: Skeleton,
    rules: RuleSet | Plan,
    output: Path,
    *,
    made_with: RuleSet | None = None,
    container: ContainerName = "auto",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    restart: bool = False,
    open_executor: OpenExecutor | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: Progress | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Applied:
    """Quantize the skeleton's checkpoint folder, or its weights in memory, into `output`, which must not exist.

    The source is only read. `open_executor` says who reads, encodes and writes; by default this process does.

    Nothing appears under `output` before all of it is complete and on the disk. Beside the checkpoint it gets the plan,
    the rules and a README.md; where a plan is given, `made_with` are its rules, if they are to be kept too. Shards that
    an interrupted run of the same finished are taken over, unless `restart`.

    Raises:
        DiagnosticsError: the rules do not fit the model, or no checkpoint can express the plan.
        CheckpointError: the source cannot be trusted, or the output cannot be written.
        ResumableError: the same, where the next run can go on with the shards that are finished.
        NotFiniteError: a weight holds a value that cannot be encoded.
        ModelError: the model has no weights.
        UsageError: the plan is for another model, or was not made with those rules.
    """
    source = source_of(skeleton)
    check_output(output, source.folder)
    job = prepare(skeleton, source, rules, made_with=made_with, container=container, max_shard_bytes=max_shard_bytes)
    with source.attach(job.fingerprint) as reader:
        chosen = open_executor or in_process(reader)
        return write_output(
            job, reader, output, chosen, memory=memory, restart=restart, progress=progress, notice=notice
        )
