"""All that writing the output of a pipeline takes: the jobs of its components as one, and what is copied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rulequant.pipeline_plan import PipelinePlan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.header import TensorEntry
from rulequant.torch.checkpoint.job import BaseJob, Job
from rulequant.torch.checkpoint.origin import Origin
from rulequant.torch.checkpoint.recipe import join_recipes
from rulequant.torch.checkpoint.shards import ShardJob
from rulequant.torch.checkpoint.step import Step

__all__ = ["PipelineJob", "join_jobs"]


@dataclass(frozen=True, kw_only=True)
class PipelineJob(BaseJob):
    """The components of a pipeline that are quantized, and the files that are copied.

    Its shards are those of all components, and are written as those of one model are: their names, and those of the
    files that they are made of, begin with the folder of the component.
    """

    source: Path
    parts: Mapping[str, Job]
    """By component."""
    pipeline: PipelinePlan
    others: tuple[Path, ...]
    """Files to copy, relative to the source."""


def join_jobs(
    parts: Mapping[str, Job],
    plan: PipelinePlan,
    *,
    source: Path,
    rules: RuleSet | None,
    others: tuple[Path, ...],
    model: str,
    origin: Origin | None,
) -> PipelineJob:
    """The jobs of components, of which there is one at least, as one job."""
    first, whole = next(iter(parts.values())), plan.merged
    recipes = {name: each.recipe for name, each in parts.items()}
    recipe = join_recipes(recipes, plan_sha256=whole.sha256, rules_sha256=plan.rules_sha256)
    return PipelineJob(
        source=source,
        fingerprint=recipe.source,
        plan=whole,
        rules=rules,
        asked=first.asked,
        model=model,
        origin=origin,
        recipe=recipe,
        shards=tuple(_shards(parts)),
        copies=tuple((_entry(a, name), _entry(b, name)) for name, each in parts.items() for a, b in each.copies),
        mean_threads=max(each.mean_threads for each in parts.values()),
        copied_bytes=sum((source / each).stat().st_size for each in others),
        parts=parts,
        pipeline=plan,
        others=others,
    )


def _shards(parts: Mapping[str, Job]) -> Iterator[ShardJob]:
    for name, job in parts.items():
        for each in job.shards:
            yield ShardJob(f"{name}/{each.name}", tuple(_steps(each.steps, name)))


def _steps(steps: Iterable[Step], component: str) -> Iterator[Step]:
    for step in steps:
        blocks = tuple(replace(block, entry=_entry(block.entry, component)) for block in step.blocks)
        yield replace(step, blocks=blocks)


def _entry(entry: TensorEntry, component: str) -> TensorEntry:
    """The same tensor, seen from the folder of the pipeline."""
    return replace(entry, shard=f"{component}/{entry.shard}")
