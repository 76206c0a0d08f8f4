"""`rulequant why`"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from rulequant.cli import terminal
from rulequant.cli.command import Command, format_option, model_options
from rulequant.errors import UsageError

if TYPE_CHECKING:
    from rulequant.inventory import Inventory

__all__ = ["command"]

EXAMPLES = (
    "rulequant why ./all-MiniLM-L6-v2 pooler.dense",
    "rulequant why inventories/llama.json rules.yaml model.layers.0.self_attn.q_proj",
)


@click.command("why", cls=Command, examples=EXAMPLES)
@click.argument("model")
@click.argument("rest", metavar="[RULES] MODULE", nargs=-1, required=True)
@format_option()
@model_options
def command(model: str, rest: tuple[str, ...], form: str, trust_remote_code: bool, revision: str | None) -> None:
    """Show each test of the predicate and each skip and rule tried for one module, and which decided.

    MODEL and RULES are as for plan. MODULE is the name that `plan --all` shows, in a pipeline of diffusers with the
    component's name before it. Skips and rules that miss by little are marked with `~`.
    """
    from rulequant.cli.inputs import read_modules, read_rules
    from rulequant.inventory import Inventory
    from rulequant.report.whytext import contents_text, trace_text
    from rulequant.trace import contents, find_module, trace

    if len(rest) > 2:
        raise click.UsageError(f"`{rest[2]}` is one argument too many: write MODEL [RULES] MODULE")
    *before, module = rest
    rules = before[0] if before else None
    found = read_modules(model, trust_remote_code=trust_remote_code, revision=revision)
    if not isinstance(found, Inventory):
        from rulequant.cli.pipelines import component_of

        inventory, ruleset, local = component_of(found, rules, module)
        info = find_module(local, inventory)
    else:
        inventory = found
        _check_is_no_rule_file(module, inventory)
        info = find_module(module, inventory)
        ruleset, warnings = read_rules(rules, inventory)
        terminal.problems(warnings)
    style = terminal.style_of(sys.stdout)
    if info.tensors:
        traced = trace(info, ruleset, inventory)
        terminal.data(json.dumps(traced.to_dict(), indent=1) if form == "json" else trace_text(traced, style))
    else:
        inside = contents(info, ruleset, inventory)
        terminal.data(json.dumps(inside.to_dict(), indent=1) if form == "json" else contents_text(inside, style))


def _check_is_no_rule_file(name: str, inventory: Inventory) -> None:
    """Say so where RULES were given and MODULE was not, or in the wrong order."""
    from rulequant.bundled import bundled_path

    if name not in inventory.by_name and (name.endswith((".yaml", ".yml")) or bundled_path(name)):
        raise UsageError(f"`{name}` is a rule file, and MODULE comes last", remedy="write MODEL RULES MODULE")
