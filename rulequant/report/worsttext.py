"""The modules that came out worst, as far as a look at some of their values tells."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from rulequant.escaping import printable
from rulequant.report.verifytext import share
from rulequant.verification import Sample

__all__ = ["worst_data", "worst_rows"]

MOST = 5
_FEW = 3


def worst_data(samples: Mapping[str, Sample]) -> list[dict[str, Any]]:
    """The first few of them, worst first, as JSON-ready data; the errors are of `sampled_values` values."""
    return [
        {"name": name, "relative_error": each.relative_error, "sampled_values": each.values}
        for name, each in islice(samples.items(), MOST)
    ]


def worst_rows(samples: Mapping[str, Sample]) -> list[tuple[str, str]]:
    """(label, text) lines for a summary; none where nothing was measured."""
    lines = [f"{share(each.relative_error)}  {printable(name)}" for name, each in islice(samples.items(), _FEW)]
    lines[:1] = [f"{each} (relative error, sampled)" for each in lines[:1]]
    return [("" if number else "worst modules", line) for number, line in enumerate(lines)]
