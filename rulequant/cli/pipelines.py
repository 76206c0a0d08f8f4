"""The commands on a pipeline of diffusers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rulequant.cli import terminal
from rulequant.cli.inputs import rules_for, torch_extra
from rulequant.diagnostics import Severity
from rulequant.errors import UsageError
from rulequant.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rulequant.cli.jobs import Request
    from rulequant.containers import ContainerName
    from rulequant.inventory import Inventory
    from rulequant.pipeline_plan import PipelinePlan
    from rulequant.ruleset import RuleSet
    from rulequant.torch.checkpoint.pipeline_job import PipelineJob
    from rulequant.torch.pipeline import Pipeline

__all__ = ["as_one", "component_of", "diffable", "pipeline_job", "plan_of", "show_plan", "totals"]


def plan_of(pipeline: Pipeline, rules: RuleSet, container: ContainerName = "auto") -> PipelinePlan:
    """The plan of each component that the rules name."""
    with torch_extra(f"reading {pipeline.name}"):
        from rulequant.torch.pipeline import plan_pipeline

        return plan_pipeline(pipeline, rules, container)


def as_one(pipeline: Pipeline, plan: PipelinePlan, names: Iterable[str] = ()) -> tuple[Plan, Inventory]:
    """The components that are planned, and those that are named, as one model."""
    from rulequant.joined import as_one_model

    wanted = {*plan.components, *names}
    with torch_extra(f"reading {pipeline.name}"):
        parts = {each: pipeline.skeleton(each).inventory() for each in pipeline.models if each in wanted}
    return as_one_model(plan, parts)


def diffable(pipeline: Pipeline, rules: Sequence[str]) -> list[Plan]:
    """The plans of several rule files over the components that any of them names, each as one plan."""
    plans = [plan_of(pipeline, rules_for(pipeline, each)) for each in rules]
    names = {name for each in plans for name in each.components}
    return [as_one(pipeline, each, names)[0] for each in plans]


def show_plan(plan: PipelinePlan, *, every: bool) -> None:
    """Print the plan of each component and what they come to."""
    from rulequant.report.findings import findings
    from rulequant.report.overview import in_order
    from rulequant.report.plantext import plan_text
    from rulequant.report.text import columns

    style = terminal.style_of(sys.stdout)
    for name, each in plan.components.items():
        terminal.data(f"{style.bold(f'component {name}')}\n{plan_text(each, every=every, style=style)}\n")
    terminal.data("\n".join(columns(totals(plan))))
    if plan.diagnostics:
        terminal.data("\n" + findings(in_order(plan.diagnostics), "full", style=style))


def totals(plan: PipelinePlan) -> list[tuple[str, str]]:
    """(label, text) lines that tell what becomes of each component."""
    from rulequant.escaping import printable
    from rulequant.report.text import count, size

    rows = [("pipeline", printable(f"{plan.pipeline} in {plan.model}, by {plan.rules}"))]
    for name, each in plan.components.items():
        facts = each.summary
        sizes = f"{size(facts['bytes_before'])} -> {size(facts['bytes_after'])}"
        rows.append((name, f"{sizes}, {count(facts['quantized'], 'module')} quantized"))
    rows += [(name, f"{size(nbytes)}, copied" if nbytes else "copied") for name, nbytes in plan.copied.items()]
    facts = plan.summary
    rows.append(("together", f"{size(facts['pipeline_bytes_before'])} -> {size(facts['pipeline_bytes_after'])}"))
    return rows


def component_of(pipeline: Pipeline, rules: str | None, module: str) -> tuple[Inventory, RuleSet, str]:
    """The inventory and the rules of the component that a module's name begins with, and the rest of the name.

    Raises:
        UsageError: the pipeline has no such component, or the rules do not name it.
    """
    from rulequant.diagnostics import did_you_mean

    ruleset, model = rules_for(pipeline, rules), pipeline.name
    name, _, local = module.partition(".")
    if name not in pipeline.models:
        raise UsageError(
            f"{model} has no component `{name}`",
            remedy=did_you_mean(name, pipeline.models) or f"write COMPONENT.MODULE: {', '.join(pipeline.models)}",
        )
    if name not in ruleset.components:
        raise UsageError(
            f"{ruleset.file} does not name the component `{name}`, so it is copied as it is",
            remedy=f"named: {', '.join(ruleset.components)}",
        )
    with torch_extra(f"reading {model}"):
        return pipeline.skeleton(name).inventory(), ruleset.components[name], local


def pipeline_job(request: Request, pipeline: Pipeline) -> tuple[PipelineJob, Pipeline]:
    """The job of a pipeline and where its weights are, once its warnings are told, and it is downloaded from the Hub.

    Raises:
        RulequantError: whatever stands in the way.
    """
    if isinstance(request.plan, Plan):
        raise UsageError(
            f"{request.model} is a pipeline, and the plan is for one model",
            remedy="save one for it: `rulequant plan PIPELINE RULES -o FILE`; or give the folder of its component",
        )
    wanted = request.plan or rules_for(pipeline, request.rules)
    with torch_extra("apply"):
        from rulequant.cli.progress import choose_download
        from rulequant.torch.checkpoint.pipeline_prepare import prepare_pipeline
        from rulequant.torch.checkpoint.place import check_output
        from rulequant.torch.checkpoint.remote import with_components

        options: dict[str, Any] = {"container": request.container}
        with choose_download(quiet=request.quiet) as progress:
            ready = with_components(
                pipeline, wanted, request.output, progress=progress, notice=terminal.note, **options
            )
        check_output(request.output, ready.folder)
        job = prepare_pipeline(ready, wanted, max_shard_bytes=request.max_shard_bytes, **options)
    terminal.problems([each for each in job.pipeline.diagnostics if each.severity is Severity.WARNING])
    return job, ready
