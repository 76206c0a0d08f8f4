"""`rulequant schema`"""

from __future__ import annotations

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command

__all__ = ["command"]

EXAMPLES = ("rulequant schema > ruleset.v1.schema.json",)


@click.command("schema", cls=Command, examples=EXAMPLES)
def command() -> None:
    """Print the JSON Schema of rule files.

    An editor with yaml-language-server completes and checks a rule file whose first line is
    `# yaml-language-server: $schema=ruleset.v1.schema.json`.
    """
    from rulequant.jsonschema import schema_text

    terminal.data(schema_text().rstrip("\n"))
