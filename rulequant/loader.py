"""From rule files to a rule set: reading, checking against the models, and resolving `extends`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rulequant import source
from rulequant.bundled import PREFIX, bundled_names, bundled_path
from rulequant.diagnostics import Diagnostic, DiagnosticsError, Location, Severity, did_you_mean, has_errors
from rulequant.errors import UsageError
from rulequant.limits import past_limit, patterns_of, too_many
from rulequant.loaded import (
    LoadedFile,
    file_key,
    merge,
    patterns_in,
    pipeline_rules,
    removals_in,
    undefined_schemes,
)
from rulequant.removal import removes_nothing
from rulequant.rulefile import PIPELINE_KEYS, RuleFile
from rulequant.ruleset import RuleSet
from rulequant.source import MAX_PROBLEMS, Document

__all__ = ["LoadedFile", "Loader", "bundled_remedy", "check_rules", "load_rules"]

_MAX_SUGGESTIONS = 10
"""Undefined schemes that are compared with all defined ones, which may be thousands."""


@dataclass
class Loader:
    """Reads rule files once each and collects what is wrong with any of them."""

    diagnostics: list[Diagnostic] = field(default_factory=list)
    _seen: dict[Path, LoadedFile | None] = field(default_factory=dict)
    _reported: set[Diagnostic] = field(default_factory=set)

    def load(self, path: Path, *, file: str | None = None) -> LoadedFile | None:
        """Read one file; None where it has errors, which are then in `diagnostics`."""
        key = file_key(path)
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
        self._report("RQ001", message, Location(name, 1, 1, 1, 1), value=name, remedy=bundled_remedy(name))
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
        if loaded.content.components:
            return self._pipeline(loaded)
        parents = {each: self._parents(each) for each in ordered if each.content.remove_skips}
        merged = merge(ordered, parents)
        past = past_limit(patterns_in(merged))
        if past:
            self._add(too_many(*past))
            return None
        undefined = undefined_schemes(merged)
        known = tuple(merged.schemes)
        for number, (name, place) in enumerate(undefined[:MAX_PROBLEMS]):
            remedy = f"defined: {', '.join(known)}" if known else "define it under `schemes`"
            remedy = (did_you_mean(name, known) if number < _MAX_SUGGESTIONS else None) or remedy
            self._report("RQ301", f"no scheme is called `{name}`", place, value=name, allowed=known, remedy=remedy)
        idle = [
            found
            for each, files in parents.items()
            for removal in removals_in(each)
            if (found := removes_nothing(removal, merged, files))
        ]
        for diagnostic in idle:
            self._add(diagnostic)
        return None if undefined or idle else merged

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

    def _parents(self, loaded: LoadedFile) -> frozenset[str]:
        """The files that a file extends, directly or by way of others."""
        return frozenset(each.file for each in self.chain(loaded) or () if each is not loaded)

    def components(self, loaded: LoadedFile) -> dict[str, LoadedFile] | None:
        """The rule file of each component that a file names; None where one is missing or has errors."""
        found = {name: self._component(loaded, name, file) for name, file in loaded.content.components.items()}
        complete = {name: each for name, each in found.items() if each is not None}
        return complete if len(complete) == len(found) else None

    def _pipeline(self, loaded: LoadedFile) -> RuleSet | None:
        """A file that names components: nothing but the rule sets of those."""
        others = loaded.content.model_fields_set - PIPELINE_KEYS
        for key in sorted(others):
            message = f"`{key}` beside `components`: the rules of a component stand in its own file"
            remedy = "move it to the rule file of the component that it is about"
            self._report("RQ321", message, loaded.document.key((key,)), value=key, remedy=remedy)
        files = self.components(loaded)
        rules = {name: self.resolve(each) for name, each in (files or {}).items()}
        resolved = {name: each for name, each in rules.items() if each is not None}
        if others or files is None or len(resolved) < len(rules):
            return None
        return pipeline_rules(loaded, resolved)

    def _component(self, loaded: LoadedFile, name: str, file: str) -> LoadedFile | None:
        place = loaded.document.value(("components", name))
        found = _locate(loaded, file)
        if isinstance(found, str):
            remedy = "paths are relative to the file that names them" if _is_path(file) else bundled_remedy(file)
            self._report("RQ322", f"the component `{name}`: {found}", place, value=file, remedy=remedy)
            return None
        read = self.load(found[0], file=found[1])
        if read is not None and read.content.components:
            message = f"the component `{name}`: `{file}` names components itself, so it is no rule file of a component"
            self._report("RQ323", message, place, value=file, remedy="name the rule file of one model")
            return None
        return read

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
            remedy = "paths are relative to the file that extends" if _is_path(name) else bundled_remedy(name)
            self._report("RQ302", f"`extends`: {found}", place, value=name, remedy=remedy)
            return None
        path, file = found
        key = file_key(path)
        if any(each.key == key for each in trail):
            start = next(number for number, each in enumerate(trail) if each.key == key)
            loop = [each.file for each in trail[start:]]
            message = f"`extends` goes in a circle: {' > '.join([*loop, loop[0]])}"
            self._report("RQ303", message, place, value=name, remedy="remove one of them")
            return None
        parent = self.load(path, file=file)
        if parent is not None and parent.content.components:
            message = f"`extends`: `{name}` names components, and has no rules that a file could extend"
            self._report("RQ324", message, place, value=name, remedy="extend the rule file of a component")
            return None
        return parent

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


def bundled_remedy(name: str) -> str:
    """What to do about a name that no bundled file has: the file for that model type, or the nearest names."""
    wanted = name.removeprefix(PREFIX)
    if wanted in _files_by_type():
        return f"models of type `{wanted}` have the bundled file `{_files_by_type()[wanted]}`"
    remedy = "give a path such as ./base.yaml, or one of the names that `rulequant rules` lists"
    return did_you_mean(wanted, bundled_names()) or remedy


@cache
def _files_by_type() -> dict[str, str]:
    loader, found = Loader(), dict[str, str]()
    for name in bundled_names():
        loaded = loader.load_named(f"{PREFIX}{name}")
        found |= dict.fromkeys(loaded.content.models if loaded else (), name)
    return found
