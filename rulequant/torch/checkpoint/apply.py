"""From a checkpoint folder to a quantized one: plan, check, stream into a staging folder, and rename it into place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Protocol

from rulequant.diagnostics import DiagnosticsError, Severity
from rulequant.errors import ModelError, UsageError
from rulequant.inventory import Inventory
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.container import ContainerName, choose_container
from rulequant.torch.checkpoint.copies import check_copies
from rulequant.torch.checkpoint.keys import map_keys
from rulequant.torch.checkpoint.manifest import write_manifest
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.records import PLAN_NAME, RULES_NAME, write_card, write_plan, write_rules
from rulequant.torch.checkpoint.sidefiles import copy_side_files, source_config, write_config
from rulequant.torch.checkpoint.staging import Staging, check_output
from rulequant.torch.checkpoint.stream import OutputTensor, Step, encode_step, plan_steps
from rulequant.torch.checkpoint.writer import (
    ShardWriter,
    estimate_header,
    plan_shards,
    shard_names,
    write_index,
)
from rulequant.torch.skeleton import Skeleton

__all__ = ["DEFAULT_SHARD_BYTES", "Applied", "Progress", "apply_to_folder", "check_same_model"]

DEFAULT_SHARD_BYTES = 5_000_000_000
_SPARE_BYTES = 16 << 20
"""For headers, config and side files, beside the tensors."""
_ENCODED_NAMES = 8
"""More tensors than any encoded weight becomes; for estimates only."""


class Progress(Protocol):
    """Told how far a run is."""

    def start(self, total_bytes: int, tensors: int) -> None:
        """The source bytes to read in all, and the number of tensors."""

    def advance(self, tensor: str, nbytes: int) -> None:
        """A source tensor is done."""


@dataclass
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
    progress: Progress | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Applied:
    """Quantize the skeleton's checkpoint folder into `output`, which must not exist; the source is only read.

    Nothing appears under `output` before all of it is complete and on the disk. Beside the checkpoint it gets the plan,
    the rules and a README.md; where a plan is given, `made_with` are its rules, if they are to be kept too.

    Raises:
        DiagnosticsError: the rules do not fit the model, or no checkpoint can express the plan.
        CheckpointError: the source cannot be trusted, or the output cannot be written.
        NotFiniteError: a weight holds a value that cannot be encoded.
        ModelError: the model is not a checkpoint folder.
        UsageError: the plan is for another model, or was not made with those rules.
    """
    folder = _folder(skeleton)
    check_output(output, folder)
    config = source_config(folder)
    inventory = skeleton.inventory()
    plan = _plan(rules, inventory)
    kept_rules = rules if isinstance(rules, RuleSet) else _matching(made_with, plan)
    chosen = choose_container(skeleton, plan, container)
    with CheckpointReader.open(folder) as reader:
        keys = map_keys(skeleton, reader.tensors)
        steps = plan_steps(reader, keys, plan, inventory, skeleton)
        check_copies(reader, keys.copies)
        needed = sum(step.nbytes for step in steps) + _SPARE_BYTES
        with Staging(output, folder, needed, notice=notice) as stage:
            applied = _write_shards(reader, steps, stage.path, output, plan, max_shard_bytes, progress)
            applied.dropped = keys.dropped
            applied.container = chosen.quant_method
            copy_side_files(folder, stage.path)
            write_config(config, chosen.config, _dtype_name(skeleton), stage.path)
            _write_records(applied, kept_rules, skeleton, container, stage.path)
            reader.check_unchanged()
            write_manifest(
                stage.path,
                source=reader.fingerprint(),
                rules_sha256=plan.rules_sha256,
                plan_sha256=plan.sha256,
                versions=_versions(),
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


def _folder(skeleton: Skeleton) -> Path:
    if skeleton.folder is None:
        raise ModelError(
            f"{skeleton.name} is not a checkpoint folder, and apply reads one",
            remedy="download it first, or apply in memory: rulequant.torch.apply(model, rules)",
        )
    return skeleton.folder


def _plan(rules: RuleSet | Plan, inventory: Inventory) -> Plan:
    if isinstance(rules, Plan):
        check_same_model(rules, inventory)
    plan = rules if isinstance(rules, Plan) else make_plan(rules, inventory)
    if not plan.ok:
        raise DiagnosticsError(each for each in plan.diagnostics if each.severity is Severity.ERROR)
    return plan


def _matching(rules: RuleSet | None, plan: Plan) -> RuleSet | None:
    if rules is not None and rules.sha256 != plan.rules_sha256:
        raise UsageError(f"the plan was not made with {rules.file}", remedy="make the plan anew with these rules")
    return rules


def _write_shards(
    reader: CheckpointReader,
    steps: list[Step],
    folder: Path,
    output: Path,
    plan: Plan,
    max_shard_bytes: int,
    progress: Progress | None,
) -> Applied:
    applied = Applied(plan, output)
    by_key = {step.key: step for step in steps}
    groups = plan_shards(((step.key, step.nbytes) for step in steps), max_shard_bytes)
    names = shard_names(len(groups))
    if progress:
        progress.start(sum(step.source_bytes for step in steps), len(steps))
    for shard, group in zip(names, groups, strict=True):
        members = [by_key[key] for key in group]
        with ShardWriter(folder / shard, header_reserve=_header_reserve(members)) as writer:
            for step in members:
                for tensor in encode_step(reader, step):
                    _add(writer, tensor, applied, shard)
                if progress:
                    progress.advance(step.key, step.source_bytes)
    if len(names) > 1:
        write_index(folder, applied.weight_map, total_size=applied.bytes_written)
    return applied


def _add(writer: ShardWriter, tensor: OutputTensor, applied: Applied, shard: str) -> None:
    writer.add(tensor.name, tensor.dtype, tensor.shape, tensor.data)
    applied.tensors += 1
    applied.bytes_written += tensor.data.nbytes
    applied.payload_bytes += 0 if ".quant_state." in tensor.name else tensor.data.nbytes
    applied.weight_map[tensor.name] = shard


def _header_reserve(steps: list[Step]) -> int:
    entries: list[tuple[str, str, tuple[int, ...]]] = []
    for step in steps:
        if step.scheme is None:
            entries.append((step.key, step.entries[0].dtype + "____", step.entries[0].shape))
        else:
            # Names of unknown suffixes: as many as there can be, each longer than any.
            longest = f"{max(step.prefix, step.key, key=len)}{'x' * 48}"
            entries += [(f"{longest}{number}", "BF16____", (0, 0, 0)) for number in range(_ENCODED_NAMES)]
    return estimate_header(entries)


def _write_records(
    applied: Applied, rules: RuleSet | None, skeleton: Skeleton, container: ContainerName, folder: Path
) -> None:
    """The plan, the rules and the card: what the output is made of, and how to make it again."""
    write_plan(applied.plan, folder)
    if rules is not None:
        write_rules(rules, folder)
    what = RULES_NAME if rules is not None else f"--plan {PLAN_NAME}"
    option = "" if container == "auto" else f" --container {container}"
    model_class = type(skeleton.model)
    write_card(
        _folder(skeleton),
        folder,
        applied.plan,
        container=applied.container,
        dtype=_dtype_name(skeleton),
        bytes_written=applied.bytes_written,
        command=f"rulequant apply SOURCE {what} -o OUTPUT{option}",
        model_class=model_class.__name__ if model_class.__module__.startswith("transformers.") else None,
    )


def _dtype_name(skeleton: Skeleton) -> str:
    return str(skeleton.dtype).removeprefix("torch.")


def _versions() -> dict[str, str]:
    return {each: metadata.version(each) for each in ("torch", "transformers", "bitsandbytes")}
