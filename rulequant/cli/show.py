"""`rulequant show`"""

from __future__ import annotations

import json
import sys

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command, format_option

__all__ = ["command"]

EXAMPLES = (
    "rulequant show llama",
    "rulequant show rules.yaml --format json",
)


@click.command("show", cls=Command, examples=EXAMPLES)
@click.argument("rules")
@format_option("yaml", "json", default="yaml")
def command(rules: str, form: str) -> None:
    """Print RULES with all that it extends merged in, and where each line comes from.

    What is printed is a rule file itself, with the same meaning and without `extends`.
    """
    from rulequant.cli.inputs import load_ruleset
    from rulequant.report.rulestext import rules_data, rules_text

    ruleset, warnings = load_ruleset(rules)
    terminal.problems(warnings)
    if form == "json":
        terminal.data(json.dumps(rules_data(ruleset), indent=1))
    else:
        terminal.data(rules_text(ruleset, terminal.style_of(sys.stdout)))
