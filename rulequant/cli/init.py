"""`rulequant init`"""

from __future__ import annotations

from pathlib import Path

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command, model_options

__all__ = ["command"]

EXAMPLES = (
    "rulequant init ./all-MiniLM-L6-v2 -o rules.yaml",
    "rulequant init inventories/llama.json",
)


@click.command("init", cls=Command, examples=EXAMPLES)
@click.argument("model")
@click.option("-o", "--output", metavar="FILE", help="Where to write, a file that does not exist; stdout where it is "
              "absent or `-`.")  # fmt: skip
@model_options
def command(model: str, output: str | None, trust_remote_code: bool, revision: str | None) -> None:
    """Write a commented rule file for MODEL to start from.

    It extends the bundled file of the model's family, or the default for its task, and names what the model has: the
    classes that hold its parameters, its output embeddings, its routers.
    """
    from rulequant.cli.inputs import read_inventory
    from rulequant.starter import starter_text

    inventory = read_inventory(model, trust_remote_code=trust_remote_code, revision=revision)
    text = starter_text(inventory)
    if output is None or output == "-":
        terminal.data(text.rstrip("\n"))
        return
    from rulequant.cli.output import write_text

    write_text(Path(output), text)
    terminal.message(f"{output} is written; see what it comes to: rulequant plan {model} {output}")
