"""What strace wrote down, as data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Seen", "read_log"]

_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")
_UNFINISHED = "<unfinished ...>"


@dataclass(frozen=True)
class Seen:
    """A call: of which process, and in which lines of the log it began and ended."""

    pid: int
    name: str
    paths: tuple[str, ...]
    """Those in it, of names and of descriptors, in order."""
    begin: int
    end: int
    failed: bool
    injected: bool
    """Whether it was made to fail."""


def read_log(log: Path, root: Path) -> Iterator[Seen]:
    """The calls of a log in the order of their ends, with the paths that are below a folder, or are that folder.

    One that another interrupts is put together again.
    """
    begun: dict[int, tuple[str, str, int]] = {}
    paths = re.compile(rf"[<\"]({re.escape(str(root))}(?:/[^>\"]*)?)[>\"]")
    for number, line in enumerate(log.read_text(errors="replace").splitlines()):
        begin = number
        if match := _LINE.match(line):
            pid, name, text = int(match[1]), match[2], match[3]
            if text.endswith(_UNFINISHED):
                begun[pid] = name, text.removesuffix(_UNFINISHED), number
                continue
        elif match := _RESUMED.match(line):
            pid = int(match[1])
            name, text, begin = begun.pop(pid, (match[2], "", number))
            text += match[3]
        else:
            continue
        arguments, _, result = text.rpartition(" = ")
        found = tuple(each.removesuffix(" (deleted)") for each in paths.findall(arguments))
        yield Seen(pid, name, found, begin, number, result.startswith("-1"), result.endswith("(INJECTED)"))
