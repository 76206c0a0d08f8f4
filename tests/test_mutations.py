"""A small run of `benchmarks/mutations.py`: rule files with one mistake each."""

from __future__ import annotations

import pytest
from mutations import KINDS, Tally, judge, mutations

SPELLING = ("key misspelt", "literal misspelt")
NAMES = ("scheme misspelt", "parent misspelt", "type misspelt")


@pytest.fixture(scope="module")
def tally() -> Tally:
    """The verdicts on 600 mutations; an exception in any of them fails the test that asks first."""
    found = Tally()
    for mutation in mutations(600, seed=20):
        found.add(judge(mutation))
    return found


def test_every_kind_makes_files_invalid(tally: Tally) -> None:
    """The mutations are ones: some of each kind get a finding."""
    assert all(tally.total[kind] == 60 for kind in KINDS)
    assert all(tally.invalid[kind] or tally.counted[kind] for kind in KINDS)


def test_nothing_passes_that_another_reader_refuses(tally: Tally) -> None:
    """No file is valid in which PyYAML finds no YAML, or data that pydantic refuses."""
    assert [each.mutation for each in tally.silent] == []


@pytest.mark.parametrize(("kinds", "share"), [(SPELLING, 0.99), (NAMES, 0.9)], ids=["keys-and-values", "names"])
def test_misspelt_words_get_the_right_one(tally: Tally, kinds: tuple[str, ...], share: float) -> None:
    """The right word is in the remedy or among what is allowed; so many hits are what it had, rounded down."""
    assert tally.share(tally.named, kinds) >= share
