"""Sizes as options take them: `5GB`, `500MB`, `2GiB`, or a number of bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

__all__ = ["SIZE", "Size"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
SMALLEST = 1_000


if TYPE_CHECKING:
    _Base = click.ParamType[int]
else:
    _Base = click.ParamType  # not generic before click 8.4


class Size(_Base):
    """A number of bytes; KB, MB, GB and TB are powers of 1000, as in transformers, KiB and so on of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes."""
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value).strip())
        if not found or (found[3] and not found[2]):
            self.fail(f"{value!r} is not a size; write 5GB, 500MB, 2GiB or a number of bytes", param, ctx)
        base = 1024 if found[3] else 1000
        nbytes = int(float(found[1]) * base ** _POWERS[found[2].upper()])
        if nbytes < SMALLEST:
            self.fail(f"{value!r} is less than a kilobyte; write 5GB for five gigabytes", param, ctx)
        return nbytes


SIZE = Size()
