"""`rulequant lock`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command, model_options
from rulequant.errors import UsageError

if TYPE_CHECKING:
    from rulequant.containers import ContainerName
    from rulequant.inventory import Inventory
    from rulequant.plan import Plan
    from rulequant.ruleset import RuleSet
    from rulequant.torch.pipeline import Pipeline

__all__ = ["command"]

EXAMPLES = (
    "rulequant lock ./llama-3-8b rules/llama.yaml",
    "rulequant plan ./llama-3-8b --check rules/llama.lock",
)

STDOUT = "-"


@click.command("lock", cls=Command, examples=EXAMPLES)
@click.argument("model")
@click.argument("rules", required=False)
@click.option("-o", "--output", metavar="FILE", help="Where to write, `-` for stdout; by default the rule file's name "
              "with the suffix .lock, beside it.")  # fmt: skip
@click.option("--container", type=click.Choice(("auto", "bitsandbytes", "rulequant")), default="auto",
              show_default=True, help="For which container of `apply`; give it to `plan --check` too.")  # fmt: skip
@model_options
def command(
    model: str,
    rules: str | None,
    output: str | None,
    container: ContainerName,
    trust_remote_code: bool,
    revision: str | None,
) -> None:
    """Save what RULES decide for MODEL, to be committed: `plan --check` then finds what a later version changes.

    The file has a line for each kind of module, with its class, shapes, scheme or reason, and the versions and rules
    behind it. A lock that is there is written anew.

    Exits 1, and writes nothing, if the rules do not fit the model.
    """
    from rulequant.cli.inputs import read_modules
    from rulequant.diagnostics import DiagnosticsError, Severity
    from rulequant.inventory import Inventory
    from rulequant.lock_file import dump_lock, make_lock

    found = read_modules(model, trust_remote_code=trust_remote_code, revision=revision)
    if isinstance(found, Inventory):
        ruleset, plan, inventory = _planned(found, rules, container)
    else:
        ruleset, plan, inventory = _planned_pipeline(found, rules, container)
    terminal.problems([each for each in plan.diagnostics if each.severity is Severity.WARNING])
    if not plan.ok:
        raise DiagnosticsError(each for each in plan.diagnostics if each.severity is Severity.ERROR)
    path = _path(output, ruleset, inventory)
    text = dump_lock(make_lock(plan, inventory), rules=_seen_from(path, ruleset))
    if path is None:
        terminal.data(text.rstrip("\n"))
        return
    from rulequant.cli.output import write_text
    from rulequant.lock_file import is_lock
    from rulequant.report.text import count, size

    write_text(path, text, replaces=is_lock, what="a lock")
    modules = count(len(plan.decisions), "module")
    terminal.message(f"{path}: {modules}, {plan.summary['quantized']:,} quantized, {size(len(text.encode()))}")


def _planned(inventory: Inventory, rules: str | None, container: ContainerName) -> tuple[RuleSet, Plan, Inventory]:
    from rulequant.cli.inputs import read_rules
    from rulequant.planner import make_plan

    ruleset, warnings = read_rules(rules, inventory)
    terminal.problems(warnings)
    return ruleset, make_plan(ruleset, inventory, container), inventory


def _planned_pipeline(
    pipeline: Pipeline, rules: str | None, container: ContainerName
) -> tuple[RuleSet, Plan, Inventory]:
    from rulequant.cli.inputs import rules_for
    from rulequant.cli.pipelines import as_one, plan_of

    ruleset = rules_for(pipeline, rules)
    return ruleset, *as_one(pipeline, plan_of(pipeline, ruleset, container))


def _path(output: str | None, ruleset: RuleSet, inventory: Inventory) -> Path | None:
    """Where to write; a name that nobody chose is not taken from the lock of another model."""
    if output is not None:
        return None if output == STDOUT else Path(output)
    from rulequant.bundled import PREFIX
    from rulequant.lock_file import is_lock, load_lock

    path = Path(ruleset.file.removeprefix(PREFIX)).with_suffix(".lock")
    if path.exists() and is_lock(path):
        theirs = load_lock(path).plan.model
        if theirs != inventory.model:
            raise UsageError(
                f"{path} is the lock of another model, {theirs}, and this one is {inventory.model}",
                remedy="choose a name of its own: -o FILE; or give -o with this name to replace it",
            )
    return path


def _seen_from(path: Path | None, ruleset: RuleSet) -> str:
    """The rule file seen from the lock's folder, so that the lock is the same wherever the command is run."""
    from rulequant.bundled import PREFIX

    if ruleset.file.startswith(PREFIX):
        return ruleset.file
    return Path(os.path.relpath(ruleset.file, path.parent if path else Path())).as_posix()
