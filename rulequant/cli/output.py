"""Writing a result to a file: whole or not at all, and never over something that rulequant did not write."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from rulequant.errors import UsageError

__all__ = ["write_text"]


def write_text(
    path: Path, text: str, *, replaces: Callable[[Path], bool] = lambda _: False, what: str | None = None
) -> None:
    """Write a file by way of a temporary one beside it; an existing one is replaced only where it is `what` we write.

    Raises:
        UsageError: something else is there, or the file cannot be written.
    """
    if path.is_symlink() and not path.exists():
        raise UsageError(f"{path} is a broken link", remedy="remove it, or choose another name")
    if path.exists() and not (path.is_file() and replaces(path)):
        kind = "folder" if path.is_dir() else "file"
        is_not = f" and is not {what}" if what else ""
        raise UsageError(f"{path} exists{is_not}", remedy=f"choose another name, or remove the {kind}")
    try:
        _replace(path.resolve(), text)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}", remedy="check the folder and its permissions"
        ) from error


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
