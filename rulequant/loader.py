"""From rule files to a rule set: reading, checking against the models, and resolving `extends`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rulequant import source
from rulequant.bundled import PREFIX, bundled_names, bundled_path
from rulequant.diagnostics import Diagnostic, DiagnosticsError, Location, Severity, did_you_mean, has_errors
from rulequant.errors import UsageError
from rulequant.limits import past_limit, patterns_of, too_many
from rulequant.rulefile import RuleFile
from rulequant.ruleset import OriginRule, OriginSkip, RuleSet
from rulequant.selector import Selector
from rulequant.source import MAX_PROBLEMS, Document

__all__ = ["LoadedFile", "Loader", "check_rules", "load_rules"]

_MAX_SUGGESTIONS = 10
"""Undefined schemes that are compared with all defined ones, which may be thousands."""


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
        return _key(self.path) if self.path else None


@dataclass
class Loader:
    """Reads rule files once each and collects what is wrong with any of them."""

    diagnostics: list[Diagnostic] = field(default_factory=list)
    _seen: dict[Path, LoadedFile | None] = field(default_factory=dict)
    _reported: set[Diagnostic] = field(default_factory=set)

    def load(self, path: Path, *, file: str | None = None) -> LoadedFile | None:
        """Read one file; None where it has errors, which are then in `diagnostics`."""
        key = _key(path)
        if key not in self._seen:
            document, problems = source.read(path, file=file)
            self._seen[key] = self._check(document, problems, path)
        return self._seen[key]

    def load_named(self, name: str) -> LoadedFile | None:
        """Read what a user calls a rule file, as `load` does: an existing path first, then a bundled name."""
        bundled = bundled_path(name.removeprefix(PREFIX))
        if bundled and (name.startswith(PREFIX) or not Path(name).is_file()):
            return self.load(bundled, file=f"{PREFIX}{bundled.stem}")
        if _is_path(name) or _exists(name):
            return self.load(Path(name), file=name)
        message = f"there is neither a file nor a bundled rule file called `{name}`"
        self._report("RQ001", message, Location(name, 1, 1, 1, 1), value=name, remedy=_bundled_remedy(name))
        return None

    def load_text(self, text: str | bytes, *, file: str, path: Path | None = None) -> LoadedFile | None:
        """Read a file from its text, as `load` does."""
        document, problems = source.parse(text, file=file)
        return self._check(document, problems, path)

    def resolve(self, loaded: LoadedFile) -> RuleSet | None:
        """Merge a file with all that it extends; None where any of them has errors."""
        ordered = self.chain(loaded)
        if ordered is None:
            return None
        merged = _merge(ordered)
        past = past_limit(_patterns(merged))
        if past:
            self._add(too_many(*past))
            return None
        undefined = _undefined_schemes(merged)
        known = tuple(merged.schemes)
        for number, (name, place) in enumerate(undefined[:MAX_PROBLEMS]):
            remedy = f"defined: {', '.join(known)}" if known else "define it under `schemes`"
            remedy = (did_you_mean(name, known) if number < _MAX_SUGGESTIONS else None) or remedy
            self._report("RQ301", f"no scheme is called `{name}`", place, value=name, allowed=known, remedy=remedy)
        return None if undefined else merged

    def chain(self, loaded: LoadedFile) -> list[LoadedFile] | None:
        """The file and all that it extends, each once, parents first; None where any of them has errors."""
        ordered: list[LoadedFile] = []
        missing = 0
        # Depth first, on a stack of our own: files may extend each other deeper than Python recurses.
        trail = [loaded]
        pending = [iter(enumerate(loaded.content.extends))]
        while trail and missing < MAX_PROBLEMS:
            step = next(pending[-1], None)
            if step is None:
                pending.pop()
                ordered.append(trail.pop())
                continue
            parent = self._parent(trail, *step)
            if parent is None:
                missing += 1
            elif parent not in ordered:
                trail.append(parent)
                pending.append(iter(enumerate(parent.content.extends)))
        return None if missing else ordered

    def _check(self, document: Document | None, problems: list[Diagnostic], path: Path | None) -> LoadedFile | None:
        if document is None:
            self.diagnostics += problems
            return None
        past = past_limit(patterns_of(document.data))
        if past:
            self.diagnostics += [*problems, too_many(past[0], document.value(past[1]))]
            return None
        try:
            content = RuleFile.model_validate(document.data)
        except ValidationError as error:
            from rulequant.problems import schema_diagnostics  # a clean file does without it

            found = [*problems, *schema_diagnostics(error, document)]
            self.diagnostics += sorted(found, key=lambda each: each.location or Location(document.file, 1, 1, 1, 1))
            return None
        self.diagnostics += problems
        return None if has_errors(problems) else LoadedFile(document, content, path)

    def _parent(self, trail: list[LoadedFile], index: int, name: str) -> LoadedFile | None:
        """What the last file of the trail extends, unless that is one of the trail."""
        loaded = trail[-1]
        place = loaded.document.value(("extends", index))
        found = _locate(loaded, name)
        if isinstance(found, str):
            remedy = "paths are relative to the file that extends" if _is_path(name) else _bundled_remedy(name)
            self._report("RQ302", f"`extends`: {found}", place, value=name, remedy=remedy)
            return None
        path, file = found
        key = _key(path)
        if any(each.key == key for each in trail):
            start = next(number for number, each in enumerate(trail) if each.key == key)
            loop = [each.file for each in trail[start:]]
            message = f"`extends` goes in a circle: {' > '.join([*loop, loop[0]])}"
            self._report("RQ303", message, place, value=name, remedy="remove one of them")
            return None
        return self.load(path, file=file)

    def _report(
        self, code: str, message: str, place: Location, *, value: str, remedy: str, allowed: tuple[str, ...] = ()
    ) -> None:
        """Add an error, once: a file may be reached on several ways."""
        self._add(Diagnostic(code, message, place, value=value, allowed=allowed, remedy=remedy))

    def _add(self, diagnostic: Diagnostic) -> None:
        if diagnostic not in self._reported:
            self._reported.add(diagnostic)
            self.diagnostics.append(diagnostic)


def load_rules(rules: str | os.PathLike[str] | Mapping[str, Any]) -> RuleSet:
    """Load a rule set from a file, a bundled name, or the data of a rule file.

    Raises:
        DiagnosticsError: with every problem of every file that was read.
    """
    ruleset, diagnostics = check_rules(rules)
    if ruleset is None or has_errors(diagnostics):
        raise DiagnosticsError(each for each in diagnostics if each.severity is Severity.ERROR)
    return ruleset


def check_rules(rules: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[RuleSet | None, list[Diagnostic]]:
    """Load as `load_rules` does, but return the problems: the rule set is None where there are errors."""
    loader = Loader()
    if isinstance(rules, Mapping):
        loaded = loader.load_text(_as_text(rules), file="<mapping>")
    else:
        loaded = loader.load_named(os.fspath(rules))
    ruleset = loader.resolve(loaded) if loaded else None
    return ruleset, loader.diagnostics


def _as_text(rules: Mapping[str, Any]) -> str:
    """Plain data as YAML, so that they pass the same checks as a file and have places to point at."""
    try:
        text = json.dumps(dict(rules), indent=2, default=_path_text, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"the mapping is not the data of a rule file: {error}"
        raise UsageError(message, remedy="give what a YAML file could hold: mappings, lists, text, numbers") from error
    # JSON's surrogate pairs are two characters to YAML, which has escapes of its own.
    return re.sub("[^\x00-\x7e]", lambda found: f"\\U{ord(found[0]):08x}", text)


def _path_text(value: Any) -> str:
    """A path as its text; anything else that JSON lacks is no data of a rule file."""
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    raise TypeError(f"{type(value).__name__} {value!r:.60}")


def _key(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a NUL in it; reading it says so
        return path


def _locate(loaded: LoadedFile, name: str) -> tuple[Path, str] | str:
    """The path and display name of a parent, or what is wrong with the name."""
    if not _is_path(name):
        bundled = bundled_path(name.removeprefix(PREFIX))
        return (bundled, f"{PREFIX}{bundled.stem}") if bundled else f"no bundled rule file is called `{name}`"
    path = Path(os.path.normpath(loaded.path.parent / name if loaded.path else name))
    return (path, str(path)) if _exists(path) else f"the file `{path}` does not exist"


def _exists(path: Path | str) -> bool:
    """As Path.exists, and false for a name that is too long, or has a NUL in it."""
    return os.path.exists(path)  # noqa: PTH110


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.endswith((".yaml", ".yml"))


def _bundled_remedy(name: str) -> str:
    remedy = "give a path such as ./base.yaml, or one of the names that `rulequant rules` lists"
    return did_you_mean(name.removeprefix(PREFIX), bundled_names()) or remedy


def _merge(files: list[LoadedFile]) -> RuleSet:
    """Fold the files into one, parents first: the later file wins, its rules come first, skips add up."""
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
        values["skips"] = (*values.get("skips", ()), *_skips(each))
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


def _skips(loaded: LoadedFile) -> list[OriginSkip]:
    return [
        OriginSkip(each, *_places(loaded, ("skip_modules", index), each))
        for index, each in enumerate(loaded.content.skip_modules)
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


def _patterns(merged: RuleSet) -> Iterator[tuple[str, Location]]:
    """All patterns of the rule set, with their places."""
    entries: list[OriginSkip | OriginRule] = [*merged.skips, *merged.rules]
    for each in entries:
        globs = (*each.selector.modules, *each.selector.except_)
        places = (*each.pattern_locations, *each.except_locations)
        yield from ((glob.text, place) for glob, place in zip(globs, places, strict=True))


def _undefined_schemes(merged: RuleSet) -> list[tuple[str, Location]]:
    """Scheme names that nothing defines, and where they stand."""
    named = [(merged.scheme, merged.origin("scheme"))] if merged.scheme else []
    named += [(each.selector.scheme, each.scheme_location) for each in merged.rules]
    return sorted(((name, place) for name, place in named if name not in merged.schemes), key=lambda each: each[1])
