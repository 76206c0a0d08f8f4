"""docs/architectures.md: what becomes of every architecture, generated from the survey."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from zoo.survey import ENOUGH, Row

__all__ = ["BELOW", "PAGE", "line", "page", "reasons", "versions"]

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
BELOW = Path(__file__).with_name("below.json")
"""{model_type: why} of the architectures of which less than `ENOUGH` is quantized."""

_UNITS = {"kB": 1000, "MB": 1000**2, "GB": 1000**3}
_HEAD = """\
# Architectures

{versions}. Written by `python scripts/architectures.py`, compared with its source by
`tests/torch/test_torch_zoo.py`.

One row for each `model_type` of transformers whose default config makes a model: {count} of them. **Stock** is the
share of the matrix weights that transformers' own `BitsAndBytesConfig(load_in_4bit=True)` quantizes, **rulequant**
that of the bundled file; the file in italics is the default for models whose family has none. Matrix weights are those
of linear layers, of fused experts and of classes of their own, in elements; embeddings, output heads and convolutions
are not counted. **Aside** are towers for images and sound, and what leads from them to the language model, which the
file keeps for a stated reason: the share of rulequant is that of the rest. Stock quantizes them, and layers whose
weight the model reads directly, which then fail ([README](../README.md#instead-of-a-skip-list)). Sizes are those of
the default config in bfloat16, before and after.

Of {count} architectures rulequant quantizes at least {enough:.0%} of the matrix weights in {reached}, stock in
{stock}. The other {below} are below the table, with the reason.

| model_type | class | rules | stock | rulequant | aside | size |
|---|---|---|---|---|---|---|
"""


def page(rows: Sequence[Row]) -> str:
    """The whole page."""
    below = [each for each in rows if each.share < ENOUGH]
    head = _HEAD.format(
        versions=versions(),
        count=len(rows),
        enough=ENOUGH,
        reached=len(rows) - len(below),
        stock=sum(_stock_share(each) >= ENOUGH for each in rows),
        below=len(below),
    )
    why = reasons()
    parts = [head, *(f"{line(each)}\n" for each in rows), f"\n## Below {ENOUGH:.0%}\n\n"]
    parts += ["| model_type | rulequant | what stays | why |\n|---|---|---|---|\n"]
    parts += [f"{below_line(each, why.get(each.model_type, ''))}\n" for each in below]
    return "".join(parts)


def versions() -> str:
    """What the page was made with."""
    return "transformers " + metadata.version("transformers").partition("+")[0]


def reasons() -> dict[str, str]:
    """Why some architectures are below `ENOUGH`."""
    found: dict[str, str] = json.loads(BELOW.read_text(encoding="utf-8"))
    return found


def line(row: Row) -> str:
    """The row of one architecture."""
    rules = f"*{row.rules}*" if row.is_default else row.rules
    aside = _percent(row.aside / row.matrix) if row.aside else ""
    shares = (_percent(_stock_share(row)), _percent(row.share)) if row.matrix else ("", "")
    sizes = f"{_size(row.bytes_before)} → {_size(row.bytes_after)}"
    return _cells([f"`{row.model_type}`", row.model_class, rules, *shares, aside, sizes])


def below_line(row: Row, reason: str) -> str:
    """The row of one architecture of which too little is quantized."""
    return _cells([f"`{row.model_type}`", _percent(row.share), row.kept, reason])


def _stock_share(row: Row) -> float:
    return row.stock / row.matrix if row.matrix else 1.0


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(share: float) -> str:
    return f"{int(share * 1000) / 10:.1f}%"  # cut, not rounded: 100.0% is all


def _size(count: float) -> str:
    unit = next((each for each in ("kB", "MB") if count < 1000 * _UNITS[each]), "GB")
    count /= _UNITS[unit]
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
