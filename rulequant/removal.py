"""Skips that a file takes back from those that it extends, by the text of their patterns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from rulequant.diagnostics import Diagnostic, Location, did_you_mean
from rulequant.ruleset import OriginSkip, RemovedSkip, RuleSet

__all__ = ["TAKEN_BACK", "Removal", "removes_nothing", "take_back", "taken_back"]

TAKEN_BACK = "skip taken back"
"""How the detail of a decision begins that would be another with an inherited skip."""
_LISTED = 5


@dataclass(frozen=True, slots=True)
class Removal:
    """A pattern under `remove_skips`."""

    text: str
    location: Location
    reason: str | None = None


def take_back(
    skips: Sequence[OriginSkip], removals: Iterable[Removal], parents: Collection[str]
) -> tuple[tuple[OriginSkip, ...], tuple[RemovedSkip, ...]]:
    """The skips without the patterns that are taken back, and those; only files among the parents are touched.

    Patterns are compared as text: what is removed is what somebody wrote and can be pointed at, whatever the model.
    """
    removed: list[RemovedSkip] = []
    kept = tuple(skips)
    for removal in removals:
        touched = [each for each in kept if each.location.file in parents and removal.text in _texts(each)]
        removed += [RemovedSkip(_only(each, {removal.text}), removal.location, removal.reason) for each in touched]
        rest = {id(each): _only(each, {*_texts(each)} - {removal.text}) for each in touched}
        kept = tuple(left for each in kept if _texts(left := rest.get(id(each), each)))
    return kept, tuple(removed)


def _texts(skip: OriginSkip) -> list[str]:
    return [each.text for each in skip.selector.modules]


def _only(skip: OriginSkip, texts: Collection[str]) -> OriginSkip:
    """The skip with some of its patterns."""
    chosen = [
        (glob, place)
        for glob, place in zip(skip.selector.modules, skip.pattern_locations, strict=True)
        if glob.text in texts
    ]
    selector = skip.selector.model_copy(update={"modules": tuple(glob for glob, _ in chosen)})
    return replace(skip, selector=selector, pattern_locations=tuple(place for _, place in chosen))


def taken_back(removed: RemovedSkip) -> str:
    """What is told of a decision that a skip would have turned into a "no"."""
    reason = f": {removed.reason}" if removed.reason else ""
    return f"{TAKEN_BACK} ({removed.selector.modules[0].text}){reason}"


def removes_nothing(removal: Removal, merged: RuleSet, parents: Collection[str]) -> Diagnostic | None:
    """The error where no skip of the files that a file extends has the pattern."""
    if any(each.location == removal.location for each in merged.removed_skips):
        return None
    removed = [each.skip for each in merged.removed_skips]
    inherited = [each for each in (*merged.skips, *removed) if each.location.file in parents]
    texts = list(dict.fromkeys(text for each in inherited for text in _texts(each)))
    before = next((each for each in merged.removed_skips if removal.text in _texts(each.skip)), None)
    if before:
        message = f"the skip `{removal.text}` is taken back already at {before.location.file}:{before.location.line}"
        remedy = "remove one of the two"
    elif parents:
        message = f"no skip that the file inherits has the pattern `{removal.text}`"
        remedy = did_you_mean(removal.text, texts) or _listed(texts)
    else:
        message = f"`{removal.text}` cannot be taken back: the file extends no other, so it inherits no skips"
        remedy = "add `extends`, or remove the entry"
    return Diagnostic("RQ326", message, removal.location, value=removal.text, allowed=tuple(texts), remedy=remedy)


def _listed(texts: Sequence[str]) -> str:
    if not texts:
        return "remove the entry: the files that it extends skip nothing"
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return f"patterns are written as they stand there: {', '.join(f'`{each}`' for each in texts[:_LISTED])}{more}"
