"""docs/architectures.md: what becomes of every architecture, generated from the survey."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from zoo.classes import architectures
from zoo.forward import known_runs
from zoo.proof import refused, without
from zoo.survey import ENOUGH, Row

__all__ = ["BELOW", "PAGE", "below_line", "line", "page", "proof_lines", "reasons", "versions"]

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

**Proven** is what the tests run with a tiny random model of the class, all of it quantized that the engine lets
through, skips of rule files aside. *Round trip*: apply writes its checkpoint, `from_pretrained` loads that, and what it
puts out is to the bit that of the model quantized in memory. *Forward*: it runs quantized in memory, and the checkpoint
does not come so far. *Nothing*: no tiny model of it runs. The reasons are below the table too.

| model_type | class | rules | stock | rulequant | aside | size | proven |
|---|---|---|---|---|---|---|---|
"""
_PROVEN = """
## Proven by a tiny model

Of all {count} architectures of transformers, those without a default model among them, {runs} have a tiny model that
runs, quantized too; {round_trips} make the round trip. For {others} the config was completed, since the default one
makes no model: {names}.

| model_type | proven | what keeps it from the round trip |
|---|---|---|
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
    parts += [_proven_head({each.model_type for each in rows}), *(f"{each}\n" for each in proof_lines())]
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
    return _cells([f"`{row.model_type}`", row.model_class, rules, *shares, aside, sizes, _proven(row.model_type)])


def below_line(row: Row, reason: str) -> str:
    """The row of one architecture of which too little is quantized."""
    return _cells([f"`{row.model_type}`", _percent(row.share), row.kept, reason])


def proof_lines() -> list[str]:
    """The rows of all architectures that do not make the round trip."""
    why = {name: f"`apply`: {each}" for name, each in refused().items()} | without()
    return [_cells([f"`{name}`", _proven(name), why[name]]) for name in sorted(why)]


def _proven_head(with_default: set[str]) -> str:
    runs = known_runs()
    completed = sorted(runs.keys() - with_default)
    return _PROVEN.format(
        count=len(architectures()),
        runs=len(runs),
        others=len(completed),
        names=", ".join(f"`{each}`" for each in completed),
        round_trips=len(runs) - len(refused()),
    )


def _proven(model_type: str) -> str:
    if model_type not in _runs():
        return "nothing"
    return "forward" if model_type in _refused() else "round trip"


@cache
def _runs() -> dict[str, tuple[str, int]]:
    return known_runs()


@cache
def _refused() -> dict[str, str]:
    return refused()


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
