"""Write docs/architectures.md: what the bundled rules make of every architecture of the installed transformers.

The reasons of those of which too little is quantized are in tests/zoo/below.json; what is missing there, or there
without need, is printed. With `--forward`, which takes ten minutes or more, a tiny random model of each is built
instead, quantized and run, then applied, loaded and run again: tests/zoo/runs.json says how those that run are built,
and all that goes wrong is printed.
"""

# ruff: noqa: E402  the zoo lies beside the tests
from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
warnings.simplefilter("ignore")

from zoo.classes import Architecture, architectures
from zoo.forward import RUNS, first_run, prepare, quantized, reloaded
from zoo.page import PAGE, page, reasons
from zoo.survey import ENOUGH, survey


def write_page() -> None:
    """Survey everything, write the page, and say where the table of reasons is wrong."""
    rows = list(survey(architectures()))
    PAGE.write_text(page(rows), encoding="utf-8")
    below = {each.model_type: each for each in rows if each.share < ENOUGH}
    for name in sorted(below.keys() ^ reasons().keys()):
        say(f"{name}: {below[name].share:.1%}, kept: {below[name].kept}" if name in below else f"{name}: enough now")
    for each in rows:
        for error in each.errors:
            say(f"{each.model_type}: {error}")
    say(f"{len(rows)} architectures, {len(below)} below {ENOUGH:.0%}")


def run_all() -> None:
    """Find a tiny model of each architecture that runs, write down how, and quantize and apply it."""
    runs: dict[str, tuple[str, int]] = {}
    counts = dict.fromkeys(("runs", "quantized", "applied"), 0)
    for each in architectures():
        found = first_run(each)
        if found is None:
            continue
        runs[each.model_type] = (found.cut, found.number)
        reached = prove(each, found.cut, found.number)
        counts = {name: count + (number < reached) for number, (name, count) in enumerate(counts.items())}
    lines = (f"{json.dumps(name)}: {json.dumps(each)}" for name, each in sorted(runs.items()))
    RUNS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    say(", ".join(f"{name}: {count}" for name, count in counts.items()))


def prove(architecture: Architecture, cut: str, number: int) -> int:
    """How far an architecture comes: 1 where it runs, 2 quantized, 3 from a checkpoint; what goes wrong is printed."""
    reached = 1
    try:
        quantized(prepare(architecture, cut, number))
        reached = 2
        with tempfile.TemporaryDirectory() as folder:
            reloaded(architecture, prepare(architecture, cut, number), Path(folder))
        reached = 3
    except Exception as error:
        say(f"{architecture.model_type}: {('', 'quantized', 'applied')[reached]}: {type(error).__name__}: {error}")
    return reached


def say(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    run_all() if "--forward" in sys.argv[1:] else write_page()
