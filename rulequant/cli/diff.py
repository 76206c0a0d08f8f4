"""`rulequant diff`"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command, format_option, model_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rulequant.diagnostics import Diagnostic
    from rulequant.inventory import Inventory
    from rulequant.plan import Plan
    from rulequant.torch.pipeline import Pipeline

__all__ = ["command"]

EXAMPLES = (
    "rulequant diff ./all-MiniLM-L6-v2 bert rules.yaml",
    "git show main:rules.yaml > old.yaml && rulequant diff inventories/llama.json old.yaml rules.yaml",
)


@click.command("diff", cls=Command, examples=EXAMPLES)
@click.argument("model")
@click.argument("rules_a")
@click.argument("rules_b")
@click.option("--all", "every", is_flag=True, help="An entry for every module, layers not folded.")
@click.option("--exit-code", is_flag=True, help="Exit 1 if the two differ, as diff(1) does.")
@format_option()
@model_options
def command(
    model: str,
    rules_a: str,
    rules_b: str,
    every: bool,
    exit_code: bool,
    form: str,
    trust_remote_code: bool,
    revision: str | None,
) -> None:
    """Show which modules RULES_A and RULES_B treat differently, and what that does to the size.

    Two schemes are the same if their settings are, whatever they are called.
    """
    from rulequant.cli.inputs import read_modules
    from rulequant.inventory import Inventory
    from rulequant.plan_diff import compare
    from rulequant.report.difftext import diff_text

    modules = read_modules(model, trust_remote_code=trust_remote_code, revision=revision)
    names = (rules_a, rules_b)
    found = compare(*(_plans(modules, names) if isinstance(modules, Inventory) else _of_pipeline(modules, names)))
    if form == "json":
        terminal.data(json.dumps(found.to_dict(), indent=1))
    else:
        terminal.data(diff_text(found, every=every, style=terminal.style_of(sys.stdout)))
    if exit_code and found.changes:
        click.get_current_context().exit(1)


def _plans(inventory: Inventory, rules: tuple[str, str]) -> list[Plan]:
    """The plan by each, once what is wrong with it is told."""
    from rulequant.cli.inputs import read_rules
    from rulequant.planner import make_plan

    plans = []
    for name in rules:
        ruleset, warnings = read_rules(name, inventory)
        plans.append(make_plan(ruleset, inventory))
        _tell(plans[-1], warnings)
    return plans


def _of_pipeline(pipeline: Pipeline, rules: tuple[str, str]) -> list[Plan]:
    """The same, of all components that either names."""
    from rulequant.cli.pipelines import diffable

    plans = diffable(pipeline, rules)
    for each in plans:
        _tell(each)
    return plans


def _tell(plan: Plan, warnings: Sequence[Diagnostic] = ()) -> None:
    from rulequant.diagnostics import Severity

    terminal.problems([*warnings, *(each for each in plan.diagnostics if each.severity is not Severity.NOTE)])
