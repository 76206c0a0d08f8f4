"""Tables on a terminal; the one place that needs rich beside the progress bar."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rulequant.cli import terminal
from rulequant.plan import Plan
from rulequant.report import verifytext
from rulequant.report.plantext import HEADINGS, NUMERIC, decision_rows, heaviest, is_quantized, plan_summary
from rulequant.verification import Verified

__all__ = ["print_plan", "print_verified"]

REASON = HEADINGS.index("scheme, or why not")
LEAST_REASON = 12
"""Columns below which reasons are not squeezed."""
SPARED = ("before", "parameters", "type")
"""The columns that are left out of a narrow terminal, in this order."""


def print_plan(plan: Plan, *, every: bool = False) -> None:
    """Print summary, table and the heaviest unquantized types, fitted to the terminal."""
    style = terminal.style_of(sys.stdout)
    console = Console(file=sys.stdout, no_color=not style.color, highlight=False)
    terminal.data("\n".join(plan_summary(plan, style)) + "\n")
    rows = decision_rows(plan.decisions, every=every)
    shown = _columns(rows, console.width)
    console.print(_table(plan, rows, shown, console.width))
    if left_out := [each for each in HEADINGS if each not in shown]:
        text = f"The terminal is too narrow for {' and '.join(left_out)}; a pipe or a file shows all columns."
        terminal.data(f"\n{style.dim(text)}")
    left = heaviest(plan)
    if left:
        terminal.data("\n".join(["", style.bold("Heaviest unquantized"), *left]))


def _columns(rows: Sequence[tuple[str, ...]], width: int) -> tuple[str, ...]:
    """The columns for which there is room beside whole names; all of them where not even the names have it."""
    shown: tuple[str, ...] = HEADINGS
    for each in ("", *SPARED):
        shown = tuple(heading for heading in shown if heading != each)
        if _fits(rows, shown, width):
            return shown
    return HEADINGS


def _fits(rows: Sequence[tuple[str, ...]], shown: Sequence[str], width: int) -> bool:
    """Whether nothing but reasons has to be squeezed."""
    natural = (
        LEAST_REASON if index == REASON else max(len(cell) for cell in column) + 2
        for index, column in enumerate(zip(HEADINGS, *rows, strict=True))
        if HEADINGS[index] in shown
    )
    return sum(natural) <= width


def _table(plan: Plan, rows: Sequence[tuple[str, ...]], shown: Sequence[str], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    fits = _fits(rows, shown, width)
    for heading in shown:
        numeric = HEADINGS.index(heading) in NUMERIC
        # A name in two halves cannot be searched for or copied: the reasons give way first.
        no_wrap = numeric or (fits and heading != HEADINGS[REASON])
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=no_wrap, overflow="fold")
    for row in rows:
        cells = {heading: Text(cell) for heading, cell in zip(HEADINGS, row, strict=True)}  # brackets are no markup
        cells[HEADINGS[REASON]].stylize("green" if is_quantized(row, plan) else "dim")
        table.add_row(*(cells[heading] for heading in shown))
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
