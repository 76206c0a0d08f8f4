"""What a pattern that matches nothing may have meant: the nearest patterns that the model has modules for."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator

from rulequant.diagnostics import closest
from rulequant.globs import Glob
from rulequant.globtext import GlobError
from rulequant.inventory import Inventory

__all__ = ["nearest_names"]

_MAX_ALTERNATIVES = 8
_MAX_TYPOS = 3
"""So many alternatives of the braces, and misspelt segments, are looked at; who errs more often reads the inventory."""


def nearest_names(pattern: str, inventory: Inventory, *, count: int = 3) -> list[str]:
    """The patterns most like one that matches nothing, each of which matches something in the model.

    A misspelt segment is corrected, a prefix added or taken away; failing that, whole names are compared, whose
    numbers become `*`.
    """
    try:
        glob = Glob.parse(pattern)
    except GlobError:
        return []
    exact = dict.fromkeys((*_elsewhere(glob, inventory), *_corrected(glob, inventory)))
    return list(exact or dict.fromkeys(_alike(glob, inventory)))[:count]


def _elsewhere(glob: Glob, inventory: Inventory) -> Iterator[str]:
    """The pattern at another depth: `**.mlp` for `mlp`, `**.layers.0.mlp` for `transformer.layers.0.mlp`."""
    segments = glob.text.split(".")
    if segments[0] == "**" or set(glob.text) & set("{}"):
        return
    for start in range(max(1, len(segments) - 1)):
        candidate = ".".join(("**", *segments[start:]))
        if _matches_something(candidate, inventory):
            yield candidate
            return


def _corrected(glob: Glob, inventory: Inventory) -> Iterator[str]:
    """The pattern with each segment that the model lacks replaced by one that it has."""
    vocabulary = {each for name in inventory.by_name for each in name.split(".") if not each.isdecimal()}
    for alternative in glob.alternatives[:_MAX_ALTERNATIVES]:
        typos = [each for each in alternative if each not in vocabulary and not set(each) & set("*?[")]
        typos = [each for each in dict.fromkeys(typos) if not each.isdecimal()]
        if not 0 < len(typos) <= _MAX_TYPOS:
            continue
        for better in itertools.product(*(closest(each, vocabulary, count=2) for each in typos)):
            segments = glob.text.split(".")  # with its braces, where the misspelt segment is outside them
            segments = segments if set(typos) <= set(segments) else list(alternative)
            fixes = dict(zip(typos, better, strict=True))
            candidate = ".".join(fixes.get(each, each) for each in segments)
            if _matches_something(candidate, inventory):
                yield candidate


def _alike(glob: Glob, inventory: Inventory) -> Iterator[str]:
    """Names of the model, numbers as `*`; only their last segments where the pattern starts with `**`."""
    for alternative in glob.alternatives[:_MAX_ALTERNATIVES]:
        anchored = alternative[0] != "**"
        wanted = alternative if anchored else alternative[1:]
        shapes: dict[str, None] = {}
        for name in inventory.by_name:
            segments = ["*" if each.isdecimal() else each for each in name.split(".")]
            shapes.setdefault(".".join(segments if anchored else segments[-len(wanted) :]))
        found = difflib.get_close_matches(".".join(wanted), list(shapes), n=3, cutoff=0.6) if wanted else []
        yield from (each if anchored else f"**.{each}" for each in found)


def _matches_something(pattern: str, inventory: Inventory) -> bool:
    try:
        glob = Glob.parse(pattern)
    except GlobError:
        return False
    return any(glob.matches(name) for name in inventory.by_name)
