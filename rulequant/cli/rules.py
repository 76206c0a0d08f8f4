"""`rulequant rules`"""

from __future__ import annotations

import json
import sys
import textwrap

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command, format_option, model_options

__all__ = ["command"]

EXAMPLES = (
    "rulequant rules",
    "rulequant rules ./all-MiniLM-L6-v2",
    "rulequant show llama",
)


@click.command("rules", cls=Command, examples=EXAMPLES)
@click.argument("model", required=False)
@format_option()
@model_options
def command(model: str | None, form: str, trust_remote_code: bool, revision: str | None) -> None:
    """List the bundled rule files and the model types they are for; with MODEL, say which one it gets.

    Each of the names can stand for RULES and in `extends`. A file without model types is the default for models
    without a file of their family, and a base for others.
    """
    if model is not None:
        _chosen(model, form, trust_remote_code=trust_remote_code, revision=revision)
    elif form == "json":
        terminal.data(json.dumps({"format_version": 1, "rules": _listing()}, indent=1))
    else:
        _print_listing()


def _listing() -> list[dict[str, object]]:
    from rulequant.library import listing

    return [
        {"name": each.name, "models": list(each.models), "extends": list(each.extends), "description": each.description}
        for each in listing()
    ]


def _print_listing() -> None:
    from rulequant.library import listing

    style = terminal.style_of(sys.stdout)
    width = max(len(each.name) for each in listing())
    for each in listing():
        # The models are named only where they are not what the file is called.
        models = f" For {', '.join(each.models)}." if each.models and each.models != (each.name,) else ""
        text = f"{each.description}{models}"
        lines = textwrap.wrap(text, width=100 - width - 2, break_on_hyphens=False) or [""]
        terminal.data(f"{style.bold(each.name.ljust(width))}  {lines[0]}")
        for line in lines[1:]:
            terminal.data(" " * (width + 2) + line)


def _chosen(model: str, form: str, *, trust_remote_code: bool, revision: str | None) -> None:
    from rulequant.cli.inputs import bundled_for, read_inventory

    inventory = read_inventory(model, trust_remote_code=trust_remote_code, revision=revision)
    choice = bundled_for(inventory)
    if form == "json":
        found = {"model_type": inventory.model_type, "rules": choice.name, "default": choice.default is not None}
        terminal.data(json.dumps({"format_version": 1, **found}))
    else:
        terminal.data(choice.name)
