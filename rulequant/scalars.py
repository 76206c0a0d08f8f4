"""YAML 1.2 core scalars: what an unquoted text means, and how to quote it."""

from __future__ import annotations

import math
import re

__all__ = ["MAX_NUMBER_LENGTH", "NumberTooLongError", "Scalar", "quote", "resolve"]

Scalar = str | int | float | bool | None

# No longer number means anything here, and Python's int() takes quadratic time and refuses 4,300 digits.
MAX_NUMBER_LENGTH = 31

_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((f"{sign}.{word}" for sign in ("", "+") for word in ("inf", "Inf", "INF")), math.inf),
    **dict.fromkeys((f"-.{word}" for word in ("inf", "Inf", "INF")), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
_NUMBER_STARTS = frozenset("+-.0123456789")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


class NumberTooLongError(ValueError):
    """An unquoted number has more characters than MAX_NUMBER_LENGTH."""


def resolve(text: str) -> Scalar:
    """The value of an unquoted scalar under the core schema of YAML 1.2.2 (section 10.3.2).

    So `no`, `1_000` and `2024-01-01` are strings, `010` is ten and `1e-3` is a number.

    Raises:
        NumberTooLongError: a number of more than MAX_NUMBER_LENGTH characters.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMBER_STARTS:
        return text
    return _resolve_number(text)


def _resolve_number(text: str) -> Scalar:
    if _INTEGER.fullmatch(text):
        return int(_checked(text))
    if _OCTAL.fullmatch(text):
        return int(_checked(text)[2:], 8)
    if _HEXADECIMAL.fullmatch(text):
        return int(_checked(text)[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(_checked(text))
    return text


def _checked(number: str) -> str:
    if len(number) > MAX_NUMBER_LENGTH:
        raise NumberTooLongError(number)
    return number


def quote(text: str) -> str:
    """The text as a quoted YAML scalar: in double quotes unless it holds one, or a backslash."""
    if '"' in text or "\\" in text:
        return "'" + text.replace("'", "''") + "'"
    return f'"{text}"'
