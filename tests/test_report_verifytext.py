"""A verified output as text: a line for each check, whether it was made or not, and the worst weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
from inventories import llama, ruleset

from rulequant.diagnostics import Diagnostic
from rulequant.planner import make_plan
from rulequant.report.verifytext import verdict, verify_summary, verify_text
from rulequant.verification import Comparison, Verified, WeightError

WEIGHTS = tuple(WeightError(f"model.layers.{index}.up", "nf4", 4096, 1.0 / (index + 1), 100.0) for index in range(5))
EXPERTS = WeightError("model.experts.gate_up_proj", "int8", 1 << 20, 0.0, 1.0, 3, 0.0123)


def _verified(**changes: Any) -> Verified:
    facts: dict[str, Any] = {
        "files": 7, "file_bytes": 12_345_678, "versions": {"rulequant": "0.1.0"}, "container": "bitsandbytes",
        "tensors": 40, "shards": 2, "payload_bytes": 12_000_000, "plan": make_plan(ruleset(""), llama()),
    }  # fmt: skip
    return Verified("out", **(facts | changes))


def _line(found: Verified, label: str) -> str:
    return next(line.removeprefix(label).strip() for line in verify_summary(found) if line.startswith(label))


@pytest.mark.parametrize(
    ("label", "changes", "expected"),
    [
        ("files", {}, "7, 12.3 MB, hashed: all as in the manifest"),
        ("files", {"quick": True}, "7, 12.3 MB, sizes compared, nothing hashed: all as in the manifest"),
        ("files", {"files": 0}, "not compared: there is no manifest to go by"),
        ("files", {"diagnostics": [Diagnostic("RQ530", "x", value="x"), Diagnostic("RQ532", "y", value="y")]},
         "7, 12.3 MB, hashed: 2 files not as in the manifest"),
        ("tensors", {}, "40 in 2 shards, 12.0 MB: all as planned"),
        ("tensors", {"tensors": 0}, "not checked, since something before could not be read"),
        ("tensors", {"diagnostics": [Diagnostic("RQ534", "x")]}, "40 in 2 shards, 12.0 MB: 1 difference from the plan"),
        ("layers", {}, "14 of 21 modules quantized when transformers loads it (bitsandbytes), as planned"),
        ("layers", {"container": None}, "not checked, since something before could not be read"),
        ("layers", {"container": None, "called": True},
         "made by the plan when rulequant.torch.load_quantized loads it: there is no config.json"),
        ("layers", {"diagnostics": [Diagnostic("RQ536", "x")]},
         "1 layer that transformers would make otherwise than planned"),
        ("against", {"against": "m"}, "m: not compared, since the output is not as planned"),
        ("against", {"against": "m\x1b", "comparison": Comparison((), 9)},
         "m\\x1b: all 9 unquantized tensors are the same"),
        ("against", {"against": "m", "comparison": Comparison((), 8, 1)}, "m: 1 of 9 unquantized tensors differ"),
        ("scheme nf4", {"against": "m", "comparison": Comparison(WEIGHTS, 9)},
         "5 weights, relative error 6.76% over all of them, 10% at worst"),
    ],
)  # fmt: skip
def test_each_check_has_a_line(label: str, changes: dict[str, Any], expected: str) -> None:
    """What came of it, or why it was not made."""
    assert _line(_verified(**changes), label) == expected


def test_worst_weights_come_first_and_the_rest_is_counted() -> None:
    """As many as asked for."""
    lines = verify_text(_verified(against="m", comparison=Comparison(WEIGHTS, 9)), limit=2).splitlines()
    assert lines[-4].split() == ["weight", "scheme", "parameters", "relative", "error", "SNR"]
    assert lines[-3].split() == ["model.layers.0.up", "nf4", "4,096", "10%", "20.0", "dB"]
    assert lines[-1] == "3 more with 5.77% or less; --all shows them"
    assert "more with" not in verify_text(_verified(against="m", comparison=Comparison(WEIGHTS, 9)))


def test_experts_have_a_column_of_their_own() -> None:
    """With the number of the worst and its error."""
    nan = WeightError("model.odd", "nf4", 1, math.nan, 1.0)
    text = verify_text(_verified(against="m", comparison=Comparison((nan, EXPERTS), 9)))
    assert text.splitlines()[-3].split()[-2:] == ["worst", "expert"]
    assert text.splitlines()[-2].split() == ["model.odd", "nf4", "1", "nan", "nan", "dB"]
    assert text.splitlines()[-1].split()[-2:] == ["3:", "1.23%"]


def test_verdict() -> None:
    """The last line of a report."""
    assert verdict(_verified()) == "no problems"
    assert verdict(_verified(diagnostics=[Diagnostic("RQ530", "x")])) == "1 problem found"
