"""plan, why and apply on the folder of a pipeline of diffusers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rulequant.cli import terminal
from rulequant.cli.inputs import read_pipeline, torch_extra
from rulequant.errors import UsageError

if TYPE_CHECKING:
    from rulequant.containers import ContainerName
    from rulequant.inventory import Inventory
    from rulequant.pipeline_plan import PipelinePlan
    from rulequant.ruleset import RuleSet
    from rulequant.torch.checkpoint.pipeline import AppliedPipeline

__all__ = ["apply_pipeline", "component_of", "pipeline_record", "show_plan", "summarize"]


def show_plan(
    model: str, rules: str | None, *, every: bool, form: str, output: Path | None, container: ContainerName,
    trust_remote_code: bool,
) -> bool:  # fmt: skip
    """Print the plan of each component and what they come to; whether nothing stands in the way of applying it."""
    pipeline, ruleset = read_pipeline(model, rules, trust_remote_code=trust_remote_code)
    with torch_extra(f"reading {model}"):
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

    style = terminal.style_of(sys.stdout)
    for name, each in plan.components.items():
        terminal.data(f"{style.bold(f'component {name}')}\n{plan_text(each, every=every, style=style)}\n")
    terminal.data("\n".join(_totals(plan)))
    if plan.diagnostics:
        terminal.data("\n" + findings(in_order(plan.diagnostics), "full", style=style))


def _totals(plan: PipelinePlan) -> list[str]:
    from rulequant.escaping import printable
    from rulequant.report.text import columns, count, size

    rows = [("pipeline", printable(f"{plan.pipeline} in {plan.model}, by {plan.rules}"))]
    for name, each in plan.components.items():
        facts = each.summary
        sizes = f"{size(facts['bytes_before'])} -> {size(facts['bytes_after'])}"
        rows.append((name, f"{sizes}, {count(facts['quantized'], 'module')} quantized"))
    rows += [(name, f"{size(nbytes)}, copied" if nbytes else "copied") for name, nbytes in plan.copied.items()]
    facts = plan.summary
    rows.append(("together", f"{size(facts['pipeline_bytes_before'])} -> {size(facts['pipeline_bytes_after'])}"))
    return columns(rows)


def component_of(
    model: str, rules: str | None, module: str, *, trust_remote_code: bool
) -> tuple[Inventory, RuleSet, str]:
    """The inventory and the rules of the component that a module's name begins with, and the rest of the name.

    Raises:
        UsageError: the pipeline has no such component, or the rules do not name it.
    """
    from rulequant.diagnostics import did_you_mean

    pipeline, ruleset = read_pipeline(model, rules, trust_remote_code=trust_remote_code)
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


def apply_pipeline(
    model: str, rules: str | None, output: Path, max_shard_bytes: int, *, container: ContainerName, quiet: bool,
    trust_remote_code: bool,
) -> AppliedPipeline:  # fmt: skip
    """Write the quantized pipeline."""
    from rulequant.cli.progress import choose_progress

    pipeline, ruleset = read_pipeline(model, rules, trust_remote_code=trust_remote_code)
    with torch_extra("apply"), choose_progress(quiet=quiet) as progress:
        from rulequant.torch.checkpoint import pipeline as writing

        return writing.apply_pipeline(
            pipeline, ruleset, output,
            container=container, max_shard_bytes=max_shard_bytes, progress=progress, notice=terminal.note,
        )  # fmt: skip


def pipeline_record(applied: AppliedPipeline, seconds: float) -> dict[str, Any]:
    """The result of apply as JSON-ready data."""
    return {
        "format_version": 1,
        "output": str(applied.output),
        "model": applied.plan.model,
        "pipeline": applied.plan.pipeline,
        "rules": applied.plan.rules,
        "rules_sha256": applied.plan.rules_sha256,
        "components": {
            name: {"container": each.container, "tensors": each.tensors, "bytes_written": each.bytes_written}
            for name, each in applied.components.items()
        },
        **applied.plan.summary,
        "seconds": round(seconds, 3),
    }


def summarize(applied: AppliedPipeline, seconds: float) -> None:
    """Say on stderr what was written."""
    from rulequant.escaping import printable

    terminal.message("\n".join(_totals(applied.plan)))
    terminal.message(f"{printable(str(applied.output))} is complete, in {seconds:.1f} s")
