"""Words and numbers as every report writes them: safe on a terminal, sizes and counts that a person can read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["PLAIN", "Style", "columns", "count", "percent", "signed_size", "size"]

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True)
class Style:
    """Paints with ANSI escapes, or leaves text as it is."""

    color: bool = False

    def paint(self, text: str, code: str) -> str:
        """The text in a style given by its SGR numbers, such as `1;31`."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and text else text

    def bold(self, text: str) -> str:
        """Bold."""
        return self.paint(text, "1")

    def dim(self, text: str) -> str:
        """Faint."""
        return self.paint(text, "2")

    def red(self, text: str) -> str:
        """Bold red: errors."""
        return self.paint(text, "1;31")

    def yellow(self, text: str) -> str:
        """Bold yellow: warnings."""
        return self.paint(text, "1;33")

    def green(self, text: str) -> str:
        """Green: passed, quantized."""
        return self.paint(text, "32")

    def cyan(self, text: str) -> str:
        """Bold cyan: help and frames."""
        return self.paint(text, "1;36")


PLAIN = Style()


def size(nbytes: int) -> str:
    """Bytes in decimal units, three digits: `90.9 MB`."""
    amount, power = float(nbytes), 0
    while abs(amount) >= 999.5 and power + 1 < len(_UNITS):
        amount, power = amount / 1000, power + 1
    if power == 0:
        return f"{nbytes} B"
    return f"{amount:.{max(0, 2 - _digits(amount))}f} {_UNITS[power]}"


def _digits(amount: float) -> int:
    """Digits before the point, less one."""
    return len(str(int(abs(amount)))) - 1


def signed_size(nbytes: int) -> str:
    """A change in bytes, with its sign."""
    return f"{'+' if nbytes > 0 else '-' if nbytes < 0 else ''}{size(abs(nbytes))}"


def percent(share: float) -> str:
    """A share as a percentage that says all and nothing only where it is."""
    text = f"{share:.1%}"
    if text == "100.0%" and share < 1:
        return "99.9%"
    return "<0.1%" if text == "0.0%" and share > 0 else text


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 file`, `1,234 files`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def columns(rows: Iterable[Sequence[str]], *, right: frozenset[int] = frozenset(), indent: str = "") -> list[str]:
    """Rows in aligned columns, two spaces apart; the columns in `right` are aligned to the right."""
    table = [tuple(row) for row in rows]
    if not table:
        return []
    widths = [max(len(row[index]) for row in table) for index in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines
