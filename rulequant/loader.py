"""From rule files to a rule set: reading, checking against the models, and resolving `extends`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rulequant import source
from rulequant.bundled import PREFIX, bundled_names, bundled_path
from rulequant.diagnostics import Diagnostic, DiagnosticsError, Location, Severity, did_you_mean, has_errors
from rulequant.problems import schema_diagnostics
from rulequant.rulefile import RuleFile
from rulequant.ruleset import OriginRule, OriginSkip, RuleSet
from rulequant.source import Document

__all__ = ["LoadedFile", "Loader", "check_rules", "load_rules"]


@dataclass(frozen=True)
class LoadedFile:
    """One rule file that was read and fits the models; its `extends` are not resolved yet."""

    document: Document
    content: RuleFile
    path: Path | None
    """Where relative `extends` start from; None for bundled files and data without a file."""

    @property
    def file(self) -> str:
        """How messages call it."""
        return self.document.file


@dataclass
class Loader:
    """Reads rule files once each and collects what is wrong with any of them."""

    diagnostics: list[Diagnostic] = field(default_factory=list)
    _seen: dict[Path, LoadedFile | None] = field(default_factory=dict)

    def load(self, path: Path, *, file: str | None = None) -> LoadedFile | None:
        """Read one file; None where it has errors, which are then in `diagnostics`."""
        key = Path(os.path.realpath(path))
        if key not in self._seen:
            document, problems = source.read(path, file=file)
            self._seen[key] = self._check(document, problems, path)
        return self._seen[key]

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
        problems = list(_undefined_schemes(merged))
        self.diagnostics += problems
        return None if problems else merged

    def chain(self, loaded: LoadedFile) -> list[LoadedFile] | None:
        """The file and all that it extends, parents first; None where any of them has errors."""
        return self._ordered(loaded, chain=())

    def _check(self, document: Document | None, problems: list[Diagnostic], path: Path | None) -> LoadedFile | None:
        self.diagnostics += problems
        if document is None:
            return None
        try:
            content = RuleFile.model_validate(document.data)
        except ValidationError as error:
            self.diagnostics += schema_diagnostics(error, document)
            return None
        return None if has_errors(problems) else LoadedFile(document, content, path)

    def _ordered(self, loaded: LoadedFile, *, chain: tuple[str, ...]) -> list[LoadedFile] | None:
        """The file and all that it extends, each once, parents first."""
        chain = (*chain, loaded.file)
        files: list[LoadedFile] = []
        complete = True
        for index, name in enumerate(loaded.content.extends):
            parent = self._parent(loaded, name, index, chain)
            ancestors = parent and self._ordered(parent, chain=chain)
            if not ancestors:
                complete = False
                continue
            files += [each for each in ancestors if each.file not in {known.file for known in files}]
        return [*files, loaded] if complete else None

    def _parent(self, loaded: LoadedFile, name: str, index: int, chain: tuple[str, ...]) -> LoadedFile | None:
        place = loaded.document.value(("extends", index))
        found = _locate(loaded, name)
        if isinstance(found, str):
            self._error("RQ302", f"`extends`: {found}", place, value=name, remedy=_extends_remedy(name))
            return None
        path, file = found
        if file in chain:
            loop = " > ".join((*chain[chain.index(file) :], file))
            self._error("RQ303", f"`extends` goes in a circle: {loop}", place, value=name, remedy="remove one of them")
            return None
        return self.load(path, file=file)

    def _error(self, code: str, message: str, place: Location, *, value: str, remedy: str | None) -> None:
        self.diagnostics.append(Diagnostic(code, message, place, value=value, remedy=remedy))


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
        # As text, so that plain data passes the same checks and has places to point at.
        loaded = loader.load_text(json.dumps(rules, indent=2, default=str), file="<mapping>")
    else:
        path, file = _named(os.fspath(rules))
        loaded = loader.load(path, file=file)
    ruleset = loader.resolve(loaded) if loaded else None
    return ruleset, loader.diagnostics


def _named(name: str) -> tuple[Path, str]:
    """The file of what a user calls a rule file: an existing path first, then a bundled name."""
    path = Path(name)
    bundled = bundled_path(name.removeprefix(PREFIX))
    if bundled and (name.startswith(PREFIX) or not path.is_file()):
        return bundled, f"{PREFIX}{bundled.stem}"
    return path, name


def _locate(loaded: LoadedFile, name: str) -> tuple[Path, str] | str:
    """The path and display name of a parent, or what is wrong with the name."""
    if not _is_path(name):
        bundled = bundled_path(name.removeprefix(PREFIX))
        return (bundled, f"{PREFIX}{bundled.stem}") if bundled else f"no bundled rule file is called `{name}`"
    if loaded.path is None and not Path(name).is_absolute():
        base = Path()
    else:
        base = loaded.path.parent if loaded.path else Path()
    path = Path(os.path.normpath(base / name))
    return (path, str(path)) if path.exists() else f"the file `{path}` does not exist"


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.endswith((".yaml", ".yml"))


def _extends_remedy(name: str) -> str:
    if _is_path(name):
        return "paths are relative to the file that extends"
    return did_you_mean(name, bundled_names()) or (
        "give a path such as ./base.yaml, or one of the names that `rulequant rules` lists"
    )


def _merge(files: list[LoadedFile]) -> RuleSet:
    """Fold the files into one, parents first: the later file wins, its rules come first, skips add up."""
    values: dict[str, Any] = {}
    origins: dict[str, Location] = {}
    for each in files:
        content, document = each.content, each.document
        for key in ("models", "quantizable_types", "output_embeddings", "scheme"):
            if key in content.model_fields_set and getattr(content, key) is not None:
                values[key] = getattr(content, key)
                origins[key] = document.key((key,))
        for name, scheme in content.schemes.items():
            values.setdefault("schemes", {})[name] = scheme
            origins[f"schemes.{name}"] = document.key(("schemes", name))
        if content.expect.model_fields_set:
            values["expect"] = values.get("expect", content.expect).model_copy(
                update=content.expect.model_dump(exclude_unset=True)
            )
            origins["expect"] = document.key(("expect",))
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
        OriginSkip(
            each,
            loaded.document.value(("skip_modules", index)),
            _places(loaded, ("skip_modules", index), len(each.modules)),
        )
        for index, each in enumerate(loaded.content.skip_modules)
    ]


def _rules(loaded: LoadedFile) -> list[OriginRule]:
    return [
        OriginRule(
            each,
            loaded.document.value(("rules", index)),
            _places(loaded, ("rules", index), len(each.modules)),
        )
        for index, each in enumerate(loaded.content.rules)
    ]


def _places(loaded: LoadedFile, path: tuple[str, int], count: int) -> tuple[Location, ...]:
    """The place of each pattern; a bare string or single item has the place of the whole."""
    return tuple(loaded.document.value((*path, "modules", number)) for number in range(count))


def _undefined_schemes(merged: RuleSet) -> list[Diagnostic]:
    """Scheme names that nothing defines."""
    named = [(merged.scheme, merged.origin("scheme"))] if merged.scheme else []
    named += [(each.selector.scheme, each.location) for each in merged.rules]
    known = list(merged.schemes)
    return [
        Diagnostic(
            "RQ301",
            f"no scheme is called `{name}`",
            place,
            value=name,
            allowed=tuple(known),
            remedy=did_you_mean(name, known)
            or (f"defined: {', '.join(known)}" if known else "define it under `schemes`"),
        )
        for name, place in named
        if name not in merged.schemes
    ]
