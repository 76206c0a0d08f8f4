"""`rulequant diff`"""

from __future__ import annotations

import json
import sys

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command, format_option, model_options

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
    from rulequant.cli.inputs import read_inventory, read_rules
    from rulequant.diagnostics import Severity
    from rulequant.plan_diff import compare
    from rulequant.planner import make_plan
    from rulequant.report.difftext import diff_text

    inventory = read_inventory(model, trust_remote_code=trust_remote_code, revision=revision)
    plans = []
    for name in (rules_a, rules_b):
        ruleset, warnings = read_rules(name, inventory)
        plans.append(make_plan(ruleset, inventory))
        terminal.problems([*warnings, *(each for each in plans[-1].diagnostics if each.severity is not Severity.NOTE)])
    found = compare(*plans)
    if form == "json":
        terminal.data(json.dumps(found.to_dict(), indent=1))
    else:
        terminal.data(diff_text(found, every=every, style=terminal.style_of(sys.stdout)))
    if exit_code and found.changes:
        click.get_current_context().exit(1)
