"""plan, why and apply on a pipeline of diffusers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rulequant.cli import terminal
from rulequant.cli.inputs import rules_for, torch_extra
from rulequant.diagnostics import Severity
from rulequant.errors import UsageError
from rulequant.plan import Plan

if TYPE_CHECKING:
    from rulequant.cli.jobs import Request
    from rulequant.containers import ContainerName
    from rulequant.inventory import Inventory
    from rulequant.pipeline_plan import PipelinePlan
    from rulequant.ruleset import RuleSet
    from rulequant.torch.checkpoint.pipeline_job import PipelineJob
    from rulequant.torch.pipeline import Pipeline

__all__ = ["component_of", "pipeline_job", "show_plan", "totals"]


def show_plan(
    pipeline: Pipeline, rules: str | None, *, every: bool, form: str, output: Path | None, container: ContainerName
) -> bool:
    """Print the plan of each component and what they come to; whether nothing stands in the way of applying it."""
    ruleset = rules_for(pipeline, rules)
    with torch_extra(f"reading {pipeline.name}"):
        from rulequant.torch.pipeline import plan_pipeline

        plan = plan_pipeline(pipeline, ruleset, container)
    text = json.dumps(plan.to_dict(), indent=1)
    if output:
        from rulequant.cli.output import write_text
        from rulequant.cli.plan import is_plan_file

        write_text(output, text + "\n", replaces=is_plan_file, what="a plan")
    if form == "json":
        terminal.data(text)
        return plan.ok
    _print(plan, every=every)
    return plan.ok


def _print(plan: PipelinePlan, *, every: bool) -> None:
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
