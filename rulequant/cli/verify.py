"""`rulequant verify`"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command, format_option

if TYPE_CHECKING:
    from rulequant.diagnostics import Diagnostic
    from rulequant.verification import Verified

__all__ = ["command"]

EXAMPLES = (
    "rulequant verify llama-nf4",
    "rulequant verify llama-nf4 --against ./llama --top 50",
    "rulequant verify llama-nf4 --against ./llama --format json > errors.json",
)
TOP = 20
OF_EACH = 5
"""Findings of one code that are printed without --all."""


@click.command("verify", cls=Command, examples=EXAMPLES)
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--against", metavar="MODEL", help="What OUT was made from, as apply takes it: tell the error of each "
              "quantized weight, worst first, and compare all others.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Compare sizes and headers, and hash nothing.")
@click.option("--top", metavar="N", type=click.IntRange(min=1), default=TOP, show_default=True,
              help="Weights to show in the table, the worst ones.")  # fmt: skip
@click.option("--all", "every", is_flag=True, help="Show all weights in the table, and all problems.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; the result only.")
@format_option()
@click.option("--trust-remote-code", is_flag=True, help="Run the code that the model brings. Read it first.")
def command(
    output: Path, against: str | None, quick: bool, top: int, every: bool, quiet: bool, form: str,
    trust_remote_code: bool,
) -> None:  # fmt: skip
    """Check that OUT is what `rulequant apply` wrote, and how close its weights are to the original's.

    Every file is compared with the manifest, by size and sha256; every tensor with the index and the plan; and the
    layers that transformers would make of config.json with the plan. With --against MODEL each quantized weight is
    dequantized and compared with the original. Memory does not grow with the model.

    Exits 1 if anything is wrong with OUT, and 2 if OUT is no output of apply, or MODEL cannot be read.
    """
    from rulequant.cli.inputs import torch_extra
    from rulequant.cli.progress import choose_verify

    with torch_extra("verify"):
        from rulequant.torch.checkpoint.verify.pipeline import verify_output

        with choose_verify(quiet=quiet) as progress:
            found = verify_output(
                output, against=against, quick=quick, trust_remote_code=trust_remote_code, progress=progress
            )
    if form == "json":
        terminal.data(json.dumps(found.to_dict(), indent=1))
    else:
        _print(found, None if every else top)
    if not found.ok:
        click.get_current_context().exit(1)


def _print(found: Verified, limit: int | None) -> None:
    from rulequant.report.verifytext import verdict

    style = terminal.style_of(sys.stdout)
    _print_checks(found, limit)
    for name, each in found.components.items():
        terminal.data("\n" + style.bold(f"component {name}"))
        _print_checks(each, limit)
    terminal.data("\n" + (style.green if found.ok else style.red)(verdict(found)))


def _print_checks(found: Verified, limit: int | None) -> None:
    from rulequant.report.findings import findings
    from rulequant.report.verifytext import verify_text

    style = terminal.style_of(sys.stdout)
    if not (terminal.is_terminal(sys.stdout) and _rich_table(found, limit)):
        terminal.data(verify_text(found, limit=limit, style=style))
    if found.diagnostics:
        shown = found.diagnostics if limit is None else tuple(_first_of_each(found.diagnostics))
        terminal.data("\n" + findings(shown, "full", style=style))
        if left_out := len(found.diagnostics) - len(shown):
            terminal.data("\n" + style.dim(f"{left_out:,} more like these; --all shows them"))


def _first_of_each(diagnostics: Sequence[Diagnostic]) -> Iterator[Diagnostic]:
    """No more than a few of each code: with the wrong original there is one for every weight."""
    counted: Counter[str] = Counter()
    for each in diagnostics:
        counted[each.code] += 1
        if counted[each.code] <= OF_EACH:
            yield each


def _rich_table(found: Verified, limit: int | None) -> bool:
    """Print with rich, which fits the table to the terminal; whether it is installed."""
    try:
        from rulequant.cli.table import print_verified
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        return False
    print_verified(found, limit)
    return True
