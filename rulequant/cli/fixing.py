"""`validate --fix` and `validate --diff`: what of the files is mended before the rest is reported."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from rulequant.cli import terminal
from rulequant.errors import UsageError
from rulequant.escaping import printable
from rulequant.fixes import Fixed, fix_file, fix_text, unified_diff
from rulequant.loader import LoadedFile, Loader
from rulequant.report.text import count
from rulequant.source import MAX_BYTES

__all__ = ["PreviewLoader", "fix_all", "show_diff", "tell", "write_stdin"]

STDIN = "-"


@dataclass
class PreviewLoader(Loader):
    """Reads some files as they would be after `--fix`."""

    texts: Mapping[Path, str] = field(default_factory=dict)
    """By real path."""

    def load(self, path: Path, *, file: str | None = None) -> LoadedFile | None:
        """Read one file, or take its text."""
        key = Path(os.path.realpath(path)) if self.texts else path
        if key in self.texts and key not in self._seen:
            self._seen[key] = self.load_text(self.texts[key], file=file or str(path), path=path)
        return super().load(path, file=file)


def fix_all(paths: Sequence[str], stdin: bytes, *, stdin_name: str, write: bool) -> dict[str, Fixed]:
    """The files, and stdin as `-`, that have fixes; with `write` the files are written, but for the bundled ones.

    Raises:
        UsageError: a file cannot be written, or stdin is too large to be given back.
    """
    if len(stdin) > MAX_BYTES:
        raise UsageError(
            f"stdin holds more than {MAX_BYTES:,} bytes", remedy="split it, and join the parts with `extends`"
        )
    fixed = {}
    for path in paths:
        found = _fix_stdin(stdin, stdin_name) if path == STDIN else fix_file(path, write=write)
        if found and found.applied:
            fixed[path] = found
    return fixed


def _fix_stdin(content: bytes, name: str) -> Fixed | None:
    try:
        return fix_text(content.decode(), file=name)
    except UnicodeDecodeError:
        return None


def write_stdin(content: bytes) -> None:
    """Write what stdin has become, to the byte."""
    click.echo(content, nl=False)


def show_diff(fixed: Mapping[str, Fixed], *, stdin_name: str) -> None:
    """Write what would change to stdout, to the byte, for `git apply`."""
    for path, each in fixed.items():
        name = stdin_name if path == STDIN else path
        click.echo(unified_diff(name, each.before, each.after).encode(), nl=False)


def tell(fixed: Mapping[str, Fixed], *, written: bool, quiet: bool) -> None:
    """Say on stderr what was mended, or would be."""
    mended = [each for one in fixed.values() for each in one.applied]
    if written:
        for each in mended:
            terminal.message(printable(f"{each.location}: fixed {each.code}: {each.message}"))
    if mended and not quiet:
        done = "fixed" if written else "would fix"
        terminal.message(f"{done} {count(len(mended), 'problem')} in {count(len(fixed), 'file')}")
