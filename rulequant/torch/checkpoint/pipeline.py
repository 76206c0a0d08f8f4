"""What the output of a pipeline has beside the shards of its components: what is copied, and what explains it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from rulequant.pipeline_plan import PipelinePlan
from rulequant.torch.checkpoint.files import size_text
from rulequant.torch.checkpoint.finish import Applied, finish_model, worst_first
from rulequant.torch.checkpoint.partfile import copy_file, write_file
from rulequant.torch.checkpoint.pipeline_job import PipelineJob
from rulequant.torch.checkpoint.records import IMPORT_DIFFUSERS, PLAN_NAME, RULES_NAME, write_card
from rulequant.torch.checkpoint.shards import ShardResult

__all__ = ["AppliedPipeline", "finish_pipeline"]

_WORTH_A_WORD = 100_000_000
"""Bytes to copy; fewer are copied before one has read that they are."""


@dataclass(frozen=True)
class AppliedPipeline(Applied):
    """What a run wrote of a pipeline: all components taken as one model, and each."""

    pipeline: PipelinePlan = field(kw_only=True)
    components: Mapping[str, Applied] = field(default_factory=dict)


def finish_pipeline(
    job: PipelineJob, shards: Sequence[ShardResult], folder: Path, *, notice: Callable[[str], None] = lambda _: None
) -> AppliedPipeline:
    """Write what belongs beside the shards of each component, and all that is no component that was quantized."""
    found = {each.name: each for each in shards}
    components = {}
    for name, part in job.parts.items():
        own = [replace(found[f"{name}/{each.name}"], name=each.name) for each in part.shards]
        components[name] = finish_model(part, own, folder / name, card=False)
    if job.copied_bytes > _WORTH_A_WORD:
        notice(f"copying {size_text(job.copied_bytes)} that stay as they are")
    for path in job.others:
        copy_file(job.source / path, folder / path, root=job.source)
    applied = _applied(job, components, folder)
    _write_records(job, applied, folder)
    return applied


def _applied(job: PipelineJob, components: Mapping[str, Applied], folder: Path) -> AppliedPipeline:
    parts = components.items()
    containers = {each.container for each in components.values()}
    return AppliedPipeline(
        job.plan,
        folder,
        container="bitsandbytes" if containers == {"bitsandbytes"} else "rulequant",
        library="diffusers",
        tensors=sum(each.tensors for each in components.values()),
        bytes_written=sum(each.bytes_written for each in components.values()),
        payload_bytes=sum(each.payload_bytes for each in components.values()),
        dropped={f"{name}.{key}": why for name, each in parts for key, why in each.dropped.items()},
        weight_map={f"{name}.{key}": f"{name}/{file}" for name, each in parts for key, file in each.weight_map.items()},
        records={f"{name}/{file}": record for name, each in parts for file, record in each.records.items()},
        samples=worst_first({f"{name}.{key}": one for name, each in parts for key, one in each.samples.items()}),
        pipeline=job.pipeline,
        components=components,
    )


def _write_records(job: PipelineJob, applied: AppliedPipeline, folder: Path) -> None:
    """Which rules each component got, the plan, and the card."""
    if job.rules is not None:
        write_file(folder / RULES_NAME, "".join(_rules(job)).encode())
    write_file(folder / PLAN_NAME, (json.dumps(job.pipeline.to_dict(), indent=1) + "\n").encode())
    what = RULES_NAME if job.rules is not None else f"--plan {PLAN_NAME}"
    option = "" if job.asked == "auto" else f" --container {job.asked}"
    write_card(
        job.source,
        folder,
        job.plan,
        container=applied.container,
        dtype="as in the source",
        bytes_written=applied.bytes_written,
        command=f"rulequant apply {job.model} {what} -o OUTPUT{option}",
        model_class=None,
        origin=job.origin,
        library="diffusers",
        loading=_loading(job, applied),
    )


def _rules(job: PipelineJob) -> Iterator[str]:
    if job.rules is not None:
        yield f"# Quantization rules of rulequant, sha256 {job.rules.sha256}\n"
        files = {name: f"{name}/{RULES_NAME}" for name in job.parts}
        yield yaml.safe_dump({"version": 1, "name": job.rules.name, "components": files}, sort_keys=False)


def _loading(job: PipelineJob, applied: Applied) -> str:
    kind, dtype = job.pipeline.pipeline, next(iter(job.parts.values())).dtype
    return (
        f"{IMPORT_DIFFUSERS if applied.container == 'rulequant' else ''}import torch\nfrom diffusers import {kind}\n\n"
        f'pipeline = {kind}.from_pretrained("path/to/this/folder", torch_dtype=torch.{dtype})'
    )
