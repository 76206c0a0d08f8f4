"""`rulequant validate`"""

from __future__ import annotations

import click

from rulequant.cli.checking import STDIN, check_files
from rulequant.cli.command import Command, model_options
from rulequant.errors import UsageError
from rulequant.report.overview import FORMATS

__all__ = ["command"]

EXAMPLES = (
    "rulequant validate rules/",
    "rulequant validate llama.yaml --model inventories/llama-3-8b.json",
    "rulequant validate rules/ --fix",
    "git show HEAD:rules.yaml | rulequant validate - --stdin-filename rules.yaml",
)


@click.command("validate", cls=Command, examples=EXAMPLES)
@click.argument("files", metavar="[FILE|FOLDER|-]...", nargs=-1)
@click.option("--format", "form", type=click.Choice(FORMATS), default="full", show_default=True, help="How to print.")
@click.option("--model", "models", metavar="MODEL", multiple=True,
              help="A model that the patterns must match in: an inventory file (which needs no torch), or what plan "
              "takes. May be given several times.")  # fmt: skip
@click.option("--stdin-filename", metavar="NAME", help="What messages call the text from stdin, and where its relative "
              "`extends` start.")  # fmt: skip
@click.option("--fix", is_flag=True, help="Mend what has one right answer, and report the rest; comments, quotes and "
              "order stay. What comes from stdin goes to stdout.")  # fmt: skip
@click.option("--diff", is_flag=True, help="Print what --fix would change, and write nothing.")
@click.option("-q", "--quiet", is_flag=True, help="No summary line.")
@model_options
def command(
    files: tuple[str, ...],
    form: str,
    models: tuple[str, ...],
    stdin_filename: str | None,
    fix: bool,
    diff: bool,
    quiet: bool,
    trust_remote_code: bool,
    revision: str | None,
) -> None:
    """Check rule files: their YAML, keys and values, patterns, and what they extend.

    Of a FOLDER all *.yaml and *.yml inside are checked, at any depth, but for hidden folders. A quoted glob such as
    "rules/**/*.yaml" is opened up. `-` reads stdin.
    With --model, a pattern that matches in none of the models is an error, and one that matches only in some a warning.

    Exits 1 if there is an error (with --diff also if there is a change), 2 if a file cannot be read; warnings alone
    exit 0.
    """
    if stdin_filename and STDIN not in files:
        raise UsageError("--stdin-filename names the text of stdin, and no FILE is `-`")
    if fix and diff:
        raise UsageError("--fix writes what --diff only prints", remedy="give one of them")
    code = check_files(
        files, form=form, models=models, stdin_filename=stdin_filename, fix=fix, diff=diff, quiet=quiet,
        trust_remote_code=trust_remote_code, revision=revision,
    )  # fmt: skip
    if code:
        click.get_current_context().exit(code)
