"""The job of quantizing a checkpoint: planned, checked, and freed of everything that only transformers knows."""

from __future__ import annotations

import torch

from rulequant.containers import ContainerName
from rulequant.diagnostics import DiagnosticsError, Severity
from rulequant.errors import UsageError
from rulequant.inventory import Inventory
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.job import DEFAULT_SHARD_BYTES, Job
from rulequant.torch.checkpoint.manifest import own_version, stock_versions
from rulequant.torch.checkpoint.origin import Origin, origin_of
from rulequant.torch.checkpoint.recipe import make_recipe
from rulequant.torch.checkpoint.shards import plan_jobs
from rulequant.torch.checkpoint.sources import Source
from rulequant.torch.checkpoint.stream import plan_steps
from rulequant.torch.skeleton import Skeleton

__all__ = ["check_same_model", "prepare"]


def prepare(
    skeleton: Skeleton,
    source: Source,
    rules: RuleSet | Plan,
    *,
    made_with: RuleSet | None = None,
    container: ContainerName = "auto",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Job:
    """Find out what to write of a skeleton's source; no weight is read.

    Where a plan is given, `made_with` are its rules, if they are to be kept too.

    Raises:
        DiagnosticsError: the rules do not fit the model, or no checkpoint can express the plan.
        CheckpointError: the source cannot be trusted, or is not what the model needs.
        UsageError: the plan is for another model, or was not made with those rules.
    """
    config = source.config()  # first: it may say that the model is already quantized
    inventory = skeleton.inventory()
    plan = _plan(rules, inventory)
    kept_rules = rules if isinstance(rules, RuleSet) else _matching(made_with, plan)
    chosen = source.container(plan, _wanted(container, plan), inventory)
    plan = chosen.plan
    model_class, origin = type(skeleton.model), _origin(skeleton)
    with source.open() as reader:
        keys = source.keys(reader)
        steps = plan_steps(reader, keys, plan, inventory, skeleton)
        shards = tuple(plan_jobs(steps, max_shard_bytes, source.stem))
        fingerprint, dtype = reader.fingerprint(), str(skeleton.dtype).removeprefix("torch.")
        recipe = make_recipe(
            reader.tensors.values(),
            shards,
            source=fingerprint,
            plan_sha256=plan.sha256,
            rules_sha256=plan.rules_sha256,
            config={"dtype": dtype, "source": config},
            container=chosen.quant_method,
            mean_threads=torch.get_num_threads(),
            max_shard_bytes=max_shard_bytes,
            versions={"rulequant": own_version(), **stock_versions()},
        )
        return Job(
            source=source.folder,
            fingerprint=fingerprint,
            plan=plan,
            rules=kept_rules,
            quant_method=chosen.quant_method,
            quantization=chosen.config,
            asked=container,
            config=config,
            dtype=dtype,
            model_class=model_class.__name__ if model_class.__module__.startswith("transformers.") else None,
            library=source.library,
            stem=source.stem,
            loading=source.loading(),
            model=_argument(skeleton, origin),
            origin=origin,
            recipe=recipe,
            shards=shards,
            copies=tuple((reader.entry(copy), reader.entry(kept)) for copy, kept in keys.copies.items()),
            dropped=keys.dropped,
            mean_threads=recipe.mean_threads,
        )


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
