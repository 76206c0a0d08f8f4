"""What `apply` finds out before it writes: here, or in a process that ends with it, so that its imports go too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rulequant.cli import terminal

if TYPE_CHECKING:
    from rulequant.containers import ContainerName
    from rulequant.plan import Plan
    from rulequant.ruleset import RuleSet
    from rulequant.torch.checkpoint.job import Job
    from rulequant.torch.checkpoint.sources import Source
    from rulequant.torch.skeleton import Skeleton

__all__ = ["Request", "job_elsewhere", "job_here"]


@dataclass(frozen=True)
class Request:
    """What the user asks for."""

    model: str
    rules: str | None
    plan: Plan | None
    """In place of rules."""
    output: Path
    container: ContainerName
    max_shard_bytes: int
    quiet: bool
    trust_remote_code: bool
    revision: str | None


def job_elsewhere(request: Request) -> Job:
    """The job, from a process of its own, whose messages go to the same streams."""
    terminal.prepare()
    return job_here(request)[0]


def job_here(request: Request) -> tuple[Job, Source]:
    """The job and where its weights are; warnings are told, and a model on the Hub is downloaded.

    Raises:
        RulequantError: whatever stands in the way.
    """
    from rulequant.cli.inputs import read_skeleton, torch_extra
    from rulequant.cli.progress import choose_download

    skeleton = read_skeleton(
        request.model, trust_remote_code=request.trust_remote_code, revision=request.revision, real=True
    )
    ruleset, plan = (None, request.plan) if request.plan else _planned(request.rules, skeleton)
    with torch_extra("apply"):
        from rulequant.torch.checkpoint.place import check_output
        from rulequant.torch.checkpoint.prepare import prepare
        from rulequant.torch.checkpoint.remote import with_weights
        from rulequant.torch.checkpoint.sources import source_of

        with choose_download(quiet=request.quiet) as progress:
            skeleton = with_weights(
                skeleton,
                plan,
                request.output,
                container=request.container,
                progress=progress,
                notice=terminal.note,
            )
        source = source_of(skeleton)
        check_output(request.output, source.folder)
        job = prepare(
            skeleton,
            source,
            plan,
            made_with=ruleset,
            container=request.container,
            max_shard_bytes=request.max_shard_bytes,
        )
    return job, source


def _planned(rules: str | None, skeleton: Skeleton) -> tuple[RuleSet, Plan]:
    """The rules and the plan to apply, once its warnings are told; errors among them stop apply itself."""
    from rulequant.cli.inputs import read_rules
    from rulequant.diagnostics import DiagnosticsError, Severity
    from rulequant.planner import make_plan

    inventory = skeleton.inventory()
    ruleset, warnings = read_rules(rules, inventory)
    plan = make_plan(ruleset, inventory)
    terminal.problems([*warnings, *(each for each in plan.diagnostics if each.severity is Severity.WARNING)])
    if not plan.ok:
        raise DiagnosticsError(each for each in plan.diagnostics if each.severity is Severity.ERROR)
    return ruleset, plan
