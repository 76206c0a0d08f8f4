"""Modules that have only another name."""

from __future__ import annotations

import pytest

from rulequant.renames import pair_renames

ATTENTION = ("query", "key", "value", "out")


def _same(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "Linear[64,64]")


@pytest.mark.parametrize(
    ("gone", "come", "pairs"),
    [
        pytest.param(["a.query"], ["a.q_proj"], {"a.query": "a.q_proj"}, id="a word"),
        pytest.param(
            [f"encoder.{each}" for each in ATTENTION],
            [f"enc.{each}" for each in reversed(ATTENTION)],
            {f"encoder.{each}": f"enc.{each}" for each in ATTENTION},
            id="a prefix, and another order",
        ),
        pytest.param(
            ["h.0.w1", "h.0.w3", "h.1.w1", "h.1.w3"],
            ["h.0.gate_proj", "h.0.up_proj", "h.1.gate_proj", "h.1.up_proj"],
            {"h.0.w1": "h.0.gate_proj", "h.0.w3": "h.0.up_proj", "h.1.w1": "h.1.gate_proj", "h.1.w3": "h.1.up_proj"},
            id="by order where names say nothing",
        ),
        pytest.param(["h.0.fc", "h.1.fc"], ["h.1.c"], {"h.1.fc": "h.1.c"}, id="one layer fewer"),
        pytest.param(
            ["b.0.0.fc", "b.1.0.fc"], ["b.0.fc", "b.1.fc"], {"b.0.0.fc": "b.0.fc", "b.1.0.fc": "b.1.fc"}, id="depth"
        ),
        pytest.param(["h.0.0.fc", "h.1.0.fc"], ["fc"], {}, id="many to one"),
        pytest.param(["a"], [], {}, id="gone"),
        pytest.param([], ["a"], {}, id="new"),
    ],
)  # fmt: skip
def test_pairs(gone: list[str], come: list[str], pairs: dict[str, str]) -> None:
    """Equal modules are paired by layer numbers and the likeness of names, all layers alike."""
    assert pair_renames(_same(*gone), _same(*come)) == pairs


def test_other_facts_are_no_rename() -> None:
    """A module of another shape is not the same, however alike the names."""
    assert pair_renames({"a.query": "Linear[64,64]"}, {"a.query_": "Linear[64,32]"}) == {}


def test_many_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are too many kinds to compare letters, shared segments decide."""
    monkeypatch.setattr("rulequant.renames._MAX_COMPARED", 1)
    names = [f"part{index}.fc" for index in range(50)]
    found = pair_renames(_same(*(f"old.{each}" for each in names)), _same(*(f"new.{each}" for each in reversed(names))))
    assert found == {f"old.{each}": f"new.{each}" for each in names}
