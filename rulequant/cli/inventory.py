"""`rulequant inventory`"""

from __future__ import annotations

from pathlib import Path

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command, model_options

__all__ = ["command"]

EXAMPLES = (
    "rulequant inventory ./llama-3-8b -o inventories/llama-3-8b.json",
    "rulequant plan inventories/llama-3-8b.json rules/llama.yaml",
)

STDOUT = "-"


@click.command("inventory", cls=Command, examples=EXAMPLES)
@click.argument("model")
@click.option("-o", "--output", metavar="FILE", help="Where to write; stdout where it is absent or `-`.")
@model_options
def command(model: str, output: str | None, trust_remote_code: bool, revision: str | None) -> None:
    """Save the modules of MODEL as JSON: names, classes, shapes and dtypes, without weights.

    The file is small enough to commit beside the rule files. plan, why, diff, init and `validate --model` take it for
    MODEL and then need no torch.
    """
    from rulequant.cli.inputs import read_inventory
    from rulequant.inventory_file import dump_inventory, is_inventory

    inventory = read_inventory(model, trust_remote_code=trust_remote_code, revision=revision)
    text = dump_inventory(inventory)
    if output is None or output == STDOUT:
        terminal.data(text.rstrip("\n"))
        return
    from rulequant.cli.output import write_text
    from rulequant.report.text import count, size

    path = Path(output)
    write_text(path, text, replaces=is_inventory, what="an inventory")
    modules = count(len(inventory.modules), "module")
    terminal.message(f"{path}: {modules}, {inventory.parameters:,} parameters, {size(len(text.encode()))}")
