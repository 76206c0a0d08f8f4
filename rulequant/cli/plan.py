"""`rulequant plan`"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command, format_option, model_options
from rulequant.errors import UsageError

if TYPE_CHECKING:
    from rulequant.containers import ContainerName
    from rulequant.inventory import Inventory
    from rulequant.lock_file import Lock
    from rulequant.plan import Plan
    from rulequant.torch.pipeline import Pipeline
    from rulequant.torch.skeleton import Skeleton

__all__ = ["command", "is_plan_file"]

EXAMPLES = (
    "rulequant plan ./all-MiniLM-L6-v2",
    "rulequant plan inventories/llama-3-8b.json rules/llama.yaml --all",
    "rulequant plan ./llama rules.yaml -o plan.json",
    "rulequant plan inventories/llama-3-8b.json --check rules/llama.lock",
)


@click.command("plan", cls=Command, examples=EXAMPLES)
@click.argument("model")
@click.argument("rules", required=False)
@click.option("--all", "every", is_flag=True, help="A line for every module, layers not folded.")
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Save the plan as JSON, for "
              "`apply --plan` and for reviews.")  # fmt: skip
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Save a report to open in a browser.")
@click.option("--check", metavar="LOCK", type=click.Path(path_type=Path), help="Show instead what has changed since "
              "`rulequant lock` wrote LOCK, and exit 1 if anything has. Without RULES: those of the lock.")  # fmt: skip
@click.option("--container", type=click.Choice(("auto", "bitsandbytes", "rulequant")), default="auto",
              show_default=True, help="For which container of `apply` to plan.")  # fmt: skip
@format_option()
@model_options
def command(
    model: str,
    rules: str | None,
    every: bool,
    output: Path | None,
    html: Path | None,
    check: Path | None,
    container: ContainerName,
    form: str,
    trust_remote_code: bool,
    revision: str | None,
) -> None:
    """Show what would be quantized, why the rest is not, and the sizes before and after. No weight is read.

    MODEL is a checkpoint folder (its config.json suffices), an inventory file (which needs no torch), a Hub id, or
    `package.module:callable` for a function that returns an nn.Module. RULES is a rule file or the name of a bundled
    one; absent, the bundled one for the model's type. For the folder of a pipeline of diffusers it is a file with
    `components`.

    Exits 1 if the rules do not fit the model, or if --check finds a difference.
    """
    from rulequant.cli.inputs import read_model, read_rules
    from rulequant.inventory import Inventory
    from rulequant.planner import make_plan

    lock = _read_lock(check) if check else None
    if check and lock and rules is None:
        rules = _rules_of(check, lock)
    found = read_model(model, trust_remote_code=trust_remote_code, revision=revision)
    skeleton, pipeline = (None, None) if isinstance(found, Inventory) else _told_apart(found)
    if pipeline:
        fine = _of_pipeline(pipeline, rules, (check, lock), container, output, html, every=every, form=form)
        click.get_current_context().exit(0 if fine else 1)
    inventory = skeleton.inventory() if skeleton else cast(Inventory, found)
    ruleset, warnings = read_rules(rules, inventory)
    plan = make_plan(ruleset, inventory, container)
    terminal.problems(warnings)
    saved, checkpoint = _with_checkpoint(skeleton, plan, container) if skeleton and output else (plan, None)
    _save(saved.to_dict() | ({"checkpoint": checkpoint} if checkpoint else {}), output, saved, html)
    if check and lock:
        same = _compare(check, lock, plan, inventory, form=form, every=every)
        click.get_current_context().exit(0 if same and plan.ok else 1)
    if form == "json":
        terminal.data(json.dumps(plan.to_dict(), indent=1))
    else:
        _print(plan, every=every)
    if not plan.ok:
        click.get_current_context().exit(1)


def _of_pipeline(
    pipeline: Pipeline,
    rules: str | None,
    locked: tuple[Path | None, Lock | None],
    container: ContainerName,
    output: Path | None,
    html: Path | None,
    *,
    every: bool,
    form: str,
) -> bool:
    """The same, for the components of a pipeline; whether nothing stands in the way, and nothing has changed."""
    from rulequant.cli.inputs import rules_for
    from rulequant.cli.pipelines import as_one, plan_of, show_plan

    plan, (check, lock) = plan_of(pipeline, rules_for(pipeline, rules), container), locked
    one = as_one(pipeline, plan)[0] if html else None
    _save(plan.to_dict(), output, one, html)
    if check and lock:
        names = {each.name.partition(".")[0] for each in lock.plan.decisions}
        same = _compare(check, lock, *as_one(pipeline, plan, names), form=form, every=every)
        return same and plan.ok
    if form == "json":
        terminal.data(json.dumps(plan.to_dict(), indent=1))
    else:
        show_plan(plan, every=every)
    return plan.ok


def _told_apart(found: Skeleton | Pipeline) -> tuple[Skeleton | None, Pipeline | None]:
    from rulequant.torch.skeleton import Skeleton

    return (found, None) if isinstance(found, Skeleton) else (None, found)


def _read_lock(path: Path) -> Lock:
    from rulequant.lock_file import load_lock

    return load_lock(path)


def _rules_of(path: Path, lock: Lock) -> str:
    """The rules that a lock was made with; it names them as seen from its own folder."""
    from rulequant.bundled import PREFIX

    named = lock.plan.rules
    if named.startswith(PREFIX):
        return named.removeprefix(PREFIX)
    found = path.parent / named
    if not found.is_file():
        raise UsageError(f"{path} was made with {named}, and {found} is no file", remedy="name the rule file: RULES")
    return str(found)


def _compare(path: Path, lock: Lock, plan: Plan, inventory: Inventory, *, form: str, every: bool) -> bool:
    """Print what has changed since the lock, and whether nothing has."""
    from rulequant.lock_file import make_lock
    from rulequant.plan_diff import compare_locks
    from rulequant.report.difftext import check_text

    now = make_lock(plan, inventory)
    found = compare_locks(lock, now)
    if form == "json":
        about = {"lock": str(path), "changed": bool(found)}
        versions = {"locked": dict(lock.versions), "now": dict(now.versions)}
        problems = [each.to_dict() for each in plan.diagnostics]
        terminal.data(json.dumps({**about, **found.to_dict(), "versions": versions, "diagnostics": problems}, indent=1))
    else:
        style = terminal.style_of(sys.stdout)
        terminal.data(check_text(found, (lock, now), str(path), every=every, style=style))
        _print_findings(plan, notes=False)
    return not found


def _with_checkpoint(skeleton: Skeleton, plan: Plan, container: ContainerName) -> tuple[Plan, dict[str, Any] | None]:
    """The plan, and what is saved with it of a checkpoint's weights, so that apply need not ask transformers again.

    None for a folder without weights, and for one that cannot be applied: apply says why.
    """
    from rulequant.cli.inputs import torch_extra
    from rulequant.errors import RulequantError

    if not plan.ok or skeleton.folder is None:
        return plan, None
    with torch_extra("saving a plan"):
        from rulequant.torch.checkpoint.prepare import survey_of
        from rulequant.torch.checkpoint.reader import CheckpointReader
        from rulequant.torch.checkpoint.saved import section_of

        try:
            survey, placed = survey_of(skeleton, plan, container)
            if placed.sha256 != plan.sha256:
                return plan, None
            with CheckpointReader.open(skeleton.folder) as reader:
                return placed, section_of(survey, reader, placed)
        except RulequantError:
            return plan, None


def _save(data: dict[str, Any], output: Path | None, plan: Plan | None, html: Path | None) -> None:
    """Save the plan JSON, and the report of the plan, as far as they are asked for."""
    if output:
        from rulequant.cli.output import write_text

        write_text(output, json.dumps(data, indent=1) + "\n", replaces=is_plan_file, what="a plan")
    if html and plan:
        from rulequant.cli.output import write_text
        from rulequant.report.html import GENERATOR, plan_html

        write_text(html, plan_html(plan), replaces=lambda path: GENERATOR in _head(path), what="a report of rulequant")


def _head(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(2000).decode("utf-8", "replace")


def is_plan_file(path: Path) -> bool:
    """Whether a file looks like a saved plan."""
    return '"rules_sha256"' in _head(path)


def _print(plan: Plan, *, every: bool) -> None:
    from rulequant.report.plantext import plan_text

    style = terminal.style_of(sys.stdout)
    if not (terminal.is_terminal(sys.stdout) and _rich_table(plan, every=every)):
        terminal.data(plan_text(plan, every=every, style=style))
    _print_findings(plan)


def _print_findings(plan: Plan, *, notes: bool = True) -> None:
    from rulequant.diagnostics import Severity
    from rulequant.report.findings import findings
    from rulequant.report.overview import in_order

    found = [each for each in plan.diagnostics if notes or each.severity is not Severity.NOTE]
    if found:
        terminal.data("\n" + findings(in_order(found), "full", style=terminal.style_of(sys.stdout)))


def _rich_table(plan: Plan, *, every: bool) -> bool:
    """Print with rich, which fits the table to the terminal; whether it is installed."""
    try:
        from rulequant.cli.table import print_plan
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        return False
    print_plan(plan, every=every)
    return True
