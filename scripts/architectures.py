"""Write docs/architectures.md: what the bundled rules make of every architecture of the installed transformers.

The reasons of those of which too little is quantized are in tests/zoo/below.json; what is missing there, or there
without need, is printed. With `--forward`, which takes minutes, a tiny random model of each is built
before, quantized and run, then applied, loaded and run again: tests/zoo/runs.json says how those that run are built,
tests/zoo/refused.json what keeps some of them from the last step. Of those that do not run, tests/zoo/without.json is
to say why; what is missing there is printed too.
"""

# ruff: noqa: E402  the zoo lies beside the tests
from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
warnings.simplefilter("ignore")

from sums import settle_sums

settle_sums()

from zoo.classes import Architecture, architectures
from zoo.forward import RUNS, first_run, known_runs
from zoo.page import PAGE, page, reasons
from zoo.proof import REFUSED, Proof, Stage, prove, without
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
    """Prove all that can be proved with a tiny model of each architecture, and write it down."""
    known = known_runs()
    found = {each.model_type: proved(each, known.get(each.model_type)) for each in architectures()}
    runs = {name: run for name, (run, _) in found.items() if run}
    proofs = {name: proof for name, (run, proof) in found.items() if run}
    write_table(RUNS, runs)
    write_table(REFUSED, {name: each.gist for name, each in proofs.items() if each.stage < Stage.ROUND_TRIP})
    for name in sorted((found.keys() - runs.keys()) ^ without().keys()):
        say(f"{name}: {'runs now' if name in runs else 'does not run, and tests/zoo/without.json does not say why'}")
    for name, each in proofs.items():
        if each.stage == Stage.RUNS:
            say(f"{name}: does not run quantized: {each.obstacle}")
    reached = [sum(each.stage >= stage for each in proofs.values()) for stage in (1, 2, 3)]
    say("of {} architectures {} run, {} quantized, {} from a checkpoint".format(len(found), *reached))


def proved(architecture: Architecture, known: tuple[str, int] | None) -> tuple[tuple[str, int] | None, Proof]:
    """How a tiny model is built and called, and how far it comes; the way that is known is tried first."""
    proof = proof_of(architecture, known) if known else Proof(Stage.NOTHING)
    if proof.stage > Stage.NOTHING:
        return known, proof
    run = first_run(architecture)
    new = (run.cut, run.number) if run else None
    return new, proof_of(architecture, new) if new else proof


def proof_of(architecture: Architecture, run: tuple[str, int]) -> Proof:
    """How far a tiny model comes."""
    with tempfile.TemporaryDirectory() as folder:
        return prove(architecture, *run, Path(folder))


def write_table(path: Path, table: Mapping[str, object]) -> None:
    """One line for each architecture, sorted."""
    lines = (f"{json.dumps(name)}: {json.dumps(each, ensure_ascii=False)}" for name, each in sorted(table.items()))
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def say(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    if "--forward" in sys.argv[1:]:
        run_all()
    write_page()
