"""A commented rule file to start from, made for one pipeline: which component gets which bundled rule file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rulequant.checks import HEAVY
from rulequant.diagnostics import has_errors
from rulequant.escaping import printable
from rulequant.inventory import Inventory
from rulequant.library import choose
from rulequant.loader import load_rules
from rulequant.planner import make_plan
from rulequant.report.rulestext import scalar
from rulequant.report.text import columns, percent, size

__all__ = ["pipeline_starter_text"]

_DECODER = "Autoencoder"
"""What the class of a VAE begins with."""


def pipeline_starter_text(model: str, kind: str, components: Mapping[str, Inventory | str]) -> str:
    """YAML that validates cleanly; components come as inventories, or as the reason why there is none.

    What makes up little of the pipeline, or draws the image in the end, is left to be copied.
    """
    rows = list(_rows(components))
    taken = [row for row in rows if not row[0].startswith("#")]
    lines = [
        f"# Rules for {printable(model)} ({printable(kind)}). What is not named, or not a model, is copied.",
        "# `rulequant plan` shows what they come to; a bundled file may be replaced by one of your own, such as",
        f"# `rulequant init {printable(model)}/COMPONENT -o COMPONENT.yaml` writes: COMPONENT: ./COMPONENT.yaml",
        "version: 1",
        f"name: {scalar(f'{kind}-quantized')}",
        "components:" if taken else "components: {}  # none is chosen: take one of these",
        *columns(rows, indent="  "),
    ]
    return "\n".join(lines) + "\n"


def _rows(components: Mapping[str, Inventory | str]) -> Iterator[tuple[str, str]]:
    total = sum(_bytes(each) for each in components.values() if isinstance(each, Inventory))
    for name, each in components.items():
        if isinstance(each, str):
            yield f"# {name}:", f"# {printable(each)}"
            continue
        share, chosen = _bytes(each) / max(1, total), choose(each).name
        why = _why_not(each, chosen, share)
        about = f"# {printable(each.architecture or '')}, {size(_bytes(each))}, {percent(share)} of the models"
        yield f"{'# ' if why else ''}{name}: {chosen}", f"{about}{f'; {why}' if why else ''}"


def _why_not(inventory: Inventory, rules: str, share: float) -> str | None:
    """Why a component is left to be copied."""
    plan = make_plan(load_rules(rules), inventory)
    if has_errors(plan.diagnostics):
        return "the bundled file does not fit it"
    if (inventory.architecture or "").startswith(_DECODER):
        return "what it gets wrong is seen in every image"
    return "little is saved by it" if share < HEAVY else None


def _bytes(inventory: Inventory) -> int:
    return sum(each.nbytes for each in inventory.modules)
