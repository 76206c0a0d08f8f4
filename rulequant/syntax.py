"""What to say about a YAML syntax error.

PyYAML's two loaders agree on the place of an error and not on its words; the words here come from the text.
"""

from __future__ import annotations

import re

import yaml

from rulequant.diagnostics import Diagnostic
from rulequant.scalars import quote
from rulequant.sourcetext import SourceText, shorten

__all__ = ["SYNTAX", "escape_error", "syntax_error"]

SYNTAX = "RQ004"

_JOINED_KEY = re.compile(r"[ -]*(?P<text>(?P<key>[a-z_]+):(?P<value>\S+))[ \r]*")
_KEY_SEPARATOR = re.compile(r":[ \t]+")
_DIRECTIVE = re.compile(r"^%[^\r\n]*", re.MULTILINE)
_COMMENT = re.compile(r"[ \t]#.*")
_WORD = re.compile(r"\S+")
# An escape as far as it can be one: \x41, \u0041, \U00000041.
_ESCAPE = re.compile(r"\\(?:[xuU][0-9A-Fa-f]*|.)?", re.DOTALL)
# Half a surrogate pair, or a number past the last character.
_NO_CHARACTER = re.compile(r"\\(?:u[dD][89a-fA-F]|U0000[dD][89a-fA-F]|U(?!000|0010))[0-9a-fA-F]*")
_NO_KEY = "`:` has no key before it"
_NO_KEY_REMEDY = "write a key, or quote the text"
_INDENTATION = "check the indentation: the keys of a mapping, and the items of a list, start in one column"


def syntax_error(error: yaml.MarkedYAMLError, source: SourceText, *, seen: int) -> Diagnostic:
    """The error as a problem, where the edit is due; `seen` is the offset up to which events have come."""
    problem = error.problem or ""
    mark = error.problem_mark or error.context_mark
    at = source.offset(mark) if mark else seen
    opened = source.offset(error.context_mark) if error.context_mark else at
    directive = _directive(error, source, seen)
    if directive is not None:
        return directive
    if source.text[at : at + 1] == "\t":
        is_indent = source.text[source.line_start(at) : at].strip() == ""
        message = "a tab is used for indentation" if is_indent else "a tab cannot stand here"
        return _problem(source, at, at + 1, message, "write spaces")
    if "mapping values are not allowed" in problem:
        return _unexpected_colon(source, at)
    if "sequence entries are not allowed" in problem:
        message = "a list cannot start on the line of its key"
        return _problem(source, at, at + 1, message, "start the list on the next line, or quote the text")
    if "unexpected ':'" in problem:
        return _problem(source, at, at + 1, "`:` has no space after it", "write `key: value`, or quote the text")
    if "could not find expected ':'" in problem:
        return _missing_colon(source, opened)
    return _by_context(error, source, opened, at)


def _by_context(error: yaml.MarkedYAMLError, source: SourceText, opened: int, at: int) -> Diagnostic:
    context = error.context or ""
    if "quoted scalar" in context:
        return _quoted(error.problem or "", source, opened, at)
    if "flow sequence" in context or "flow mapping" in context:
        return _flow(source, opened, at)
    if "block mapping" in context or "block collection" in context:
        return _block(source, opened, at)
    return _other(error, source, at)


def _problem(source: SourceText, start: int, end: int, message: str, remedy: str | None) -> Diagnostic:
    value = shorten(source.text[start:end]) or None
    return Diagnostic(SYNTAX, message, source.location(start, max(start, end)), value=value, remedy=remedy)


def _directive(error: yaml.MarkedYAMLError, source: SourceText, seen: int) -> Diagnostic | None:
    """A line that starts with `%`: the C loader refuses it, the other one skips it and misses a document."""
    mark = error.context_mark or error.problem_mark
    if mark and source.text.startswith("%", source.offset(mark)):
        match = _DIRECTIVE.match(source.text, source.offset(mark))
    elif "document start" in (error.problem or ""):
        match = _DIRECTIVE.search(source.text, seen)
    else:
        return None
    if match is None:
        return None
    line = match[0].rstrip()
    remedy = f"remove the line, or quote it if it is text: {shorten(quote(line))}"
    message = f"`{shorten(line)}` is a directive that cannot stand here"
    return _problem(source, match.start(), match.start() + len(line), message, remedy)


def _unexpected_colon(source: SourceText, at: int) -> Diagnostic:
    """`key: value: x` on one line, or a colon in text that goes on from the line above."""
    start = source.line_start(at)
    separator = _KEY_SEPARATOR.search(source.text, start, at)
    if separator is None:
        joined = _JOINED_KEY.fullmatch(source.text, source.line_start(start - 1), start - 1) if start else None
        if joined:
            message = f"`{shorten(joined['text'])}` has no space after its `:`, so YAML takes it for text"
            remedy = f"write `{joined['key']}: {shorten(joined['value'])}`"
            return _problem(source, joined.start("text"), joined.end("text"), message, remedy)
        message = f"`:` is not expected here: YAML still reads the text of line {max(1, source.line(at) - 1)}"
        remedy = "end the line above with `:` if this belongs to it, or else give both the same indentation"
        return _problem(source, at, at + 1, message, remedy)
    value = _COMMENT.sub("", source.text[separator.end() : source.line_end(at)]).rstrip()
    message = f"`{shorten(value)}` holds a second `: `, which YAML takes for a key"
    remedy = f"quote the value: {shorten(quote(value))}"
    return _problem(source, separator.end(), separator.end() + len(value), message, remedy)


def _missing_colon(source: SourceText, at: int) -> Diagnostic:
    text = source.text[at : source.line_end(at)].rstrip()
    remedy = "write `key: value`, or `- item` with a space after the dash"
    return _problem(source, at, at + len(text), f"`{shorten(text)}` has no `:` after its key", remedy)


def _quoted(problem: str, source: SourceText, opened: int, at: int) -> Diagnostic:
    """An unclosed quote, or an escape that double quotes do not know."""
    if "unexpected" in problem:
        sign = source.text[opened : opened + 1]
        return _problem(source, opened, opened + 1, f"the quote `{sign}` is never closed", f"close it with `{sign}`")
    return _escape(source, max(source.text.rfind("\\", opened, at + 1), opened))


def escape_error(source: SourceText, start: int) -> Diagnostic:
    """The problem for an escape after an offset that stands for no character."""
    match = _NO_CHARACTER.search(source.text, start)
    if match is None:
        return _problem(source, start, start, "YAML cannot be read from here on", None)
    return _escape(source, match.start())


def _escape(source: SourceText, start: int) -> Diagnostic:
    match = _ESCAPE.match(source.text, start)
    end = match.end() if match else start + 1
    text = source.text[start:end]
    if text[1:2] in ("x", "u", "U"):
        remedy = "write the character itself"
    else:
        remedy = "use single quotes, or write a backslash twice: `\\\\`"
    return _problem(source, start, end, f"`{shorten(text)}` is not an escape that YAML knows", remedy)


def _flow(source: SourceText, opened: int, at: int) -> Diagnostic:
    """A flow list or mapping that lacks its end or a comma."""
    sign = source.text[opened : opened + 1]
    closer = {"[": "]", "{": "}"}.get(sign, sign)
    if source.text[at:].strip() == "":
        return _problem(source, opened, opened + 1, f"`{sign}` is never closed", f"close it with `{closer}`")
    found = _word(source, at)
    if found.startswith(":") and source.line(at) > source.line(opened):
        return _problem(source, opened, opened + 1, f"`{sign}` is never closed", f"close it with `{closer}`")
    message = f"`{shorten(found)}` is not expected here, in the `{sign}` of line {source.line(opened)}"
    remedy = f"write `,` before it or close with `{closer}`; text that holds brackets or commas needs quotes"
    return _problem(source, at, at + len(found), message, remedy)


def _block(source: SourceText, opened: int, at: int) -> Diagnostic:
    """Text that fits neither the mapping or list it stands in nor any around it."""
    found = _word(source, at)
    before = source.text[source.line_start(at) : at].rstrip()
    if before.endswith(('"', "'")):
        remedy = "put the whole value in one pair of quotes"
        return _problem(source, at, at + len(found), f"`{shorten(found)}` follows the closing quote", remedy)
    if found.startswith(":"):
        return _problem(source, at, at + 1, _NO_KEY, _NO_KEY_REMEDY)
    message = f"`{shorten(found)}` does not fit into what starts on line {source.line(opened)}"
    return _problem(source, at, at + len(found), message, _INDENTATION)


def _other(error: yaml.MarkedYAMLError, source: SourceText, at: int) -> Diagnostic:
    found = _word(source, at)
    if found.startswith(":"):
        return _problem(source, at, at + 1, _NO_KEY, _NO_KEY_REMEDY)
    if "flow node" in (error.context or ""):
        return _problem(source, at, at + 1, f"a value is missing before `{found[:1]}`", "write it, or quote the text")
    if "node content" in (error.problem or "") and found:
        message = f"`{shorten(found)}` cannot start a value"
        return _problem(source, at, at + len(found), message, f"quote it: {shorten(quote(found))}")
    if "document start" in (error.problem or ""):
        message = f"`{shorten(found)}` comes after the end of the document"
        return _problem(source, at, at + len(found), message, _INDENTATION)
    what = " ".join(each for each in (error.context, error.problem) if each)
    return _problem(source, at, at + len(found), f"YAML syntax error: {what}", None)


def _word(source: SourceText, at: int) -> str:
    """The text up to the next space, for messages."""
    match = _WORD.match(source.text, at)
    return match[0] if match else ""
