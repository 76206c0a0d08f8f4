"""Folding equal layers into one line."""

from __future__ import annotations

import pytest

from rulequant.globs import Glob
from rulequant.report.folding import fold


def _patterns(names: list[str], key: str = "") -> list[tuple[str, int]]:
    """The folds of names; those that `key` selects are of another kind."""
    glob = Glob.parse(key) if key else None
    folds = fold(names, lambda each: each, lambda each: bool(glob and glob.selects(each)))
    return [(each.pattern, len(each)) for each in folds]


LAYERS = [f"h.{index}.fc" for index in range(6)]
EXPERTS = [f"h.{layer}.e.{expert}.w" for layer in range(3) for expert in range(4)]


@pytest.mark.parametrize(
    ("names", "key", "folds"),
    [
        pytest.param(["a", "b"], "", [("a", 1), ("b", 1)], id="words"),
        pytest.param(LAYERS, "", [("h.*.fc", 6)], id="all layers"),
        pytest.param(LAYERS, "h.{0..1}", [("h.{0..1}.fc", 2), ("h.{2..5}.fc", 4)], id="two runs"),
        pytest.param(LAYERS, "h.{0,5}", [("h.{0,5}.fc", 2), ("h.{1..4}.fc", 4)], id="both ends"),
        pytest.param(LAYERS, "h.{1,3,4}", [("h.{0,2,5}.fc", 3), ("h.{1,{3..4}}.fc", 3)], id="a run in a list"),
        pytest.param(LAYERS[:1], "", [("h.0.fc", 1)], id="one layer"),
        pytest.param(EXPERTS, "", [("h.*.e.*.w", 12)], id="experts"),
        pytest.param(EXPERTS, "h.1", [("h.{0,2}.e.*.w", 8), ("h.1.e.*.w", 4)], id="experts of one layer"),
        pytest.param(["h.01.fc", "h.1.fc"], "", [("h.01.fc", 1), ("h.1.fc", 1)], id="leading zero is a word"),
        pytest.param(["", "a"], "", [("", 1), ("a", 1)], id="the model itself"),
    ],
)
def test_fold(names: list[str], key: str, folds: list[tuple[str, int]]) -> None:
    """Names that differ in numbers alone become one, as a glob."""
    assert _patterns(names, key) == folds


@pytest.mark.parametrize("key", ["h.{0..1}", "h.{0,5}", "h.{1,3,4}"])
def test_patterns_are_globs_for_exactly_their_items(key: str) -> None:
    """What is printed can be pasted into a rule file."""
    glob = Glob.parse(key)
    for each in fold(LAYERS, lambda name: name, glob.selects):
        assert tuple(name for name in LAYERS if Glob.parse(each.pattern).matches(name)) == each.items
