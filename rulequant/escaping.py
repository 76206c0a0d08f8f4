"""Text from outside made safe to print."""

from __future__ import annotations

__all__ = ["module_text", "printable"]


def module_text(name: str) -> str:
    """A module in a sentence: its name in backticks; the root has none."""
    return f"`{name}`" if name else "the model itself"


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with control characters, line breaks and half surrogates as escapes, but for those in `keep`.

    Names come from model files and rule files: on a terminal `\x1b` in them could move the cursor or hide a line.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _escape(each) for each in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
