"""Tables on a terminal; the one place that needs rich beside the progress bar."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rulequant.cli import terminal
from rulequant.plan import Plan
from rulequant.report import verifytext
from rulequant.report.plantext import HEADINGS, NUMERIC, decision_rows, heaviest, plan_summary
from rulequant.verification import Verified

__all__ = ["print_plan", "print_verified"]

REASON = HEADINGS.index("scheme, or why not")
LEAST_REASON = 12
"""Columns below which reasons are not squeezed."""


def print_plan(plan: Plan, *, every: bool = False) -> None:
    """Print summary, table and the heaviest unquantized types, fitted to the terminal."""
    style = terminal.style_of(sys.stdout)
    console = Console(file=sys.stdout, no_color=not style.color, highlight=False)
    terminal.data("\n".join(plan_summary(plan, style)) + "\n")
    console.print(_table(plan, every=every, width=console.width))
    left = heaviest(plan)
    if left:
        terminal.data("\n".join(["", style.bold("Heaviest unquantized"), *left]))


def _table(plan: Plan, *, every: bool, width: int) -> Table:
    rows = decision_rows(plan.decisions, every=every)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    natural = [max(len(cell) for cell in column) + 2 for column in zip(HEADINGS, *rows, strict=True)]
    # A name in two halves cannot be searched for or copied: the reasons give way first.
    fits = sum(natural) - natural[REASON] + LEAST_REASON <= width
    for index, heading in enumerate(HEADINGS):
        numeric = index in NUMERIC
        no_wrap = numeric or (fits and index != REASON)
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=no_wrap, overflow="fold")
    for row in rows:
        quantized = row[REASON] in plan.schemes
        cells = [Text(cell) for cell in row]  # as Text, so that brackets in names are no markup
        cells[REASON].stylize("green" if quantized else "dim")
        table.add_row(*cells)
    return table


def print_verified(found: Verified, limit: int | None = None) -> None:
    """Print what is known of an output, with a table of at most `limit` weights fitted to the terminal."""
    style = terminal.style_of(sys.stdout)
    terminal.data("\n".join(verifytext.verify_summary(found, style)))
    rows = verifytext.weight_rows(found, limit)
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, heading in enumerate(verifytext.HEADINGS[: len(rows[0])]):
        numeric = index in verifytext.NUMERIC
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    terminal.data("")
    Console(file=sys.stdout, no_color=not style.color, highlight=False).print(table)
    for line in verifytext.left_out(found, limit):
        terminal.data(style.dim(line))
