"""From a checkpoint folder to a quantized one: plan, check, stream into a staging folder, and rename it into place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Protocol

from rulequant.diagnostics import DiagnosticsError, Severity
from rulequant.errors import UsageError
from rulequant.inventory import Inventory
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.container import ContainerName
from rulequant.torch.checkpoint.manifest import own_version, write_manifest
from rulequant.torch.checkpoint.origin import Origin, origin_of
from rulequant.torch.checkpoint.place import check_output
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.recipe import make_recipe
from rulequant.torch.checkpoint.records import PLAN_NAME, RULES_NAME, write_card, write_plan, write_rules
from rulequant.torch.checkpoint.shards import ShardJob, ShardResult, plan_jobs, write_shard
from rulequant.torch.checkpoint.sources import Source, source_of
from rulequant.torch.checkpoint.staging import Staging
from rulequant.torch.checkpoint.stream import Step, plan_steps
from rulequant.torch.checkpoint.writer import write_index
from rulequant.torch.skeleton import Skeleton

__all__ = ["DEFAULT_SHARD_BYTES", "Applied", "Progress", "apply_to_folder", "check_same_model"]

DEFAULT_SHARD_BYTES = 5_000_000_000
_SPARE_BYTES = 16 << 20
"""For headers, config and side files, beside the tensors."""


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
    tensors: int = 0
    bytes_written: int = 0
    """Bytes of all tensors in the output, the JSON records of 4-bit tensors included."""
    payload_bytes: int = 0
    """The same without those records: what the plan promises as `bytes_after`."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    weight_map: dict[str, str] = field(default_factory=dict)


def apply_to_folder(
    skeleton: Skeleton,
    rules: RuleSet | Plan,
    output: Path,
    *,
    made_with: RuleSet | None = None,
    container: ContainerName = "auto",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    restart: bool = False,
    progress: Progress | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Applied:
    """Quantize the skeleton's checkpoint folder, or its weights in memory, into `output`, which must not exist.

    The source is only read.

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
    source, origin = source_of(skeleton), _origin(skeleton)
    check_output(output, source.folder)
    config = source.config()  # which may say that the model is already quantized
    inventory = skeleton.inventory()
    plan = _plan(rules, inventory)
    kept_rules = rules if isinstance(rules, RuleSet) else _matching(made_with, plan)
    chosen = source.container(plan, _wanted(container, plan), inventory)
    plan = chosen.plan
    with source.open() as reader:
        keys = source.keys(reader)
        steps = plan_steps(reader, keys, plan, inventory, skeleton)
        needed = sum(step.nbytes for step in steps) + _SPARE_BYTES
        jobs, fingerprint = plan_jobs(steps, max_shard_bytes), reader.fingerprint()
        recipe = make_recipe(
            reader.tensors.values(),
            jobs,
            source=fingerprint,
            plan_sha256=plan.sha256,
            rules_sha256=plan.rules_sha256,
            config={"dtype": _dtype_name(skeleton), "source": config},
            container=chosen.quant_method,
            max_shard_bytes=max_shard_bytes,
            versions={"rulequant": own_version(), **_versions()},
        )
        with Staging(
            output, source.folder, needed, recipe=recipe, shards=len(jobs), restart=restart, notice=notice
        ) as stage:
            shards = _write_shards(reader, jobs, stage, progress)
            applied = _applied(plan, output, chosen.quant_method, keys.dropped, shards)
            source.write_beside(chosen, stage.path)
            _write_records(applied, kept_rules, skeleton, source, container, stage.path)
            reader.check_unchanged()
            write_manifest(
                stage.path,
                source=fingerprint,
                rules_sha256=plan.rules_sha256,
                plan_sha256=plan.sha256,
                versions=_versions(),
                base_model=origin.to_dict() if origin else None,
                known_sha256={shard.name: shard.sha256 for shard in shards},
            )
            stage.commit()
    return applied


def check_same_model(plan: Plan, inventory: Inventory) -> None:
    """Refuse a plan that was made for another model.

    Raises:
        UsageError: naming the first module that differs.
    """
    remedy = "make the plan anew for this model"
    owners = {info.name: info for info in inventory.owners}
    for decision in plan.decisions:
        info = owners.pop(decision.name, None)
        if info is None:
            raise UsageError(
                f"the plan is for another model: {inventory.model} has no `{decision.name}`", remedy=remedy
            )
        if (info.type, info.nbytes) != (decision.type, decision.bytes_before):
            raise UsageError(
                f"the plan is for another model: `{decision.name}` is a {info.type} of {info.nbytes} bytes here, "
                f"a {decision.type} of {decision.bytes_before} bytes in the plan",
                remedy=remedy,
            )
    if owners:
        raise UsageError(f"the plan is for another model: it does not know `{next(iter(owners))}`", remedy=remedy)


def _plan(rules: RuleSet | Plan, inventory: Inventory) -> Plan:
    if isinstance(rules, Plan):
        check_same_model(rules, inventory)
    plan = rules if isinstance(rules, Plan) else make_plan(rules, inventory)
    if not plan.ok:
        raise DiagnosticsError(each for each in plan.diagnostics if each.severity is Severity.ERROR)
    return plan


def _wanted(container: ContainerName, plan: Plan) -> ContainerName:
    """The container that was asked for; a plan that was saved for rulequant's own is applied as that."""
    return "rulequant" if (container, plan.container) == ("auto", "rulequant") else container


def _matching(rules: RuleSet | None, plan: Plan) -> RuleSet | None:
    if rules is not None and rules.sha256 != plan.rules_sha256:
        raise UsageError(f"the plan was not made with {rules.file}", remedy="make the plan anew with these rules")
    return rules


def _write_shards(
    reader: CheckpointReader, jobs: list[ShardJob], stage: Staging, progress: Progress | None
) -> list[ShardResult]:
    results = dict(stage.kept)
    missing = [job for job in jobs if job.name not in results]
    if progress:
        progress.start(sum(job.source_bytes for job in missing), sum(len(job.steps) for job in missing))

    def done(step: Step) -> None:
        if progress:
            progress.advance(step.key, step.source_bytes)

    for job in missing:
        results[job.name] = write_shard(reader, job, stage.path, done)
        stage.record(results[job.name])
    ordered = [results[job.name] for job in jobs]
    if len(ordered) > 1:
        weight_map = {name: result.name for result in ordered for name in result.tensors}
        write_index(stage.path, weight_map, total_size=sum(result.nbytes for result in ordered))
    return ordered


def _applied(
    plan: Plan, output: Path, container: str, dropped: Mapping[str, str], shards: list[ShardResult]
) -> Applied:
    return Applied(
        plan,
        output,
        container=container,
        tensors=sum(len(shard.tensors) for shard in shards),
        bytes_written=sum(shard.nbytes for shard in shards),
        payload_bytes=sum(shard.payload_bytes for shard in shards),
        dropped=dropped,
        weight_map={name: shard.name for shard in shards for name in shard.tensors},
    )


def _write_records(
    applied: Applied,
    rules: RuleSet | None,
    skeleton: Skeleton,
    source: Source,
    container: ContainerName,
    folder: Path,
) -> None:
    """The plan, the rules and the card: what the output is made of, and how to make it again."""
    write_plan(applied.plan, folder)
    if rules is not None:
        write_rules(rules, folder)
    what = RULES_NAME if rules is not None else f"--plan {PLAN_NAME}"
    option = "" if container == "auto" else f" --container {container}"
    model_class, origin = type(skeleton.model), _origin(skeleton)
    write_card(
        source.folder,
        folder,
        applied.plan,
        container=applied.container,
        dtype=_dtype_name(skeleton),
        bytes_written=applied.bytes_written,
        command=f"rulequant apply {_argument(skeleton, origin)} {what} -o OUTPUT{option}",
        origin=origin,
        loading=source.loading(applied.container),
        model_class=model_class.__name__ if model_class.__module__.startswith("transformers.") else None,
    )


def _origin(skeleton: Skeleton) -> Origin | None:
    """Where on the Hub the source comes from: as the user asked for it, or as its folder in the Hub's cache tells."""
    hub, folder = skeleton.hub, skeleton.folder
    if hub:
        return Origin(hub.repo_id, hub.commit, hub.revision)
    return origin_of(folder) if folder else None


def _argument(skeleton: Skeleton, origin: Origin | None) -> str:
    """MODEL of the command that makes the output again."""
    if skeleton.folder is None:
        return skeleton.name
    return f"{origin.repo_id} --revision {origin.commit}" if origin else "SOURCE"


def _dtype_name(skeleton: Skeleton) -> str:
    return str(skeleton.dtype).removeprefix("torch.")


def _versions() -> dict[str, str]:
    return {each: metadata.version(each) for each in ("torch", "transformers", "bitsandbytes")}
