"""What the commands share: options, and findings in the format that the user asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from rulequant.cli import terminal
from rulequant.diagnostics import DiagnosticsError

__all__ = ["Command", "format_option", "model_options"]

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command with examples in its help, whose findings about rule files are JSON where `--format json` is."""

    def __init__(self, *args: Any, examples: Sequence[str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, a line each, as they are."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"  {example}\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except DiagnosticsError as error:
            if ctx.params.get("form") != "json":
                raise
            from rulequant.report.findings import as_json
            from rulequant.report.overview import exit_code, in_order

            terminal.data(as_json(in_order(error.diagnostics)))
            return ctx.exit(exit_code(error.diagnostics))


def format_option(*forms: str, default: str = "text") -> Callable[[F], F]:
    """`--format`, of the given forms."""
    return click.option(
        "--format", "form", type=click.Choice(forms or ("text", "json")), default=default, show_default=True,
        help="How to print the result.",
    )  # fmt: skip


def model_options(function: F) -> F:
    """What a MODEL that is not an inventory file may need."""
    options = (
        click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub."),
        click.option("--trust-remote-code", is_flag=True, help="Run the code that the model brings. Read it first."),
    )
    for option in options:
        function = option(function)
    return function
