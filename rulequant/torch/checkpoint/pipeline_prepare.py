"""The job of quantizing a pipeline: each component prepared as a model by itself, and the rest found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rulequant.containers import ContainerName
from rulequant.diagnostics import DiagnosticsError, Severity
from rulequant.errors import CheckpointError, UsageError
from rulequant.pipeline_plan import PipelinePlan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.job import DEFAULT_SHARD_BYTES
from rulequant.torch.checkpoint.layout import MODEL_STEM, find_layout, index_name
from rulequant.torch.checkpoint.origin import argument_of, origin_of
from rulequant.torch.checkpoint.pipeline_job import PipelineJob, join_jobs
from rulequant.torch.checkpoint.prepare import prepare
from rulequant.torch.checkpoint.sidefiles import side_files
from rulequant.torch.checkpoint.sources import source_of
from rulequant.torch.diffusion import STEM
from rulequant.torch.pipeline import Pipeline, plan_pipeline

__all__ = ["prepare_pipeline"]


def prepare_pipeline(
    pipeline: Pipeline,
    rules: RuleSet | PipelinePlan,
    *,
    container: ContainerName = "auto",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> PipelineJob:
    """Find out what to write of a pipeline; no weight is read.

    Raises:
        DiagnosticsError: the rules do not fit a component, or its library cannot load what they ask for.
        CheckpointError: a component cannot be trusted, or is not what its class needs.
        UsageError: the rules are for one model, or the plan is for another pipeline.
    """
    if isinstance(rules, PipelinePlan):
        plan = rules
        _check_same_pipeline(plan, pipeline)
    else:
        plan = plan_pipeline(pipeline, rules, container)
    if not plan.ok:
        raise DiagnosticsError(each for each in plan.diagnostics if each.severity is Severity.ERROR)
    parts = {}
    for name in plan.components:
        skeleton, wanted = pipeline.skeleton(name), rules.components[name]
        options: dict[str, Any] = {"container": container, "max_shard_bytes": max_shard_bytes}
        parts[name] = prepare(skeleton, source_of(skeleton), wanted, **options)
    origin = origin_of(pipeline.folder)
    return join_jobs(
        parts,
        replace(plan, components={name: job.plan for name, job in parts.items()}),
        source=pipeline.folder,
        rules=rules if isinstance(rules, RuleSet) else None,
        others=tuple(_others(pipeline.folder, pipeline.components, set(parts))),
        model=argument_of(pipeline.folder, pipeline.name, origin),
        origin=origin,
    )


def _check_same_pipeline(plan: PipelinePlan, pipeline: Pipeline) -> None:
    remedy = "make the plan anew for this pipeline"
    if plan.pipeline != pipeline.kind:
        raise UsageError(
            f"the plan is for another pipeline: {pipeline.name} is a {pipeline.kind}, not a {plan.pipeline}",
            remedy=remedy,
        )
    missing = [name for name in plan.components if name not in pipeline.models]
    if missing:
        raise UsageError(
            f"the plan is for another pipeline: {pipeline.name} has no component `{printable(missing[0])}`",
            remedy=remedy,
        )


def _others(folder: Path, components: tuple[str, ...], quantized: set[str]) -> Iterator[Path]:
    """The files to copy, relative to the folder: side files, and the weights of components that stay as they are."""
    for each in side_files(folder):
        if each.parts[0] not in quantized:
            yield each
    for name in components:
        if name not in quantized:
            yield from (Path(name, file) for file in _weights(folder / name))


def _weights(folder: Path) -> list[str]:
    """The safetensors checkpoint of a component; where it has none, all that side files leave out."""
    for stem in (STEM, MODEL_STEM):
        with suppress(CheckpointError, OSError):
            found = find_layout(folder, (folder / index_name(stem)).read_bytes, stem)
            return [*found.shards, *([index_name(stem)] if found.index else [])]
    known = {each.as_posix() for each in side_files(folder)} | {"config.json", "README.md"}
    return sorted(
        each.name for each in folder.iterdir() if each.is_file() and each.name[0] != "." and each.name not in known
    )
