"""Tiny random models of all architectures: quantized they run, and so do the checkpoints that apply makes of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from zoo.classes import Architecture, architectures
from zoo.forward import first_run, known_runs
from zoo.proof import Stage, prove, refused, without

pytestmark = pytest.mark.slow

RUNS = known_runs()
REFUSED = refused()
WITHOUT = without()
ANEW = "run: python scripts/architectures.py --forward"


@cache
def _architectures() -> dict[str, Architecture]:
    return {each.model_type: each for each in architectures()}


@pytest.mark.parametrize("model_type", sorted(RUNS))
def test_tiny_model_makes_the_round_trip(model_type: str) -> None:
    """With no rule but the types, a model runs quantized; applied and loaded it puts out the very same.

    Every objection to a layer has to come from the engine. The checkpoint loads without a key too many or too few. Of
    the few that do not come so far the table names the reason, and no other.
    """
    with TemporaryDirectory() as folder:  # not tmp_path: pytest keeps those, and these are gigabytes
        proof = prove(_architectures()[model_type], *RUNS[model_type], Path(folder))
    expected = (Stage.QUANTIZED, REFUSED[model_type]) if model_type in REFUSED else (Stage.ROUND_TRIP, "")
    assert (proof.stage, proof.gist) == expected, f"{proof.obstacle}\n{ANEW}"


def test_every_architecture_is_accounted_for() -> None:
    """Each has a tiny model that runs, or a reason why not; nearly all make the round trip."""
    assert RUNS.keys().isdisjoint(WITHOUT)
    assert RUNS.keys() | WITHOUT.keys() == _architectures().keys(), ANEW
    assert RUNS.keys() > REFUSED.keys()
    assert all(WITHOUT.values())
    assert len(RUNS) >= 0.95 * len(_architectures())
    assert len(RUNS) - len(REFUSED) >= 0.9 * len(RUNS)


@pytest.mark.parametrize("model_type", sorted(WITHOUT))
def test_others_do_not_run(model_type: str) -> None:
    """What the table says cannot be built or called cannot."""
    assert first_run(_architectures()[model_type]) is None, ANEW
