"""The job of quantizing a checkpoint: planned, checked, and freed of everything that only transformers knows."""

from __future__ import annotations

import torch

from rulequant.containers import ContainerName
from rulequant.diagnostics import DiagnosticsError, Severity
from rulequant.errors import UsageError
from rulequant.escaping import module_text
from rulequant.inventory import Inventory
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.container import Container
from rulequant.torch.checkpoint.job import DEFAULT_SHARD_BYTES, Job, Survey, make_job
from rulequant.torch.checkpoint.origin import Origin, argument_of, origin_of
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.sources import Source, source_of
from rulequant.torch.checkpoint.stream import plan_steps
from rulequant.torch.skeleton import Skeleton

__all__ = ["check_same_model", "prepare", "survey_of"]


def prepare(
    skeleton: Skeleton,
    source: Source,
    rules: RuleSet | Plan,
    *,
    made_with: RuleSet | None = None,
    container: ContainerName = "auto",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Job:
    """Find out what to write of a skeleton's source; of its weights only samples are read.

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
    plan, origin = chosen.plan, _origin(skeleton)
    with source.open() as reader:
        return make_job(
            _survey(skeleton, source, reader, chosen, inventory),
            reader,
            plan,
            source=source.folder,
            rules=kept_rules,
            asked=container,
            config=config,
            model=_argument(skeleton, source, origin),
            origin=origin,
            max_shard_bytes=max_shard_bytes,
        )


def survey_of(skeleton: Skeleton, plan: Plan, container: ContainerName) -> tuple[Survey, Plan]:
    """What the library of a model tells of its checkpoint under a plan; and the plan with what it finds.

    Raises:
        RulequantError: as `prepare`.
    """
    source, inventory = source_of(skeleton), skeleton.inventory()
    source.config()
    chosen = source.container(plan, _wanted(container, plan), inventory)
    with source.open() as reader:
        return _survey(skeleton, source, reader, chosen, inventory), chosen.plan


def _survey(
    skeleton: Skeleton, source: Source, reader: CheckpointReader, chosen: Container, inventory: Inventory
) -> Survey:
    keys, model_class = source.keys(reader), type(skeleton.model)
    return Survey(
        quant_method=chosen.quant_method,
        quantization=chosen.config,
        dtype=str(skeleton.dtype).removeprefix("torch."),
        model_class=model_class.__name__ if model_class.__module__.startswith("transformers.") else None,
        library=source.library,
        stem=source.stem,
        loading=source.loading(chosen.quant_method),
        steps=tuple(plan_steps(reader, keys, chosen.plan, inventory, skeleton)),
        copies=keys.copies,
        dropped=keys.dropped,
        mean_threads=torch.get_num_threads(),
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
            lacks = f"no `{decision.name}`" if decision.name else "no tensor that is in none of its modules"
            raise UsageError(f"the plan is for another model: {inventory.model} has {lacks}", remedy=remedy)
        if (info.type, info.nbytes) != (decision.type, decision.bytes_before):
            raise UsageError(
                f"the plan is for another model: {module_text(info.name)} is a {info.type} of {info.nbytes} bytes "
                f"here, a {decision.type} of {decision.bytes_before} bytes in the plan",
                remedy=remedy,
            )
    if owners:
        name = next(iter(owners))
        unknown = f"`{name}`" if name else "tensors of the model itself, in none of its modules"
        raise UsageError(f"the plan is for another model: it does not know {unknown}", remedy=remedy)


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


def _argument(skeleton: Skeleton, source: Source, origin: Origin | None) -> str:
    if skeleton.hub:  # which may be a folder in a repository
        return f"{skeleton.name} --revision {skeleton.hub.commit}"
    return argument_of(source.folder, skeleton.name, origin)


def _origin(skeleton: Skeleton) -> Origin | None:
    """Where on the Hub the source comes from: as the user asked for it, or as its folder in the Hub's cache tells."""
    hub, folder = skeleton.hub, skeleton.folder
    if hub:
        return Origin(hub.repo_id, hub.commit, hub.revision)
    return origin_of(folder) if folder else None
