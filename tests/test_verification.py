"""What is known of a verified output: errors summed up, and all of it as JSON."""

from __future__ import annotations

import json
import math

import pytest

from rulequant.diagnostics import Diagnostic
from rulequant.verification import Comparison, Verified, WeightError, relative_error

WEIGHTS = (
    WeightError("b", "nf4", 10, 4.0, 16.0),
    WeightError("a.gate_up_proj", "nf4", 30, 1.0, 100.0, 2, 0.3),
    WeightError("c", "int8", 10, 0.0, 5.0),
)


@pytest.mark.parametrize(
    ("error", "norm", "expected"),
    [(1.0, 100.0, 0.1), (0.0, 0.0, 0.0), (1.0, 0.0, math.inf), (0.0, 1.0, 0.0)],
    ids=["usual", "zeros kept", "zeros lost", "exact"],
)
def test_relative_error(error: float, norm: float, expected: float) -> None:
    """The root of the ratio, with zeros in mind."""
    assert relative_error(error, norm) == expected


def test_signal_to_noise() -> None:
    """20 dB for a tenth, none at all where nothing differs."""
    assert WEIGHTS[1].snr_db == pytest.approx(20)
    assert WEIGHTS[2].snr_db == math.inf


def test_schemes_are_weights_taken_as_one() -> None:
    """Sums of squares add up, not the errors; the worst comes first."""
    found = {each.scheme: each for each in Comparison(WEIGHTS, 3).schemes}
    assert (found["nf4"].weights, found["nf4"].parameters) == (2, 40)
    assert found["nf4"].relative_error == pytest.approx(math.sqrt(5 / 116))
    assert found["nf4"].worst == 0.5
    assert found["int8"].relative_error == 0


def test_json_has_no_number_that_json_has_not() -> None:
    """null stands for infinity and NaN."""
    nothing = WeightError("d", "nf4", 1, math.nan, 1.0)
    found = Verified("out", against="model", comparison=Comparison((*WEIGHTS, nothing), 3, 1))
    found.diagnostics.append(Diagnostic("RQ530", "x: changed", value="x"))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (data["ok"], data["plan"], data["container"]) == (False, None, None)
    against = data["against"]
    assert (against["model"], against["unquantized_equal"], against["unquantized_different"]) == ("model", 3, 1)
    assert against["weights"][1]["worst_expert"] == 2
    assert against["weights"][2]["snr_db"] is None
    assert against["weights"][3]["relative_error"] is None
    assert data["diagnostics"][0]["code"] == "RQ530"
