"""All that writing an output takes, found out beforehand; plain data without torch, to be handed to another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rulequant.containers import ContainerName
from rulequant.plan import Plan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.header import TensorEntry
from rulequant.torch.checkpoint.manifest import own_version, stock_versions
from rulequant.torch.checkpoint.origin import Origin
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.recipe import Recipe, make_recipe
from rulequant.torch.checkpoint.shards import ShardJob, plan_jobs
from rulequant.torch.checkpoint.step import Step

__all__ = ["DEFAULT_SHARD_BYTES", "BaseJob", "Job", "Survey", "make_job"]

DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Survey:
    """What only the library of a model can tell of its checkpoint under a plan."""

    quant_method: str
    quantization: Mapping[str, Any]
    dtype: str
    model_class: str | None
    library: str
    stem: str
    loading: str | None
    steps: tuple[Step, ...]
    copies: Mapping[str, str]
    """Source keys that are not written, each with the one that it has to equal."""
    dropped: Mapping[str, str]
    mean_threads: int
    """The fields are those of `Job`."""


@dataclass(frozen=True, kw_only=True)
class BaseJob:
    """An output to write, of one model or of several: its shards, and all that decides about them."""

    source: Path | None
    """The folder that is read; None where the weights are in memory."""
    fingerprint: Mapping[str, Mapping[str, int]]
    """Of the source, as `CheckpointReader.fingerprint` gives it."""
    plan: Plan
    rules: RuleSet | None
    """What the plan was made with, if it is to be kept."""
    asked: ContainerName
    """The container that the user asked for."""
    model: str
    """MODEL of the command that makes it again."""
    origin: Origin | None
    """Where on the Hub the source comes from."""
    recipe: Recipe
    """All that decides the bytes of the output."""
    shards: tuple[ShardJob, ...]
    copies: tuple[tuple[TensorEntry, TensorEntry], ...]
    """Tensors that are not written, each with the one that it has to equal."""
    mean_threads: int
    """The number of threads with which torch would take the one mean whose last bits depend on it: where the job (or
    the plan file that it is made of) was made, the number that transformers takes it with. 0 where no mean is taken."""
    copied_bytes: int = 0
    """Bytes of large files that are copied as they are."""

    @property
    def takes_torch(self) -> bool:
        """Whether only torch can do some of it."""
        return any(step.takes_torch for shard in self.shards for step in shard.steps)


@dataclass(frozen=True, kw_only=True)
class Job(BaseJob):
    """A checkpoint to quantize: what becomes of each of its tensors, and what is told of it beside them."""

    quant_method: str
    """Of the container that holds it."""
    quantization: Mapping[str, Any]
    """What config.json says of it there."""
    config: Mapping[str, Any] | None
    """The source's config.json, if it has one."""
    dtype: str
    """Of what is not quantized, as torch spells it."""
    model_class: str | None
    """The class of transformers that loads it; None where the model brings its own code."""
    library: str
    """What loads it: transformers, diffusers, or rulequant."""
    stem: str
    """What the names of its files begin with."""
    loading: str | None
    """Python that loads it, where no class of transformers does."""
    dropped: Mapping[str, str]
    """Source keys that are not written, with the reason."""


def make_job(
    survey: Survey,
    reader: CheckpointReader,
    plan: Plan,
    *,
    source: Path | None,
    rules: RuleSet | None,
    asked: ContainerName,
    config: Mapping[str, Any] | None,
    model: str,
    origin: Origin | None,
    max_shard_bytes: int,
) -> Job:
    """The job of a source that `reader` has open."""
    mean_threads = survey.mean_threads if any(step.takes_mean for step in survey.steps) else 0
    shards, fingerprint = tuple(plan_jobs(survey.steps, max_shard_bytes, survey.stem)), reader.fingerprint()
    recipe = make_recipe(
        reader.tensors.values(),
        shards,
        source=fingerprint,
        plan_sha256=plan.sha256,
        rules_sha256=plan.rules_sha256,
        content_sha256=reader.content_sha256(),
        config={"dtype": survey.dtype, "source": config},
        container=survey.quant_method,
        mean_threads=mean_threads,
        max_shard_bytes=max_shard_bytes,
        versions={"rulequant": own_version(), **stock_versions(survey.library)},
    )
    return Job(
        source=source,
        fingerprint=fingerprint,
        plan=plan,
        rules=rules,
        quant_method=survey.quant_method,
        quantization=survey.quantization,
        asked=asked,
        config=config,
        dtype=survey.dtype,
        model_class=survey.model_class,
        library=survey.library,
        stem=survey.stem,
        loading=survey.loading,
        model=model,
        origin=origin,
        recipe=recipe,
        shards=shards,
        copies=tuple((reader.entry(copy), reader.entry(kept)) for copy, kept in survey.copies.items()),
        dropped=survey.dropped,
        mean_threads=mean_threads,
    )
