"""The worst modules of a run, as lines and as data."""

from __future__ import annotations

from rulequant.report.worsttext import worst_data, worst_rows
from rulequant.verification import Sample

SAMPLES = {f"layers.{index}\x1b": Sample(1.0 / (index + 1), 100.0, 4096) for index in range(8)}


def test_rows_are_the_first_few() -> None:
    """The label stands once, and says that it is a sample."""
    assert worst_rows(SAMPLES) == [
        ("worst modules", "10%  layers.0\\x1b (relative error, sampled)"),
        ("", "7.07%  layers.1\\x1b"),
        ("", "5.77%  layers.2\\x1b"),
    ]
    assert worst_rows({}) == []


def test_data_has_the_number_of_values() -> None:
    """Five at most."""
    assert [each["name"] for each in worst_data(SAMPLES)] == list(SAMPLES)[:5]
    assert worst_data(SAMPLES)[0] == {"name": "layers.0\x1b", "relative_error": 0.1, "sampled_values": 4096}
    assert worst_data({}) == []
