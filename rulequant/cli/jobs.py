"""What `apply` finds out before it writes: here, or in a process that ends with it, so that its imports go too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rulequant.cli import terminal
from rulequant.errors import UsageError
from rulequant.pipeline_plan import PipelinePlan
from rulequant.plan import Plan

if TYPE_CHECKING:
    from rulequant.containers import ContainerName
    from rulequant.ruleset import RuleSet
    from rulequant.torch.checkpoint.job import Job, Survey
    from rulequant.torch.checkpoint.pipeline_job import PipelineJob
    from rulequant.torch.checkpoint.sources import Source
    from rulequant.torch.pipeline import Pipeline
    from rulequant.torch.skeleton import Skeleton

__all__ = ["Request", "job_elsewhere", "job_here", "job_of_survey", "survey_saved"]


@dataclass(frozen=True)
class Request:
    """What the user asks for."""

    model: str
    rules: str | None
    plan: Plan | PipelinePlan | None
    """In place of rules."""
    checkpoint: dict[str, Any] | None
    """What was saved with the plan of its checkpoint."""
    output: Path
    container: ContainerName
    max_shard_bytes: int
    quiet: bool
    trust_remote_code: bool
    revision: str | None


def survey_saved(request: Request) -> Survey | None:
    """What the plan file tells of the checkpoint; None where the library has to be asked.

    Raises:
        CheckpointError: the folder cannot be trusted.
        UsageError: the file was edited.
    """
    plan, folder = request.plan, Path(request.model)
    if not isinstance(plan, Plan) or request.checkpoint is None or not (folder / "config.json").is_file():
        return None
    from rulequant.torch.checkpoint.reader import CheckpointReader
    from rulequant.torch.checkpoint.saved import saved_survey
    from rulequant.torch.checkpoint.sidefiles import source_config

    source_config(folder)
    with CheckpointReader.open(folder) as reader:
        survey = saved_survey(request.checkpoint, reader, plan)
    return survey if survey and request.container in ("auto", survey.quant_method) else None


def job_of_survey(request: Request, survey: Survey) -> Job:
    """The job of a plan file that tells enough of the checkpoint; no torch is imported."""
    from rulequant.torch.checkpoint.job import make_job
    from rulequant.torch.checkpoint.origin import argument_of, origin_of
    from rulequant.torch.checkpoint.reader import CheckpointReader
    from rulequant.torch.checkpoint.sidefiles import source_config

    folder = Path(request.model)
    origin = origin_of(folder)
    with CheckpointReader.open(folder) as reader:
        return make_job(
            survey,
            reader,
            cast(Plan, request.plan),
            source=folder,
            rules=None,
            asked=request.container,
            config=source_config(folder),
            model=argument_of(folder, request.model, origin),
            origin=origin,
            max_shard_bytes=request.max_shard_bytes,
        )


def job_elsewhere(request: Request) -> Job | PipelineJob:
    """The job, from a process of its own, whose messages go to the same streams."""
    terminal.prepare()
    return job_here(request)[0]


def job_here(request: Request) -> tuple[Job | PipelineJob, Source | Pipeline]:
    """The job and where its weights are; warnings are told, and a model on the Hub is downloaded.

    Raises:
        RulequantError: whatever stands in the way.
    """
    from rulequant.cli.inputs import read_model, torch_extra
    from rulequant.cli.progress import choose_download

    found = read_model(request.model, trust_remote_code=request.trust_remote_code, revision=request.revision, real=True)
    from rulequant.torch.pipeline import Pipeline

    if isinstance(found, Pipeline):
        from rulequant.cli.pipelines import pipeline_job

        return pipeline_job(request, found)
    if isinstance(request.plan, PipelinePlan):
        raise UsageError(
            f"the plan is for a pipeline, and {request.model} is one model", remedy="give the folder of the pipeline"
        )
    skeleton = cast("Skeleton", found)
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
