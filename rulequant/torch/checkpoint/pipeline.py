"""A pipeline quantized into a new folder: the components by their jobs, one after the other, and the rest copied."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from rulequant.containers import ContainerName
from rulequant.diagnostics import DiagnosticsError, Severity
from rulequant.errors import CheckpointError
from rulequant.pipeline_plan import PipelinePlan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.job import DEFAULT_SHARD_BYTES, Job
from rulequant.torch.checkpoint.layout import MODEL_STEM, find_layout, index_name
from rulequant.torch.checkpoint.local import in_process
from rulequant.torch.checkpoint.manifest import stock_versions, write_manifest
from rulequant.torch.checkpoint.origin import origin_of
from rulequant.torch.checkpoint.partfile import copy_file, write_file
from rulequant.torch.checkpoint.place import check_output
from rulequant.torch.checkpoint.prepare import prepare
from rulequant.torch.checkpoint.records import RULES_NAME, write_card
from rulequant.torch.checkpoint.shardfile import DEFAULT_MEMORY
from rulequant.torch.checkpoint.sidefiles import side_files
from rulequant.torch.checkpoint.sources import Source, source_of
from rulequant.torch.checkpoint.staging import Staging
from rulequant.torch.checkpoint.write import Applied, Progress, check_ties, needed_bytes, write_model
from rulequant.torch.diffusion import STEM
from rulequant.torch.pipeline import Pipeline, plan_pipeline

__all__ = ["AppliedPipeline", "apply_pipeline"]

_SPARE_BYTES = 16 << 20


@dataclass(frozen=True)
class AppliedPipeline:
    """What a run wrote."""

    plan: PipelinePlan
    output: Path
    components: dict[str, Applied]


def apply_pipeline(
    pipeline: Pipeline,
    rules: RuleSet,
    output: Path,
    *,
    container: ContainerName = "auto",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    memory: int = DEFAULT_MEMORY,
    progress: Progress | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> AppliedPipeline:
    """Quantize the components that the rules name, and copy the rest, into `output`, which must not exist.

    The source is only read, and nothing appears under `output` before all of it is complete and on the disk.

    Raises:
        DiagnosticsError: the rules do not fit a component, or its library cannot load what they ask for.
        CheckpointError: a component cannot be trusted, or the output cannot be written.
        NotFiniteError: a weight holds a value that cannot be encoded.
        UsageError: the rules are for one model.
    """
    check_output(output, pipeline.folder)
    plan = plan_pipeline(pipeline, rules, container)
    if not plan.ok:
        raise DiagnosticsError(each for each in plan.diagnostics if each.severity is Severity.ERROR)
    work: dict[str, tuple[Source, Job]] = {}
    for name in plan.components:
        source = source_of(pipeline.skeleton(name))
        options: dict[str, Any] = {"container": container, "max_shard_bytes": max_shard_bytes}
        work[name] = source, prepare(pipeline.skeleton(name), source, rules.components[name], **options)
    others = list(_others(pipeline, set(work)))
    copied = sum((pipeline.folder / each).stat().st_size for each in others)
    needed = sum(needed_bytes(job) for _, job in work.values()) + copied + _SPARE_BYTES
    shown = _Whole(progress, [job for _, job in work.values()])
    with Staging(output, pipeline.folder, needed, notice=notice) as stage:
        applied = {}
        for name, (source, job) in work.items():
            folder = stage.path / name
            folder.mkdir()
            with source.attach(job.fingerprint) as reader:
                check_ties(job, reader)
                applied[name] = write_model(job, folder, in_process(reader), memory=memory, progress=shown, card=False)
                reader.check_unchanged()
        for each in others:
            copy_file(pipeline.folder / each, stage.path / each, root=pipeline.folder)
        result = AppliedPipeline(_as_written(plan, work), output, applied)
        _write_records(result, pipeline, rules, next(iter(work.values()))[1].dtype, stage.path)
        write_manifest(
            stage.path,
            source={
                f"{name}/{file}": stamp for name, (_, job) in work.items() for file, stamp in job.fingerprint.items()
            },
            rules_sha256=rules.sha256,
            plan_sha256=result.plan.merged.sha256,
            versions=stock_versions() | {"diffusers": metadata.version("diffusers")},
            known={f"{name}/{file}": record for name, each in applied.items() for file, record in each.records.items()},
        )
        stage.commit()
    return result


def _as_written(plan: PipelinePlan, work: dict[str, tuple[Source, Job]]) -> PipelinePlan:
    """The plan with the containers that the components got."""
    return PipelinePlan(
        plan.model,
        plan.pipeline,
        plan.rules,
        plan.rules_sha256,
        {name: job.plan for name, (_, job) in work.items()},
        plan.copied,
        plan.findings,
    )


def _others(pipeline: Pipeline, quantized: set[str]) -> Iterator[Path]:
    """The files to copy, relative to the folder: side files, and the weights of components that stay as they are."""
    for each in side_files(pipeline.folder):
        if each.parts[0] not in quantized:
            yield each
    for name in pipeline.components:
        if name not in quantized:
            yield from (Path(name, file) for file in _weights(pipeline.folder / name))


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


def _write_records(applied: AppliedPipeline, pipeline: Pipeline, rules: RuleSet, dtype: str, folder: Path) -> None:
    """Which rules each component got, and the card."""
    data = {
        "version": 1,
        "name": rules.name,
        "components": {name: f"{name}/{RULES_NAME}" for name in applied.components},
    }
    text = f"# Quantization rules of rulequant, sha256 {rules.sha256}\n{yaml.safe_dump(data, sort_keys=False)}"
    write_file(folder / RULES_NAME, text.encode())
    containers = {each.container for each in applied.components.values()}
    needs_import = "import rulequant.torch.transformers  # pip install 'rulequant[torch]'\n" * (
        "rulequant" in containers
    )
    write_card(
        pipeline.folder,
        folder,
        applied.plan.merged,
        container="bitsandbytes" if containers == {"bitsandbytes"} else "rulequant",
        dtype="as in the source",
        bytes_written=sum(each.bytes_written for each in applied.components.values()),
        command=f"rulequant apply SOURCE {RULES_NAME} -o OUTPUT",
        model_class=None,
        origin=origin_of(pipeline.folder),
        library="diffusers",
        loading=f"{needs_import}import torch\nfrom diffusers import {pipeline.kind}\n\n"
        f'pipeline = {pipeline.kind}.from_pretrained("path/to/this/folder", torch_dtype=torch.{dtype})',
    )
    write_file(folder / "rulequant-plan.json", (json.dumps(applied.plan.to_dict(), indent=1) + "\n").encode())


class _Whole:
    """Tells one progress of several jobs."""

    def __init__(self, progress: Progress | None, jobs: list[Job]) -> None:
        self._progress = progress
        if progress:
            shards = [shard for job in jobs for shard in job.shards]
            progress.start(sum(each.source_bytes for each in shards), sum(len(each.steps) for each in shards))

    def start(self, total_bytes: int, tensors: int) -> None:
        """Of a part; nothing is to be said."""

    def advance(self, tensor: str, nbytes: int) -> None:
        """As it is."""
        if self._progress:
            self._progress.advance(tensor, nbytes)
