"""What an output has beside its shards, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rulequant.plan import Plan
from rulequant.torch.checkpoint.job import Job
from rulequant.torch.checkpoint.manifest import FileRecord
from rulequant.torch.checkpoint.records import PLAN_NAME, RULES_NAME, write_card, write_plan, write_rules
from rulequant.torch.checkpoint.shards import ShardResult
from rulequant.torch.checkpoint.sidefiles import copy_side_files, without_code, write_config
from rulequant.torch.checkpoint.writer import write_index
from rulequant.verification import Sample

__all__ = ["Applied", "finish_model", "worst_first"]


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


def finish_model(job: Job, shards: Sequence[ShardResult], folder: Path, *, card: bool = True) -> Applied:
    """Write what belongs beside the shards of a model into a folder that is not an output yet."""
    if len(shards) > 1:
        weight_map = {name: each.name for each in shards for name in each.tensors}
        write_index(folder, weight_map, total_size=sum(each.nbytes for each in shards), stem=job.stem)
    applied = _applied(job, folder, shards)
    _write_beside(job, applied, folder, card=card)
    return applied


def worst_first(samples: Mapping[str, Sample]) -> dict[str, Sample]:
    """Samples by the error that they show, the largest first."""
    return dict(sorted(samples.items(), key=lambda item: -item[1].relative_error))


def _applied(job: Job, output: Path, shards: Sequence[ShardResult]) -> Applied:
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


def _samples(shards: Sequence[ShardResult]) -> dict[str, Sample]:
    found = {name: Sample(each[0], each[1], int(each[2])) for shard in shards for name, each in shard.samples.items()}
    return worst_first(found)


def _write_beside(job: Job, applied: Applied, folder: Path, *, card: bool) -> None:
    """What the source has beside its weights; and what the output is made of, and how to make it again."""
    if job.source is not None and job.config is not None:
        copy_side_files(job.source, folder)
        # The config of a model of diffusers says no dtype: whoever loads it does.
        dtype = job.dtype if job.library == "transformers" else None
        config = dict(job.config) if job.model_class is None else without_code(job.config)
        write_config(config, dict(job.quantization), dtype, folder)
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
