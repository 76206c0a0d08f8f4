"""The weights of a model on the Hub, downloaded once everything else about the run is known to be in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rulequant.containers import ContainerName
from rulequant.diagnostics import DiagnosticsError, Severity
from rulequant.errors import CheckpointError
from rulequant.pipeline_plan import PipelinePlan
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.ruleset import RuleSet
from rulequant.torch.checkpoint.files import printable, size_text
from rulequant.torch.checkpoint.partfile import free_bytes
from rulequant.torch.checkpoint.pipeline_prepare import planned_pipeline
from rulequant.torch.checkpoint.place import check_output
from rulequant.torch.checkpoint.prepare import check_same_model
from rulequant.torch.checkpoint.sidefiles import source_config
from rulequant.torch.checkpoint.sources import container_for
from rulequant.torch.pipeline import Pipeline
from rulequant.torch.skeleton import Skeleton

if TYPE_CHECKING:
    from rulequant.torch.hub.download import DownloadProgress

__all__ = ["with_components", "with_weights"]


def with_weights(
    skeleton: Skeleton,
    rules: RuleSet | Plan,
    output: Path,
    *,
    container: ContainerName = "auto",
    progress: DownloadProgress | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Skeleton:
    """The skeleton with its checkpoint on this machine; unchanged where it is no model on the Hub.

    What would stop `apply_to_folder` before it reads a weight is raised before the first byte is downloaded.

    Raises:
        ModelError: the Hub does not answer, or has no such checkpoint for this user.
        CheckpointError: there is no space for it, or for the output, or the output cannot be written.
        DiagnosticsError: the rules do not fit the model, or no checkpoint can express the plan.
        UsageError: the plan is for another model.
    """
    if skeleton.hub is None or skeleton.folder is not None:
        return skeleton
    from rulequant.torch.hub.download import download

    check_output(output)
    source_config(skeleton.hub.folder, skeleton.name)
    plan = _checked(rules, skeleton)
    container_for(skeleton, plan, container)
    reserve = _reserve(plan.summary["bytes_after"], output, skeleton.hub.folder)
    return skeleton.at(download(skeleton.hub, reserve=reserve, progress=progress, notice=notice))


def with_components(
    pipeline: Pipeline,
    rules: RuleSet | PipelinePlan,
    output: Path,
    *,
    container: ContainerName = "auto",
    progress: DownloadProgress | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Pipeline:
    """The pipeline with all its files on this machine; as `with_weights`."""
    if pipeline.hub is None:
        return pipeline
    from rulequant.torch.hub.download import download

    check_output(output)
    plan = planned_pipeline(pipeline, rules, container)
    for name, each in plan.components.items():
        skeleton = pipeline.skeleton(name)
        source_config(pipeline.folder / name, skeleton.name)
        container_for(skeleton, _checked(each, skeleton), container)
    reserve = _reserve(plan.summary["pipeline_bytes_after"], output, pipeline.folder)
    download(pipeline.hub, reserve=reserve, progress=progress, notice=notice)
    return pipeline.downloaded()


def _checked(rules: RuleSet | Plan, skeleton: Skeleton) -> Plan:
    inventory = skeleton.inventory()
    plan = rules if isinstance(rules, Plan) else make_plan(rules, inventory)
    if isinstance(rules, Plan):
        check_same_model(rules, inventory)
    if not plan.ok:
        raise DiagnosticsError(each for each in plan.diagnostics if each.severity is Severity.ERROR)
    return plan


def _reserve(needed: int, output: Path, cache: Path) -> int:
    """Bytes that the output will take beside the download; 0 where it goes to another device, which has them free."""
    if _is_same_device(output.parent, cache):
        return needed
    free = free_bytes(output.parent)
    if free < needed:
        raise CheckpointError(
            f"{printable(output)}: not enough space: needs {size_text(needed)}, {printable(output.parent)} has "
            f"{size_text(free)} free",
            remedy="free some space, or choose an output on another device",
        )
    return 0


def _is_same_device(first: Path, second: Path) -> bool:
    return first.stat().st_dev == second.stat().st_dev
