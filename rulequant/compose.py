"""YAML events to plain data and the place of every node, refusing what rule files may not use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from rulequant.diagnostics import Diagnostic
from rulequant.scalars import MAX_NUMBER_LENGTH, NumberTooLongError, Scalar, quote, resolve
from rulequant.sourcetext import SourceText, Span, shorten
from rulequant.traps import Trap, pattern_end

__all__ = [
    "ANCHOR",
    "DUPLICATE_KEY",
    "KEY_NOT_STRING",
    "MAX_DEPTH",
    "MAX_NODES",
    "MAX_PROBLEMS",
    "NUMBER_TOO_LONG",
    "SEVERAL_DOCUMENTS",
    "TAG",
    "TOO_DEEP",
    "TOO_LARGE",
    "Composer",
    "Node",
    "StopComposing",
]

TOO_LARGE = "RQ002"
DUPLICATE_KEY = "RQ006"
ANCHOR = "RQ007"
TAG = "RQ008"
SEVERAL_DOCUMENTS = "RQ009"
KEY_NOT_STRING = "RQ010"
TOO_DEEP = "RQ011"
NUMBER_TOO_LONG = "RQ012"

MAX_DEPTH = 64
# A megabyte of `- a` would be half a million nodes and seconds; one of module names is under fifty thousand.
MAX_NODES = 50_000
MAX_PROBLEMS = 100

# What an escape must not make; only the C loader refuses it.
_SURROGATE = re.compile("[\ud800-\udfff]")
_PROPERTY = re.compile(r"\S+")


@dataclass(slots=True)
class Node:
    """The place of a value, in offsets; for a collection also of what is in it, for a mapping of its keys."""

    start: int
    end: int
    children: dict[str, Node] | list[Node] | None = None
    keys: dict[str, Span] | None = None


@dataclass(slots=True)
class _Frame:
    """A collection that is still open."""

    data: Any
    node: Node
    in_flow: bool
    is_key: bool
    """The collection itself stands where a key should."""
    key: str | None = None
    """The key whose value comes next."""
    is_dropped: bool = False
    """That value has nowhere to go: its key is wrong."""


class StopComposing(Exception):  # noqa: N818  it ends one pass over the events, and is no error to its reader
    """The rest of the stream is not worth reading; the problem is reported."""


class Composer:
    """Takes the events of one file; afterwards `data`, `root` and `problems` hold what came of them.

    `repairs` maps the end of an unquoted pattern to its start: there the parsed text holds a placeholder of
    the same length, and the scalar gets the pattern back.
    """

    def __init__(self, source: SourceText, repairs: Mapping[int, int]) -> None:
        self.data: Any = None
        self.root: Node | None = None
        self.problems: list[Diagnostic] = []
        self.is_usable = True
        self.seen = 0
        """The offset up to which events have come."""
        self.flow = 0
        """How many flow collections are open."""
        self._source = source
        self._repairs = repairs
        self._stack: list[_Frame] = []
        self._anchors: set[str] = set()
        self._nodes = 0
        self._handlers = {
            yaml.DocumentStartEvent: self._document,
            yaml.AliasEvent: self._alias,
            yaml.ScalarEvent: self._scalar,
            yaml.SequenceStartEvent: self._open,
            yaml.MappingStartEvent: self._open,
            yaml.SequenceEndEvent: self._close,
            yaml.MappingEndEvent: self._close,
        }

    def feed(self, event: Any) -> None:
        """Take the next event.

        Raises:
            Trap: the event comes from an unquoted pattern.
            StopComposing: a limit is reached, or a second document begins.
        """
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event, self._source.offset(event.start_mark), self._source.offset(event.end_mark))

    def _document(self, _event: Any, start: int, end: int) -> None:
        self.seen = end
        if self.root is None:
            return
        remedy = "keep one document per file: remove the `---` or split the file"
        self._report(SEVERAL_DOCUMENTS, "a second document begins here", (start, start + 3), remedy)
        raise StopComposing

    def _alias(self, event: Any, start: int, end: int) -> None:
        self.seen = end
        if event.anchor not in self._anchors:
            raise self._trap(start)
        message = f"{self._show((start, end))} is an alias"
        self._report(ANCHOR, message, (start, end), "write the value out, or use `extends`")
        self.is_usable = False
        if self._wants_key():
            self._stack[-1].is_dropped = True
        else:
            self._add(None, Node(start, end))

    def _scalar(self, event: Any, start: int, end: int) -> None:
        text, style = event.value, event.style
        if style == '"' and _SURROGATE.search(text):
            raise ValueError(text)
        self.seen = end
        self._count(start)
        if self.flow and 0 < start < end and self._source.text[start - 1] == "?":
            raise self._trap(start - 1)  # in a flow list `?.mlp` is a key: no space is needed there
        if event.tag is not None or event.anchor is not None:
            self._check_properties(event, start, is_bare=text == "" and not style)
        if style in ("|", ">"):  # both loaders end it where the next token begins
            end = start + len(self._source.text[start:end].rstrip())
        if self._repairs:
            text, style = self._repaired(text, style, start, end)
        if self._wants_key():
            self._take_key(text, (start, end), is_plain=not style)
        else:
            self._add(text if style else self._resolve(text, (start, end)), Node(start, end))

    def _repaired(self, text: str, style: str, start: int, end: int) -> tuple[str, str]:
        """The text and style of a scalar, with the pattern in the place of its placeholder."""
        if style == '"' and end in self._repairs:  # its start may be that of an anchor before it
            return self._source.text[self._repairs[end] : end], style
        if text and not style and self._repairs.get(start + 1) == start:
            return self._source.text[start] + text[1:], '"'
        return text, style

    def _open(self, event: Any, start: int, end: int) -> None:
        self.seen = end if event.flow_style else start
        self._count(start)
        if event.tag is not None or event.anchor is not None:
            self._check_properties(event, start, is_bare=False)
        if len(self._stack) >= MAX_DEPTH:
            message = f"more than {MAX_DEPTH} levels of nesting"
            self._report(TOO_DEEP, message, (start, start + 1), "a rule file needs about five")
            raise StopComposing
        is_mapping = type(event) is yaml.MappingStartEvent
        is_key = self._wants_key()
        if is_key:
            message = f"a {'mapping' if is_mapping else 'list'} stands where a key should"
            remedy = "write a string as the key; a pattern that holds brackets needs quotes"
            self._report(KEY_NOT_STRING, message, (start, start + 1), remedy)
            self.is_usable = False
        node = Node(start, start, {}, {}) if is_mapping else Node(start, start, [])
        self._stack.append(_Frame({} if is_mapping else [], node, bool(event.flow_style), is_key))
        self.flow += bool(event.flow_style)

    def _close(self, _event: Any, _start: int, end: int) -> None:
        frame = self._stack[-1]
        if frame.in_flow:
            self.seen = frame.node.end = end
            self._check_braces(frame)
        self._stack.pop()
        self.flow -= frame.in_flow
        if frame.is_key:
            self._stack[-1].is_dropped = True
        else:
            self._add(frame.data, frame.node)

    def _count(self, start: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            message = f"more than {MAX_NODES:,} keys and values"
            self._report(TOO_LARGE, message, (start, start), "split the file, and join the parts with `extends`")
            raise StopComposing

    def _wants_key(self) -> bool:
        if not self._stack:
            return False
        frame = self._stack[-1]
        return frame.key is None and not frame.is_dropped and isinstance(frame.data, dict)

    def _add(self, value: Any, node: Node) -> None:
        if not self._stack:
            self.data, self.root = value, node
            return
        frame = self._stack[-1]
        if not frame.in_flow:
            # The event that ends a block collection lies past the blank lines and comments that follow it.
            frame.node.end = node.end
        if isinstance(frame.node.children, list):
            frame.data.append(value)
            frame.node.children.append(node)
        elif frame.key is not None and frame.node.children is not None:
            frame.data[frame.key] = value
            frame.node.children[frame.key] = node
        frame.key, frame.is_dropped = None, False

    def _take_key(self, text: str, span: Span, *, is_plain: bool) -> None:
        frame = self._stack[-1]
        keys = frame.node.keys if frame.node.keys is not None else {}
        if is_plain and text == "<<":
            self._report(ANCHOR, "`<<` is a merge key", span, "write the keys out, or use `extends`")
            self.is_usable = False
            frame.is_dropped = True
        elif text in keys:
            message = f"the key `{shorten(text)}` is already on line {self._source.line(keys[text][0])}"
            self._report(DUPLICATE_KEY, message, span, "keep one of the two")
            frame.is_dropped = True
        else:
            if is_plain:
                self._check_key(text, span)
            frame.key = text
            keys[text] = span

    def _check_key(self, text: str, span: Span) -> None:
        try:
            value = resolve(text)
        except NumberTooLongError:
            value = 0
        if isinstance(value, str):
            return
        if text == "":
            mapping = self._stack[-1].node
            if self._source.text.startswith("?", mapping.start):
                raise self._trap(mapping.start)  # `- ?`
            self._report(KEY_NOT_STRING, "the key is empty", span, "write a key before the `:`")
            return
        kind = "null" if value is None else "a boolean" if isinstance(value, bool) else "a number"
        message = f"the key `{shorten(text)}` is {kind}, not a string"
        self._report(KEY_NOT_STRING, message, span, f"quote the key: {shorten(quote(text))}")

    def _resolve(self, text: str, span: Span) -> Scalar:
        try:
            return resolve(text)
        except NumberTooLongError:
            message = f"a number of {len(text):,} characters; {MAX_NUMBER_LENGTH} are allowed"
            self._report(NUMBER_TOO_LONG, message, span, "write a shorter number, or quote it if it is text")
            self.is_usable = False
            return None

    def _check_properties(self, event: Any, start: int, *, is_bare: bool) -> None:
        """Refuse a tag and an anchor; with nothing after it (`- !x`), it was meant as text."""
        text = self._source.text
        # The pure Python loader takes the comma of `[!x, y]` for a part of the tag.
        is_bare = is_bare or (self.flow > 0 and "," in (event.tag or ""))
        if is_bare and not text.startswith(("!!", "!<"), start):
            raise self._trap(start)
        if event.tag is not None:
            span = self._property(text.find("!", start))
            remedy = "remove it; text that starts with `!` needs quotes"
            self._report(TAG, f"{self._show(span)} is a tag", span, remedy)
        if event.anchor is not None:
            self._anchors.add(event.anchor)
            span = self._property(text.find(f"&{event.anchor}", start))
            remedy = "remove it; to share rules, use `extends`"
            self._report(ANCHOR, f"{self._show(span)} is an anchor", span, remedy)

    def _property(self, start: int) -> Span:
        match = _PROPERTY.match(self._source.text, start)
        return (start, match.end()) if match else (start, start)

    def _check_braces(self, frame: _Frame) -> None:
        """Take `{a,b}` for the glob that it is: a flow mapping of plain keys without values, on one line."""
        if not isinstance(frame.data, dict) or not frame.data:
            return
        if any(each is not None for each in frame.data.values()):
            return
        start, end = frame.node.start, frame.node.end
        if not set(self._source.text[start:end]) & set("\"':#\r\n"):
            whole = pattern_end(self._source, start, in_flow=self.flow > 1)  # `{q,k}_proj`
            raise Trap(start, max(end, whole), "{")

    def _trap(self, start: int) -> Trap:
        end = pattern_end(self._source, start, in_flow=self.flow > 0)
        return Trap(start, end, self._source.text[start])

    def _show(self, span: Span) -> str:
        return f"`{shorten(self._source.text[slice(*span)])}`"

    def _report(self, code: str, message: str, span: Span, remedy: str) -> None:
        value = shorten(self._source.text[slice(*span)]) or None
        where = self._source.location(*span)
        self.problems.append(Diagnostic(code, message, where, value=value, remedy=remedy))
        if len(self.problems) >= MAX_PROBLEMS:
            self.is_usable = False
            raise StopComposing
