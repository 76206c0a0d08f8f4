"""Checking rule files: what `rulequant validate` does, without click, whose import hooks would wait for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rulequant.cli import terminal
from rulequant.errors import UsageError
from rulequant.report.overview import exit_code, in_order, summary

if TYPE_CHECKING:
    from rulequant.diagnostics import Diagnostic
    from rulequant.fixes import Fixed
    from rulequant.inventory import Inventory
    from rulequant.loader import LoadedFile, Loader
    from rulequant.ruleset import RuleSet

__all__ = ["STDIN", "check_files"]

STDIN = "-"
SUFFIXES = (".yaml", ".yml")
WILDCARDS = frozenset("*?[")
WHOLE = frozenset({"json", "sarif"})
"""The formats that say something where there is nothing to say."""


def check_files(
    files: Sequence[str],
    *,
    form: str = "full",
    models: Sequence[str] = (),
    stdin_filename: str | None = None,
    fix: bool = False,
    diff: bool = False,
    quiet: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> int:
    """Check files and folders and report what is wrong with them; returns the exit code.

    Raises:
        UsageError: the arguments do not fit together, or a folder holds no rule file.
    """
    paths = _expanded(files)
    inventories = _inventories(models, trust_remote_code=trust_remote_code, revision=revision)
    run = _Run(inventories, _stdin() if STDIN in paths else b"", stdin_filename)
    if fix or diff:
        run.fix(paths, write=fix, quiet=quiet)
    for path in paths:
        run.check(path)
    code = _report(run, paths, form=form, quiet=quiet, to_stdout=not diff and not (fix and STDIN in paths))
    return code or int(diff and bool(run.fixed))


def _stdin() -> bytes:
    from rulequant.source import MAX_BYTES

    return sys.stdin.buffer.read(MAX_BYTES + 1)


def _expanded(files: Sequence[str]) -> list[str]:
    """The files to check, folders opened up, each file once however it is called."""
    if not files:
        raise UsageError(
            "nothing to check", remedy="give files or folders, or `-` for stdin: rulequant validate rules/"
        )
    chosen: dict[str, str] = {}
    for name in files:
        for each in _named(name):
            chosen.setdefault(each if each == STDIN else os.path.realpath(each), each)
    return list(chosen.values())


def _named(name: str) -> list[str]:
    """What an argument stands for: a file, the rule files in a folder, or what a quoted glob matches."""
    if os.path.isdir(name):  # noqa: PTH112  pathlib costs time at start-up
        return _inside(name)
    if name == STDIN or os.path.lexists(name) or not WILDCARDS & set(name):
        return [name]
    from glob import glob  # start-up: shells open globs up themselves

    found = [each for path in sorted(glob(name, recursive=True)) for each in _named(path)]  # noqa: PTH207  as above
    if not found:
        raise UsageError(f"{name} matches no file", remedy="check the pattern, or give the folder")
    return found


def _inside(folder: str) -> list[str]:
    found = list(_walk(folder))
    if not found:
        raise UsageError(f"{folder} holds no *.yaml or *.yml file", remedy="give the folder that holds the rule files")
    return found


def _walk(folder: str) -> Iterator[str]:
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(names):
            if name.endswith(SUFFIXES):
                yield os.path.join(above, name)  # noqa: PTH118  as in the arguments, `./` included


def _inventories(models: Sequence[str], *, trust_remote_code: bool, revision: str | None) -> list[Inventory]:
    if not models:
        return []
    from rulequant.cli.inputs import read_inventory

    return [read_inventory(each, trust_remote_code=trust_remote_code, revision=revision) for each in models]


class _Run:
    """One loader for all files, so that a parent that several extend is read and reported once."""

    def __init__(self, inventories: list[Inventory], stdin: bytes, stdin_filename: str | None) -> None:
        from rulequant.loader import Loader

        self.diagnostics: list[Diagnostic] = []
        self.texts: dict[str, str] = {}
        self.fixed: dict[str, Fixed] = {}
        self.loader: Loader = Loader(self.diagnostics)
        self._inventories = inventories
        self._stdin = stdin
        self._stdin_filename = stdin_filename

    def fix(self, paths: Sequence[str], *, write: bool, quiet: bool) -> None:
        """Mend what can be, in the files or for show, so that `check` finds the rest."""
        from rulequant.cli import fixing

        self.fixed = fixing.fix_all(paths, self._stdin, stdin_name=self._stdin_filename or "<stdin>", write=write)
        if STDIN in self.fixed:
            self._stdin = self.fixed[STDIN].after.encode()
        if write and STDIN in paths:
            fixing.write_stdin(self._stdin)
        elif not write:
            fixing.show_diff(self.fixed, stdin_name=self._stdin_filename or "stdin")
            self.texts = {path: each.after.removeprefix("\ufeff") for path, each in self.fixed.items()}
            after = {Path(os.path.realpath(path)): each.after for path, each in self.fixed.items() if path != STDIN}
            self.loader = fixing.PreviewLoader(self.diagnostics, texts=after)
        fixing.tell(self.fixed, written=write, quiet=quiet)

    def check(self, path: str) -> None:
        """Collect all that is wrong with a file and with what it extends."""
        loaded = self._load_stdin() if path == STDIN else self.loader.load(Path(path))
        if loaded is None:
            return
        rules = self.loader.resolve(loaded)
        chain = rules and self.loader.chain(loaded)
        if rules is None or not chain:
            return
        from rulequant.lint import lint

        if rules.components:
            for name, each in (self.loader.components(loaded) or {}).items():
                self._lint_component(each, rules.components[name])
            return
        self.diagnostics += lint(chain, rules)
        if self._inventories:
            from rulequant.across import check_across

            self.diagnostics += check_across(rules, self._inventories)

    def _lint_component(self, loaded: LoadedFile, rules: RuleSet) -> None:
        """As for a file that is named; once, though several pipelines may name it."""
        from rulequant.lint import lint

        found = lint(self.loader.chain(loaded) or [], rules)
        self.diagnostics += [each for each in found if each not in self.diagnostics]

    def _load_stdin(self) -> LoadedFile | None:
        filename = self._stdin_filename
        name = filename or "<stdin>"
        self.texts[name] = self._stdin.decode("utf-8", "replace").removeprefix("\ufeff")
        return self.loader.load_text(self._stdin, file=name, path=Path(filename) if filename else None)


def _report(run: _Run, paths: Sequence[str], *, form: str, quiet: bool, to_stdout: bool) -> int:
    found = in_order(run.diagnostics)
    if found or form in WHOLE:
        from rulequant.report.findings import Sources, findings

        style = terminal.style_of(sys.stdout if to_stdout else sys.stderr)
        text = findings(found, form, sources=Sources(run.texts), style=style, files=paths)
        (terminal.data if to_stdout else terminal.message)(text)
    if not quiet:
        terminal.message(summary(len(paths), found))
    return exit_code(found)
