"""The list of module classes, and the names most like one that is not in it."""

from __future__ import annotations

import pytest

from rulequant.known_types import known_types, nearest_types


def test_list() -> None:
    """The names of torch and transformers are there, and nothing else."""
    assert {"Linear", "Conv1D", "Conv1d", "FalconLinear", "MixtralExperts"} <= known_types()
    assert all(each.isidentifier() for each in known_types())


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("Linaer", ["Linear"]),
        ("linear", ["Linear"]),
        ("Cnv1D", ["Conv1D", "Conv1d"]),
        ("MyOwnLayer", []),
        ("*Xperts", ["*Experts"]),
        ("Experts", ["*Experts"]),
        ("_*Linear", ["*Linear"]),
        ("FalconLinaer*", []),
        ("Qwen3Meo*", ["Qwen3Moe*"]),
        ("[A-Z]*Linaer", ["[A-Z]*Linear"]),
        ("?", []),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_nearest(pattern: str, nearest: list[str]) -> None:
    """The best suggestions come first; of a pattern the part without wildcards is put right."""
    assert nearest_types(pattern)[: len(nearest) or None] == nearest
