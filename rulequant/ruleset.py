"""The rule set: one or more rule files resolved into what the engine evaluates, each part with its origin."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from rulequant.diagnostics import Location
from rulequant.rulefile import Expect, Rule, SkipModules
from rulequant.schemes import Scheme
from rulequant.selector import Selector

__all__ = ["DEFAULT_TYPES", "OriginRule", "OriginSkip", "RemovedSkip", "RuleSet"]

DEFAULT_TYPES = ("Linear",)


@dataclass(frozen=True, slots=True)
class OriginSkip:
    """An entry of `skip_modules`, with the places of its patterns."""

    selector: SkipModules
    location: Location
    pattern_locations: tuple[Location, ...]
    except_locations: tuple[Location, ...]


@dataclass(frozen=True, slots=True)
class RemovedSkip:
    """A pattern of a skip that a file takes back from one that it extends; the engine no longer evaluates it."""

    skip: OriginSkip
    """The skip as it was, with this pattern alone."""
    location: Location
    """Of the entry in `remove_skips`."""
    reason: str | None = None

    @property
    def selector(self) -> SkipModules:
        """What the skip selected."""
        return self.skip.selector


@dataclass(frozen=True, slots=True)
class OriginRule:
    """An entry of `rules`, with the places of its patterns and of its scheme."""

    selector: Rule
    location: Location
    pattern_locations: tuple[Location, ...]
    except_locations: tuple[Location, ...]
    scheme_location: Location


@dataclass(frozen=True)
class RuleSet:
    """What the engine evaluates: the predicate's three sets, the rules in order of precedence, and the schemes."""

    name: str
    file: str
    """The file that `extends` starts from, as the user called it."""
    description: str | None = None
    models: tuple[str, ...] = ()
    quantizable_types: tuple[str, ...] = DEFAULT_TYPES
    skips: tuple[OriginSkip, ...] = ()
    removed_skips: tuple[RemovedSkip, ...] = ()
    """What was inherited and taken back: to be told, not evaluated, and no part of what the rule set means."""
    output_embeddings: Literal["skip", "quantize"] = "skip"
    schemes: dict[str, Scheme] = field(default_factory=dict)
    scheme: str | None = None
    rules: tuple[OriginRule, ...] = ()
    expect: Expect = field(default_factory=Expect)
    components: dict[str, RuleSet] = field(default_factory=dict)
    """For a pipeline: the rule set of each component; all else is then at its default."""
    origins: dict[str, Location] = field(default_factory=dict)
    """Where each top-level key got its value, `schemes.NAME` for each scheme, `expect.KEY` for each floor."""
    files: tuple[str, ...] = ()
    """All files that were read, parents first."""

    def origin(self, key: str) -> Location:
        """Where a key got its value; the start of the file for a default."""
        return self.origins.get(key, Location(self.file, 1, 1, 1, 1))

    def to_dict(self) -> dict[str, Any]:
        """The rule set as the data of one rule file without `extends`, in precedence order."""
        data: dict[str, Any] = {"version": 1, "name": self.name}
        if self.description:
            data["description"] = self.description
        if self.components:
            return data | {"components": {name: each.file for name, each in self.components.items()}}
        if self.models:
            data["models"] = list(self.models)
        data["quantizable_types"] = list(self.quantizable_types)
        if self.skips:
            data["skip_modules"] = [_selector(each.selector) for each in self.skips]
        data["output_embeddings"] = self.output_embeddings
        data["schemes"] = {name: scheme.model_dump(mode="json", by_alias=True) for name, scheme in self.schemes.items()}
        if self.scheme:
            data["scheme"] = self.scheme
        if self.rules:
            data["rules"] = [{**_selector(each.selector), "scheme": each.selector.scheme} for each in self.rules]
        expect = self.expect.model_dump(mode="json", exclude_none=True)
        return data | ({"expect": expect} if expect else {})

    @cached_property
    def sha256(self) -> str:
        """A hash of what the rule set means: comments, layout and the split into files do not change it."""
        meaning = {key: value for key, value in self.to_dict().items() if key not in {"name", "description"}}
        if self.components:
            meaning["components"] = {name: each.sha256 for name, each in self.components.items()}
        import hashlib  # start-up: it loads OpenSSL

        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def _selector(selector: Selector) -> dict[str, Any]:
    data: dict[str, Any] = {"modules": [each.text for each in selector.modules]}
    if selector.except_:
        data["except"] = [each.text for each in selector.except_]
    if selector.types:
        data["types"] = list(selector.types)
    if selector.layers:
        data["layers"] = [each.text for each in selector.layers]
    if selector.optional:
        data["optional"] = True
    if selector.reason:
        data["reason"] = selector.reason
    return data
