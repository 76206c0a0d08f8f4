"""What a rule file gets wrong that shows without a model: entries that can have no effect, names that nothing has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import islice
from typing import Any

from rulequant.diagnostics import Diagnostic, Location, Severity, suggestion
from rulequant.globs import Glob
from rulequant.known_types import known_types, nearest_types
from rulequant.loader import LoadedFile
from rulequant.overlap import GlobCover, SelectorCover, Steps, TooManyStepsError, covers, selector_covers
from rulequant.ruleset import OriginRule, OriginSkip, RuleSet
from rulequant.selector import LayerSlice, Selector
from rulequant.source import MAX_PROBLEMS

__all__ = ["lint"]

_STACKS = (1, 512)
"""A stack of one layer, and one of more than any model has: a slice that is empty in both is empty in all between."""
_MAX_SUGGESTIONS = 10
"""Unknown types that are compared with all known ones, which takes 50 ms each."""
_SCALARS = ("models", "quantizable_types", "output_embeddings", "scheme")


def lint(files: Sequence[LoadedFile], merged: RuleSet) -> list[Diagnostic]:
    """Findings about the last of the files, which extends the others; its parents have findings of their own.

    `files` are parents first, `merged` what they come to together. No check gives more than MAX_PROBLEMS findings.
    """
    own = files[-1]
    checks: tuple[Iterator[Diagnostic], ...] = (
        _without_effect(own, merged),
        _unused_schemes(own, merged),
        _unknown_types(own),
        _empty_slices(own),
        _idle_overrides(own, files[:-1]),
    )
    found = [each for check in checks for each in islice(check, MAX_PROBLEMS)]
    return sorted(found, key=lambda each: each.location or Location(own.file, 1, 1, 1, 1))


def _of_file(location: Location, own: LoadedFile) -> bool:
    return location.file == own.file


def _warning(code: str, message: str, place: Location, *, value: str | None = None, remedy: str) -> Diagnostic:
    return Diagnostic(code, message, place, Severity.WARNING, value=value, remedy=remedy)


def _patterns(selector: Selector) -> str:
    return ", ".join(f"`{each.text}`" for each in selector.modules)


def _where(place: Location, own: LoadedFile) -> str:
    return f"line {place.line}" if _of_file(place, own) else f"{place.file}:{place.line}"


def _without_effect(own: LoadedFile, merged: RuleSet) -> Iterator[Diagnostic]:
    """Entries and patterns that others leave nothing to do, looked for in about a second at most."""
    steps = Steps()
    try:
        rules = SelectorCover((each.selector for each in merged.rules), steps)
        skips = SelectorCover((each.selector for each in merged.skips), steps)
        yield from _shadowed_rules(own, merged, rules)
        yield from _rules_behind_skips(own, merged, skips)
        yield from _subsumed_skips(own, merged, skips)
        yield from _vain_removals(own, merged, skips)
        yield from _repeated_patterns(own, merged, steps)
    except TooManyStepsError:
        yield _warning(
            "RQ318",
            "the patterns are too many, and too much alike, to find all that have no effect",
            Location(own.file, 1, 1, 1, 1),
            remedy="join them with `*`, braces and `layers`",
        )


def _shadowed_rules(own: LoadedFile, merged: RuleSet, rules: SelectorCover) -> Iterator[Diagnostic]:
    for index, rule in enumerate(merged.rules):
        if not _of_file(rule.location, own):
            continue
        first = min(rules.of(rule.selector), default=index)
        if first < index:
            yield _warning(
                "RQ310",
                f"this rule ({_patterns(rule.selector)}) never wins: "
                f"the one at {_where(merged.rules[first].location, own)} comes first and selects all that it selects",
                rule.location,
                remedy="move it up, or remove it",
            )


def _rules_behind_skips(own: LoadedFile, merged: RuleSet, skips: SelectorCover) -> Iterator[Diagnostic]:
    for rule in merged.rules:
        wider = skips.of(rule.selector) if _of_file(rule.location, own) else []
        if wider:
            skip = merged.skips[wider[0]]
            yield _warning(
                "RQ311",
                f"this rule ({_patterns(rule.selector)}) never applies: the skip at {_where(skip.location, own)} "
                "takes all that it selects, and a skip always beats a rule",
                rule.location,
                remedy="remove one of the two, or give the skip an `except`"
                if _of_file(skip.location, own)
                else "remove it, or take the skip back: `remove_skips`",
            )


def _subsumed_skips(own: LoadedFile, merged: RuleSet, skips: SelectorCover) -> Iterator[Diagnostic]:
    for index, skip in enumerate(merged.skips):
        others = [each for each in skips.of(skip.selector) if each != index] if _of_file(skip.location, own) else []
        # Of two that say the same, the later is the one too many.
        wider = next((each for each in others if each < index or not _covers(skip, merged.skips[each])), None)
        if wider is not None:
            yield _warning(
                "RQ312",
                f"this skip ({_patterns(skip.selector)}) adds nothing: "
                f"the one at {_where(merged.skips[wider].location, own)} selects all that it selects",
                skip.location,
                remedy="remove it",
            )


def _vain_removals(own: LoadedFile, merged: RuleSet, skips: SelectorCover) -> Iterator[Diagnostic]:
    """Skips taken back whose modules another skip keeps; one that the file itself puts in their place is meant."""
    for removed in merged.removed_skips:
        wider = skips.of(removed.selector) if _of_file(removed.location, own) else []
        others = [merged.skips[each] for each in wider if not _of_file(merged.skips[each].location, own)]
        if others:
            text = removed.selector.modules[0].text
            yield _warning(
                "RQ327",
                f"taking back `{text}` changes nothing: the skip at {_where(others[0].location, own)} "
                "selects all that it selected",
                removed.location,
                value=text,
                remedy="take that one back too, or remove the entry",
            )


def _covers(wide: OriginSkip, narrow: OriginSkip) -> bool:
    return selector_covers(wide.selector, narrow.selector)


def _repeated_patterns(own: LoadedFile, merged: RuleSet, steps: Steps) -> Iterator[Diagnostic]:
    """Patterns that another pattern of the same list makes superfluous."""
    entries: list[OriginSkip | OriginRule] = [*merged.skips, *merged.rules]
    for entry in entries:
        globs = entry.selector.modules
        if len(globs) == 1 or not _of_file(entry.location, own):
            continue
        cover = GlobCover(globs, steps)
        for index, glob in enumerate(globs):
            wider = _wider(cover, globs, index)
            if wider is not None:
                yield _warning(
                    "RQ313",
                    f"the pattern `{glob.text}` adds nothing to `{wider.text}` in the same list",
                    entry.pattern_locations[index],
                    value=glob.text,
                    remedy="remove it",
                )


def _wider(cover: GlobCover, globs: Sequence[Glob], index: int) -> Glob | None:
    for number in sorted(cover.of(globs[index]) - {index}):
        if number < index or not covers(globs[index], globs[number]):
            return globs[number]
    return None


def _unused_schemes(own: LoadedFile, merged: RuleSet) -> Iterator[Diagnostic]:
    """A file without `models` is a base, whose schemes are an offer to the files that extend it."""
    if not merged.models or not (merged.scheme or merged.rules):
        return
    used = {merged.scheme, *(each.selector.scheme for each in merged.rules)}
    for name in own.content.schemes:
        if name not in used:
            place = own.document.key(("schemes", name))
            message = f"the scheme `{name}` is defined and never used"
            yield _warning("RQ314", message, place, value=name, remedy="use it in `scheme` or a rule, or remove it")


def _unknown_types(own: LoadedFile) -> Iterator[Diagnostic]:
    found = ((path, name) for path, name in _type_names(own) if not _is_known(name))
    for number, (path, name) in enumerate(found):
        near = nearest_types(name) if number < _MAX_SUGGESTIONS else []
        yield _warning(
            "RQ315",
            f"no module class of torch or transformers is called `{name}`",
            own.document.value(path),
            value=name,
            remedy=suggestion(near) or "class names are case-sensitive; a class of your own is fine",
        )


@lru_cache(maxsize=1024)
def _is_known(pattern: str) -> bool:
    known = known_types()
    return pattern in known or (bool(set("*?[") & set(pattern)) and any(fnmatchcase(each, pattern) for each in known))


def _type_names(own: LoadedFile) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for index, name in enumerate(own.content.quantizable_types):
        yield ("quantizable_types", index), name
    for key, selector, number in _selectors(own):
        for index, name in enumerate(selector.types):
            yield (key, number, "types", index), name


def _selectors(own: LoadedFile) -> Iterator[tuple[str, Selector, int]]:
    for number, skip in enumerate(own.content.skip_modules):
        yield "skip_modules", skip, number
    for number, rule in enumerate(own.content.rules):
        yield "rules", rule, number


def _empty_slices(own: LoadedFile) -> Iterator[Diagnostic]:
    for key, selector, number in _selectors(own):
        for index, layers in enumerate(selector.layers):
            if _is_empty(layers):
                yield Diagnostic(
                    "RQ316",
                    f"the slice `{layers.text}` selects no layer of any model",
                    own.document.value((key, number, "layers", index)),
                    value=layers.text,
                    remedy='the start comes before the stop, which is not included: "0:2" is layers 0 and 1',
                )


def _is_empty(layers: LayerSlice) -> bool:
    return not any(range(length)[layers.start : layers.stop : layers.step] for length in _STACKS)


def _idle_overrides(own: LoadedFile, parents: Sequence[LoadedFile]) -> Iterator[Diagnostic]:
    inherited: dict[str, tuple[Any, LoadedFile]] = {}
    for parent in parents:
        inherited |= {key: (value, parent) for key, value in _values(parent).items()}
    for key, value in _values(own).items():
        if key in inherited and inherited[key][0] == value:
            path = tuple(key.split(".", 1))
            yield _warning(
                "RQ317",
                f"`{key}` repeats what {inherited[key][1].file} says already",
                own.document.key(path),
                remedy="remove it, so that a change of the parent takes effect here too",
            )


def _values(loaded: LoadedFile) -> dict[str, Any]:
    """What a file sets that another file can override."""
    content = loaded.content
    values = {key: getattr(content, key) for key in _SCALARS if key in content.model_fields_set}
    values |= {f"schemes.{name}": scheme for name, scheme in content.schemes.items()}
    return values | {f"expect.{key}": getattr(content.expect, key) for key in content.expect.model_fields_set}
