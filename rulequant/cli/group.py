"""The group of commands: each is imported by name when it is called, so that none waits for the others."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

import click

from rulequant.diagnostics import did_you_mean

__all__ = ["COMMANDS", "LazyGroup"]

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "validate": "Check rule files, without a model and without torch.",
        "plan": "Show what would be quantized, why the rest is not, and the sizes.",
        "why": "Show each test and rule tried for one module, and what decided.",
        "diff": "Show which modules two rule files treat differently.",
        "lock": "Save the decisions, for `plan --check` to compare with later.",
        "apply": "Write the quantized checkpoint.",
        "verify": "Check what apply wrote, and how close its weights are to the original's.",
        "inventory": "Save the modules of a model as JSON; then no torch is needed.",
        "init": "Write a commented rule file to start from.",
        "rules": "List the bundled rule files.",
        "show": "Print a rule file with all that it extends.",
        "schema": "Print the JSON Schema of rule files.",
        "explain": "Explain a diagnostic code.",
    }
)
"""Every command and the first line of its help, in the order of `rulequant --help`."""


class LazyGroup(click.Group):
    """Finds the command `name` as `command` in `rulequant.cli.NAME`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """The command of a name; None where there is none."""
        if cmd_name not in COMMANDS:
            return None
        found = import_module(f"rulequant.cli.{cmd_name}").command
        return found if isinstance(found, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments name; a misspelt one is answered with the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = did_you_mean(args[0], COMMANDS)
            raise click.UsageError(f"no command is called `{args[0]}`{f'; {near}' if near else ''}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The table of commands, from COMMANDS alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
