"""What a rule file gets wrong that shows without a model: entries that can have no effect, names that nothing has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from rulequant.diagnostics import Diagnostic, Location, Severity, did_you_mean
from rulequant.globs import Glob
from rulequant.known_types import known_types
from rulequant.loader import LoadedFile
from rulequant.overlap import covers, selector_covers
from rulequant.ruleset import OriginRule, OriginSkip, RuleSet
from rulequant.selector import LayerSlice, Selector

__all__ = ["lint"]

_LONGEST_STACK = 512
"""More layers than any model stacks; a slice that is empty for all lengths up to here is empty."""
_SCALARS = ("models", "quantizable_types", "output_embeddings", "scheme")


def lint(files: Sequence[LoadedFile], merged: RuleSet) -> list[Diagnostic]:
    """Findings about the last of the files, which extends the others; its parents have findings of their own.

    `files` are parents first, `merged` what they come to together.
    """
    own = files[-1]
    checks: tuple[Iterator[Diagnostic], ...] = (
        _shadowed_rules(own, merged),
        _rules_behind_skips(own, merged),
        _subsumed_skips(own, merged),
        _repeated_patterns(own, merged),
        _unused_schemes(own, merged),
        _unknown_types(own),
        _empty_slices(own),
        _idle_overrides(own, files[:-1]),
    )
    found = [each for check in checks for each in check]
    return sorted(found, key=lambda each: each.location or Location(own.file, 1, 1, 1, 1))


def _of_file(location: Location, own: LoadedFile) -> bool:
    return location.file == own.file


def _warning(code: str, message: str, place: Location, *, value: str | None = None, remedy: str) -> Diagnostic:
    return Diagnostic(code, message, place, Severity.WARNING, value=value, remedy=remedy)


def _patterns(selector: Selector) -> str:
    return ", ".join(f"`{each.text}`" for each in selector.modules)


def _where(place: Location, own: LoadedFile) -> str:
    return f"line {place.line}" if _of_file(place, own) else f"{place.file}:{place.line}"


def _shadowed_rules(own: LoadedFile, merged: RuleSet) -> Iterator[Diagnostic]:
    for index, rule in enumerate(merged.rules):
        before = _first(merged.rules[:index], lambda each, rule=rule: selector_covers(each.selector, rule.selector))
        if before and _of_file(rule.location, own):
            yield _warning(
                "RQ310",
                f"this rule ({_patterns(rule.selector)}) never wins: the one at {_where(before.location, own)} "
                "comes first and selects all that it selects",
                rule.location,
                remedy="move it up, or remove it",
            )


def _rules_behind_skips(own: LoadedFile, merged: RuleSet) -> Iterator[Diagnostic]:
    for rule in merged.rules:
        skip = _first(merged.skips, lambda each, rule=rule: selector_covers(each.selector, rule.selector))
        if skip and _of_file(rule.location, own):
            yield _warning(
                "RQ311",
                f"this rule ({_patterns(rule.selector)}) never applies: the skip at {_where(skip.location, own)} "
                "takes all that it selects, and a skip always beats a rule",
                rule.location,
                remedy="remove one of the two, or give the skip an `except`",
            )


def _subsumed_skips(own: LoadedFile, merged: RuleSet) -> Iterator[Diagnostic]:
    for index, skip in enumerate(merged.skips):
        others = [each for number, each in enumerate(merged.skips) if number != index]
        wider = _first(others, lambda each, skip=skip: selector_covers(each.selector, skip.selector))
        # Of two that say the same, the later is the one too many.
        mutual = wider is not None and selector_covers(skip.selector, wider.selector)
        if wider is None or not _of_file(skip.location, own) or (mutual and merged.skips.index(wider) > index):
            continue
        yield _warning(
            "RQ312",
            f"this skip ({_patterns(skip.selector)}) adds nothing: the one at {_where(wider.location, own)} "
            "selects all that it selects",
            skip.location,
            remedy="remove it",
        )


def _repeated_patterns(own: LoadedFile, merged: RuleSet) -> Iterator[Diagnostic]:
    """Patterns that another pattern of the same list makes superfluous."""
    for entry in (*merged.skips, *merged.rules):
        if not _of_file(entry.location, own):
            continue
        globs = entry.selector.modules
        for index, glob in enumerate(globs):
            wider = _wider(globs, index)
            if wider is not None:
                yield _warning(
                    "RQ313",
                    f"the pattern `{glob.text}` adds nothing to `{wider.text}` in the same list",
                    entry.pattern_locations[index],
                    value=glob.text,
                    remedy="remove it",
                )


def _wider(globs: Sequence[Glob], index: int) -> Glob | None:
    for number, other in enumerate(globs):
        if number != index and covers(other, globs[index]) and (number < index or not covers(globs[index], other)):
            return other
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
    for path, name in _type_names(own):
        known = known_types()
        if name in known or any(fnmatchcase(each, name) for each in known):
            continue
        yield _warning(
            "RQ315",
            f"no module class of torch or transformers is called `{name}`",
            own.document.value(path),
            value=name,
            remedy=did_you_mean(name, known) or "class names are case-sensitive; a class of your own is fine",
        )


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
    return not any(range(length)[layers.start : layers.stop : layers.step] for length in range(1, _LONGEST_STACK))


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


def _first(
    entries: Sequence[OriginRule] | Sequence[OriginSkip], holds: Callable[[Any], bool]
) -> OriginRule | OriginSkip | None:
    return next((each for each in entries if holds(each)), None)
