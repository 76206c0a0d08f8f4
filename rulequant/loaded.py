"""Rule files as they were read, and one of them merged with all that it extends."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rulequant.bundled import PREFIX
from rulequant.diagnostics import Location
from rulequant.removal import Removal, take_back
from rulequant.rulefile import RuleFile
from rulequant.ruleset import OriginRule, OriginSkip, RuleSet
from rulequant.selector import Selector
from rulequant.source import Document

__all__ = ["LoadedFile", "file_key", "merge", "patterns_in", "pipeline_rules", "removals_in", "undefined_schemes"]


@dataclass(frozen=True, eq=False)
class LoadedFile:
    """One rule file that was read and fits the models; its `extends` are not resolved yet."""

    document: Document
    content: RuleFile
    path: Path | None
    """Where relative `extends` start from; None for data without a file."""

    @property
    def file(self) -> str:
        """How messages call it."""
        return self.document.file

    @cached_property
    def key(self) -> Path | None:
        """The same for all spellings of its path."""
        return file_key(self.path) if self.path else None


def file_key(path: Path) -> Path:
    """The same for all spellings of a path."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a NUL in it; reading it says so
        return path


def merge(files: list[LoadedFile], parents: Mapping[LoadedFile, frozenset[str]]) -> RuleSet:
    """Fold the files into one, parents first: the later file wins, its rules come first, skips add up.

    `parents` names the files that a file extends, of those with `remove_skips`, whose reach they are.
    """
    values: dict[str, Any] = {}
    origins: dict[str, Location] = {}
    for each in files:
        content, document = each.content, each.document
        for key in ("models", "quantizable_types", "output_embeddings", "scheme"):
            if key in content.model_fields_set and getattr(content, key) is not None:
                values[key] = getattr(content, key)
                origins[key] = document.value((key,)) if key == "scheme" else document.key((key,))
        for name, scheme in content.schemes.items():
            values.setdefault("schemes", {})[name] = scheme
            origins[f"schemes.{name}"] = document.key(("schemes", name))
        if content.expect.model_fields_set:
            values["expect"] = values.get("expect", content.expect).model_copy(
                update=content.expect.model_dump(exclude_unset=True)
            )
            origins |= {f"expect.{key}": document.key(("expect", key)) for key in content.expect.model_fields_set}
        kept, removed = take_back(values.get("skips", ()), removals_in(each), parents.get(each, frozenset()))
        values["skips"] = (*kept, *_skips(each))
        values["removed_skips"] = (*values.get("removed_skips", ()), *removed)
        values["rules"] = (*_rules(each), *values.get("rules", ()))
    last = files[-1]
    return RuleSet(
        name=last.content.name or Path(last.file.removeprefix(PREFIX)).stem,
        file=last.file,
        description=last.content.description,
        origins=origins,
        files=tuple(each.file for each in files),
        **values,
    )


def pipeline_rules(loaded: LoadedFile, components: dict[str, RuleSet]) -> RuleSet:
    """The rule set of a file that names components."""
    place = loaded.document.key
    origins = {"components": place(("components",))} | {
        f"components.{name}": place(("components", name)) for name in components
    }
    return RuleSet(
        name=loaded.content.name or Path(loaded.file.removeprefix(PREFIX)).stem,
        file=loaded.file,
        description=loaded.content.description,
        components=components,
        origins=origins,
        files=tuple(dict.fromkeys([*(file for each in components.values() for file in each.files), loaded.file])),
    )


def _skips(loaded: LoadedFile) -> list[OriginSkip]:
    return [
        OriginSkip(each, *_places(loaded, ("skip_modules", index), each))
        for index, each in enumerate(loaded.content.skip_modules)
    ]


def removals_in(loaded: LoadedFile) -> list[Removal]:
    """The patterns under `remove_skips`, in order."""
    return [
        Removal(text, loaded.document.value(("remove_skips", index, "modules", number)), each.reason)
        for index, each in enumerate(loaded.content.remove_skips)
        for number, text in enumerate(each.modules)
    ]


def _rules(loaded: LoadedFile) -> list[OriginRule]:
    return [
        OriginRule(
            each,
            *_places(loaded, ("rules", index), each),
            scheme_location=loaded.document.value(("rules", index, "scheme")),
        )
        for index, each in enumerate(loaded.content.rules)
    ]


def _places(
    loaded: LoadedFile, path: tuple[str, int], selector: Selector
) -> tuple[Location, tuple[Location, ...], tuple[Location, ...]]:
    """The places of the entry, of its patterns and of its exceptions; a bare string has that of the whole."""
    place = loaded.document.value
    return (
        place(path),
        tuple(place((*path, "modules", number)) for number in range(len(selector.modules))),
        tuple(place((*path, "except", number)) for number in range(len(selector.except_))),
    )


def patterns_in(merged: RuleSet) -> Iterator[tuple[str, Location]]:
    """All patterns of the rule set, with their places."""
    entries: list[OriginSkip | OriginRule] = [*merged.skips, *merged.rules]
    for each in entries:
        globs = (*each.selector.modules, *each.selector.except_)
        places = (*each.pattern_locations, *each.except_locations)
        yield from ((glob.text, place) for glob, place in zip(globs, places, strict=True))


def undefined_schemes(merged: RuleSet) -> list[tuple[str, Location]]:
    """Scheme names that nothing defines, and where they stand."""
    named = [(merged.scheme, merged.origin("scheme"))] if merged.scheme else []
    named += [(each.selector.scheme, each.scheme_location) for each in merged.rules]
    return sorted(((name, place) for name, place in named if name not in merged.schemes), key=lambda each: each[1])
