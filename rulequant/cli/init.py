"""`rulequant init`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command, model_options

if TYPE_CHECKING:
    from rulequant.inventory import Inventory
    from rulequant.torch.pipeline import Pipeline

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
    classes that hold its parameters, its output embeddings, its routers. For a pipeline of diffusers it names the
    bundled file of each component.
    """
    from rulequant.cli.inputs import read_modules
    from rulequant.inventory import Inventory
    from rulequant.starter import starter_text

    found = read_modules(model, trust_remote_code=trust_remote_code, revision=revision)
    text = starter_text(found) if isinstance(found, Inventory) else _of_pipeline(found)
    if output is None or output == "-":
        terminal.data(text.rstrip("\n"))
        return
    from rulequant.cli.output import write_text

    write_text(Path(output), text)
    terminal.message(f"{output} is written; see what it comes to: rulequant plan {model} {output}")


def _of_pipeline(pipeline: Pipeline) -> str:
    from rulequant.errors import ModelError
    from rulequant.pipeline_starter import pipeline_starter_text

    components: dict[str, Inventory | str] = {}
    for name in pipeline.models:
        try:
            components[name] = pipeline.skeleton(name).inventory()
        except ModelError as error:  # noqa: PERF203  such a component can be copied all the same
            components[name] = error.message
    return pipeline_starter_text(pipeline.name, pipeline.kind, components)
