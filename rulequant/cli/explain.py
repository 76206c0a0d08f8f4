"""`rulequant explain`"""

from __future__ import annotations

import sys

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command
from rulequant.errors import UsageError

__all__ = ["command"]

EXAMPLES = (
    "rulequant explain RQ101",
    "rulequant explain rq405 rq406",
)


@click.command("explain", cls=Command, examples=EXAMPLES)
@click.argument("codes", metavar="[CODE]...", nargs=-1)
def command(codes: tuple[str, ...]) -> None:
    """Explain a diagnostic code: what it means, why it matters, and an example put right.

    Without CODE all codes are listed.
    """
    from rulequant.codes import CODES, explanation
    from rulequant.report.text import columns

    style = terminal.style_of(sys.stdout)
    if not codes:
        for line in columns([each.code, each.severity.value, each.title] for each in CODES.values()):
            terminal.data(style.bold(line[:5]) + line[5:])
        return
    texts = []
    for given in codes:
        head, _, rest = explanation(CODES[_known(given)]).partition("\n")
        texts.append(f"{style.bold(head.replace('`', ''))}\n{rest}")
    terminal.data("\n\n\n".join(texts))


def _known(given: str) -> str:
    from rulequant.codes import CODES
    from rulequant.diagnostics import did_you_mean

    code = given.strip().upper()
    code = f"RQ{code}" if code.isdigit() else code
    if code in CODES:
        return code
    raise UsageError(
        f"no diagnostic has the code `{given}`",
        remedy=did_you_mean(code, CODES) or "`rulequant explain` lists all codes",
    )
