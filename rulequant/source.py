"""The text of a rule file to plain data and the place of every key and value, strictly.

YAML 1.2 core scalars; no duplicate keys, anchors, aliases, tags, second documents, or keys other than text.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from rulequant.compose import (
    ANCHOR,
    DUPLICATE_KEY,
    KEY_NOT_STRING,
    MAX_DEPTH,
    MAX_NODES,
    MAX_PROBLEMS,
    NUMBER_TOO_LONG,
    SEVERAL_DOCUMENTS,
    TAG,
    TOO_DEEP,
    TOO_LARGE,
    Composer,
    Node,
    StopComposing,
)
from rulequant.diagnostics import Diagnostic, Location
from rulequant.sourcetext import SourceText
from rulequant.traps import UNQUOTED_PATTERN, Trap, find_trap

__all__ = [
    "ANCHOR",
    "DUPLICATE_KEY",
    "EMPTY_FILE",
    "KEY_NOT_STRING",
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_NODES",
    "MAX_PROBLEMS",
    "NOT_TEXT",
    "NUMBER_TOO_LONG",
    "SEVERAL_DOCUMENTS",
    "TAG",
    "TOO_DEEP",
    "TOO_LARGE",
    "UNQUOTED_PATTERN",
    "UNREADABLE",
    "DataPath",
    "Document",
    "parse",
    "read",
]

UNREADABLE = "RQ001"
NOT_TEXT = "RQ003"
EMPTY_FILE = "RQ013"

MAX_BYTES = 1 << 20

DataPath = tuple[str | int, ...]

# The C parser where PyYAML has it: ten times as fast. Tests set the other one.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Each unquoted pattern costs a pass over the text before it, and a glance at the rest: so much in characters.
_MAX_REREAD = MAX_BYTES // 2
# What YAML does not allow in a file, and three line breaks of YAML 1.1 (U+0085, U+2028, U+2029) that editors
# and YAML 1.2 take for plain characters: a comment would end there for this reader and not for a reviewer.
_FORBIDDEN = "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
_ASCII_BREAKS = str.maketrans("", "", "\t\n\r")
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Document:
    """What a file holds, as plain data, and where each part of it stands.

    A path holds keys and indices from the root; one that does not exist stands for its nearest parent.
    """

    file: str
    """The name that locations carry."""
    text: str = field(repr=False)
    """The decoded text, without a byte order mark."""
    data: Any
    """dict, list, str, int, float, bool or None."""
    _source: SourceText = field(repr=False)
    _root: Node = field(repr=False)

    def key(self, path: DataPath) -> Location:
        """The place of the key that a path ends in; for a list item, of its value."""
        found = self._walk(path)
        name = path[len(found) - 2] if len(found) > 1 else None
        parent = found[-2] if len(found) > 1 else self._root
        if isinstance(name, str) and parent.keys is not None:
            return self._source.location(*parent.keys[name])
        return self._source.location(found[-1].start, found[-1].end)

    def value(self, path: DataPath) -> Location:
        """The place of the value at a path, from its first to its last character."""
        node = self._walk(path)[-1]
        return self._source.location(node.start, node.end)

    def raw(self, path: DataPath) -> str | None:
        """The source text of a scalar, quotes and all; None for a collection or where there is nothing."""
        found = self._walk(path)
        if len(found) <= len(path) or found[-1].children is not None:
            return None
        return self.text[found[-1].start : found[-1].end]

    def _walk(self, path: DataPath) -> list[Node]:
        """The nodes along a path, the root first, as far as they exist."""
        nodes = [self._root]
        for part in path:
            child = _child(nodes[-1], part)
            if child is None:
                break
            nodes.append(child)
        return nodes


def _child(node: Node, part: str | int) -> Node | None:
    if isinstance(node.children, dict) and isinstance(part, str):
        return node.children.get(part)
    if isinstance(node.children, list) and isinstance(part, int) and 0 <= part < len(node.children):
        return node.children[part]
    return None


def read(path: Path | str, *, file: str | None = None) -> tuple[Document | None, list[Diagnostic]]:
    """Read and parse a file; `file` is the name in messages, or else the path.

    Only a regular file is opened, so that a pipe or a device cannot hang the caller.
    """
    name = str(path) if file is None else file
    try:
        content = _read_regular(path)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        remedy = "check its permissions" if isinstance(error, PermissionError) else "check the path"
        return None, [_about_file(UNREADABLE, f"cannot read `{name}`: {reason}", name, remedy)]
    if isinstance(content, str):
        return None, [_about_file(UNREADABLE, f"cannot read `{name}`: it is {content}", name, "give a regular file")]
    return parse(content, file=name)


def _read_regular(path: Path | str) -> bytes | str:
    """The first MAX_BYTES + 1 bytes of a file, or what else than a regular file it is."""
    kind = _kind(Path(path).stat().st_mode)
    if kind is not None:
        return kind
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as stream:
        # Once more, of what was opened: the path may lead elsewhere by now.
        return _kind(os.fstat(descriptor).st_mode) or stream.read(MAX_BYTES + 1)


def _kind(mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"


def parse(text: str | bytes, *, file: str) -> tuple[Document | None, list[Diagnostic]]:
    """Parse a rule file's text: the document, and every problem found, in the order of the text.

    Both, where a problem leaves the rest worth checking: a tag, a duplicate key, an unquoted pattern.
    """
    decoded = _decode(text, file)
    if isinstance(decoded, Diagnostic):
        return None, [decoded]
    source = SourceText.of(file, decoded)
    composer, problems = _compose(source)
    if _is_empty(composer):
        empty = _about_file(EMPTY_FILE, f"`{file}` is empty", file, "start with `version: 1`")
        return None, problems or [empty]
    if composer.root is None or not composer.is_usable:
        return None, problems
    return Document(file, decoded, composer.data, source, composer.root), problems


def _is_empty(composer: Composer) -> bool:
    """Whether there is no document, or one with nothing in it (`---`)."""
    root = composer.root
    if root is None:
        return True
    return composer.data is None and root.start == root.end


def _decode(text: str | bytes, file: str) -> str | Diagnostic:
    size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        message = f"`{file}` is larger than {MAX_BYTES:,} bytes"
        return _about_file(TOO_LARGE, message, file, "split the file, and join the parts with `extends`")
    try:
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        return _not_utf8(error, file)
    text = text.removeprefix("\ufeff")
    if text.isascii() and (not text or text.translate(_ASCII_BREAKS).isprintable()):
        return text  # start-up: the expression takes milliseconds to compile
    found = re.search(_FORBIDDEN, text)
    return text if found is None else _forbidden(SourceText.of(file, text), found.start())


def _not_utf8(error: UnicodeDecodeError, file: str) -> Diagnostic:
    content: bytes = error.object
    before = SourceText.of(file, content[: error.start].decode())
    if content.startswith(_UTF_16_MARKS):
        message = "the file is UTF-16, not UTF-8"
    else:
        message = f"the byte 0x{content[error.start]:02x} is not UTF-8"
    return Diagnostic(NOT_TEXT, message, before.location(len(before.text)), remedy="save the file as UTF-8")


def _forbidden(source: SourceText, at: int) -> Diagnostic:
    char = source.text[at]
    escape = f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"
    is_character = not "\ud800" <= char <= "\udfff"
    remedy = f'remove it, or write it as an escape in double quotes: "{escape}"' if is_character else "remove it"
    message = f"the character U+{ord(char):04X} is not allowed in a YAML file"
    return Diagnostic(NOT_TEXT, message, source.location(at, at + 1), value=escape, remedy=remedy)


def _compose(source: SourceText) -> tuple[Composer, list[Diagnostic]]:
    """All problems, and the last of as many passes over the text as the unquoted patterns take."""
    traps: dict[int, Trap] = {}
    text, reread = source.text, 0
    while True:
        composer = Composer(source, {each.end: each.start for each in traps.values()})
        trap, errors = _feed(composer, text, source)
        if trap is None:
            break
        placeholder = trap.placeholder
        is_stuck = text.startswith(placeholder, trap.start)
        for start in [each for each in traps if trap.start <= each < trap.end]:
            del traps[start]
        traps[trap.start] = trap
        text = text[: trap.start] + placeholder + text[trap.end :]
        reread += trap.end + len(text) // 32
        if is_stuck or reread > _MAX_REREAD or len(traps) >= MAX_PROBLEMS:
            composer.is_usable = False
            break
    problems = [*(trap.diagnostic(source) for trap in traps.values()), *composer.problems, *errors]
    return composer, sorted(problems, key=_place)


def _place(diagnostic: Diagnostic) -> tuple[int, int]:
    where = diagnostic.location
    return (where.line, where.column) if where else (0, 0)


def _feed(composer: Composer, text: str, source: SourceText) -> tuple[Trap | None, list[Diagnostic]]:
    """One pass: feed all events; the unquoted pattern or the syntax error that ended it early."""
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            composer.feed(event)
        return None, []
    except StopComposing:
        return None, []
    except Trap as trap:
        return trap, []
    except yaml.MarkedYAMLError as error:
        found = find_trap(error, replace(source, text=text), seen=composer.seen, flow=composer.flow)
        from rulequant.syntax import syntax_error  # start-up: only where something is wrong

        problem = syntax_error(error, source, seen=composer.seen)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        # The pure Python loader lets chr() fail on an escape such as "\U00110000".
        from rulequant.syntax import escape_error

        found, problem = None, escape_error(source, composer.seen)
    if found is not None:
        return found, []
    composer.is_usable = False
    return None, [problem]


def _about_file(code: str, message: str, file: str, remedy: str) -> Diagnostic:
    return Diagnostic(code, message, Location(file, 1, 1, 1, 1), value=file, remedy=remedy)
