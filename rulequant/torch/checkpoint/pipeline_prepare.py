"""The job of quantizing a pipeline: each component prepared as a model by itself, and the rest found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rulequant.containers import ContainerName
from rulequant.diagnostics import DiagnosticsError, Severity
from rulequant.errors import CheckpointError, UsageError
from rulequant.pipeline_plan import PipelinePlan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.component_files import local_weights
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.job import DEFAULT_SHARD_BYTES
from rulequant.torch.checkpoint.origin import Origin, argument_of, origin_of
from rulequant.torch.checkpoint.pipeline_job import PipelineJob, join_jobs
from rulequant.torch.checkpoint.prepare import prepare
from rulequant.torch.checkpoint.sidefiles import side_files
from rulequant.torch.checkpoint.sources import source_of
from rulequant.torch.pipeline import Pipeline, plan_pipeline

__all__ = ["planned_pipeline", "prepare_pipeline"]


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
    plan = planned_pipeline(pipeline, rules, container)
    parts = {}
    for name in plan.components:
        skeleton, wanted = pipeline.skeleton(name), rules.components[name]
        options: dict[str, Any] = {"container": container, "max_shard_bytes": max_shard_bytes}
        parts[name] = prepare(skeleton, source_of(skeleton), wanted, **options)
    hub = pipeline.hub
    origin = Origin(hub.repo_id, hub.commit, hub.revision) if hub else origin_of(pipeline.folder)
    return join_jobs(
        parts,
        replace(plan, components={name: job.plan for name, job in parts.items()}),
        source=pipeline.folder,
        rules=rules if isinstance(rules, RuleSet) else None,
        others=tuple(_others(pipeline, set(parts))),
        model=argument_of(pipeline.folder, pipeline.name, origin),
        origin=origin,
    )


def planned_pipeline(
    pipeline: Pipeline, rules: RuleSet | PipelinePlan, container: ContainerName = "auto"
) -> PipelinePlan:
    """The plan by the rules, or the one that is given, if it is for this pipeline.

    Raises:
        DiagnosticsError: the rules do not fit a component.
        UsageError: the rules are for one model, or the plan is for another pipeline.
    """
    if isinstance(rules, PipelinePlan):
        _check_same_pipeline(rules, pipeline)
        return rules
    plan = plan_pipeline(pipeline, rules, container)
    if not plan.ok:
        raise DiagnosticsError(each for each in plan.diagnostics if each.severity is Severity.ERROR)
    return plan


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


def _others(pipeline: Pipeline, quantized: set[str]) -> Iterator[Path]:
    """The files to copy, relative to the folder: side files, and the weights of components that stay as they are."""
    for each in side_files(pipeline.folder):
        if each.parts[0] not in quantized:
            yield each
    for name in pipeline.components:
        if name in quantized:
            continue
        weights = local_weights(pipeline.folder / name)
        if name in pipeline.models and not weights:
            raise CheckpointError(
                f"{printable(pipeline.folder / name)}: no weights, and the component is to be copied",
                remedy="download the pipeline again",
            )
        yield from (Path(name, file) for file in weights)
