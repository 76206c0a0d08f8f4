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
from rulequant.torch.checkpoint.origin import Origin
from rulequant.torch.checkpoint.recipe import Recipe
from rulequant.torch.checkpoint.shards import ShardJob

__all__ = ["DEFAULT_SHARD_BYTES", "Job"]

DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Job:
    """A checkpoint to quantize: what becomes of each of its tensors, and what is told of it beside them."""

    source: Path | None
    """The checkpoint folder; None where the weights are in memory."""
    fingerprint: Mapping[str, Mapping[str, int]]
    """Of the source, as `CheckpointReader.fingerprint` gives it."""
    plan: Plan
    rules: RuleSet | None
    """What the plan was made with, if it is to be kept."""
    quant_method: str
    """Of the container that holds it."""
    quantization: Mapping[str, Any]
    """What config.json says of it there."""
    asked: ContainerName
    """The container that the user asked for."""
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
    model: str
    """MODEL of the command that makes it again."""
    origin: Origin | None
    """Where on the Hub the source comes from."""
    recipe: Recipe
    """All that decides the bytes of the output."""
    shards: tuple[ShardJob, ...]
    copies: tuple[tuple[TensorEntry, TensorEntry], ...]
    """Tensors that are not written, each with the one that it has to equal."""
    dropped: Mapping[str, str]
    """Source keys that are not written, with the reason."""
    mean_threads: int
    """The number of threads with which torch takes the one mean whose last bits depend on it: here, and so in every
    process that works on the job, the number that transformers would take it with on this machine."""
