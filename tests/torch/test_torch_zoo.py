"""Every architecture of the installed transformers that its default config makes: planned, and as the page says."""

from __future__ import annotations

import pytest
from zoo.classes import architectures
from zoo.page import PAGE, below_line, line, proof_lines, reasons, versions
from zoo.survey import ENOUGH, survey

pytestmark = pytest.mark.slow

CHUNKS = 8
"""Parts of the zoo, so that several processes share the work: each class is imported once."""
LINES = PAGE.read_text(encoding="utf-8").splitlines()
TABLES = [[each for each in part.splitlines() if each.startswith("| `")] for part in "\n".join(LINES).split("\n## ")]
"""The rows of the page: all architectures, those below `ENOUGH`, and those that do not make the round trip."""


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_architecture_is_planned(chunk: int) -> None:
    """A bundled file is found, plans without an error, and quantizes 90% of the weights of all but those of the table.

    Where the page was made with this version of transformers, it holds exactly these rows.
    """
    rows = list(survey(architectures()[chunk::CHUNKS]))
    assert rows
    assert {each.model_type: each.errors for each in rows if each.errors} == {}
    below = {each.model_type: f"{each.share:.0%}; {each.kept}" for each in rows if each.share < ENOUGH}
    named = {each.model_type for each in rows} & reasons().keys()
    assert set(below) == named, f"correct tests/zoo/below.json: {below}"
    if versions() in LINES[2]:
        expected = [line(each) for each in rows]
        expected += [below_line(each, reasons()[each.model_type]) for each in rows if each.share < ENOUGH]
        assert [each for each in expected if each not in LINES] == [], "run: python scripts/architectures.py"


def test_table_is_short_and_says_why() -> None:
    """At most one architecture in twenty is below, each for a reason that the page repeats."""
    why = reasons()
    count = len(TABLES[0])
    assert count > 500
    assert len(why) <= 0.05 * count
    assert all(why.values())
    assert {each.split("`")[1]: each.split(" | ")[-1].removesuffix(" |") for each in TABLES[1]} == why


def test_table_of_proofs_is_as_measured() -> None:
    """What the tests of the tiny models expect is what the page says."""
    assert TABLES[2] == proof_lines(), "run: python scripts/architectures.py"
