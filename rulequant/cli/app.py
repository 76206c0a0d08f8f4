"""The command line as click sees it: the group, its options, and what click itself complains about."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from rulequant.cli import terminal
from rulequant.cli.group import LazyGroup

__all__ = ["USAGE", "cli", "invoke"]

OK, USAGE = 0, 2

EPILOG = """\b
Examples:
  rulequant plan ./all-MiniLM-L6-v2            what would be quantized, and how small it gets
  rulequant apply ./all-MiniLM-L6-v2 -o out    write the quantized checkpoint
  rulequant validate rules/                    check rule files, without torch

\b
Exit codes: 0 fine, 1 findings, 2 usage or unreadable input, 3 a defect of rulequant.
Set RULEQUANT_DEBUG=1 for tracebacks; NO_COLOR and FORCE_COLOR are respected.
"""


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from rulequant import __version__

        click.echo(f"rulequant {__version__}")
        context.exit()


def _debug(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        os.environ["RULEQUANT_DEBUG"] = "1"


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the version and exit.",
)
@click.option(
    "--debug", is_flag=True, expose_value=False, callback=_debug, help="Print tracebacks, as RULEQUANT_DEBUG=1 does."
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Quantization as code: a rule file says which modules of a model are quantized, how, and why the rest is not."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def invoke(arguments: Sequence[str]) -> int:
    """Run a command line; the exit code. What a command raises passes through."""
    if "_RULEQUANT_COMPLETE" in os.environ:
        cli.main(list(arguments), prog_name="rulequant")
    try:
        with cli.make_context("rulequant", list(arguments)) as context:
            cli.invoke(context)
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.Abort as abort:
        raise KeyboardInterrupt from abort
    except click.ClickException as error:
        return _misused(error)
    return OK


def _misused(error: click.ClickException) -> int:
    """click's own complaint about arguments, in the form of ours."""
    context = getattr(error, "ctx", None)
    terminal.error(error.format_message())
    if context is not None:
        terminal.message(f"  try `{context.command_path} --help`")
    return USAGE
