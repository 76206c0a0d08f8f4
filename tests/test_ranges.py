"""Names that differ in numbers, folded exactly and unfolded again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rulequant.globs import Glob
from rulequant.ranges import brace, expand, is_range, numbers_of, products, shape_of, spell

POINTS = st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(8, 12)), min_size=1)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        pytest.param([3], "3", id="one"),
        pytest.param([0, 1, 2, 3], "{0..3}", id="a run"),
        pytest.param([0, 5], "{0,5}", id="two"),
        pytest.param([9, 1, 3, 4, 10, 11], "{1,{3..4},{9..11}}", id="runs and one"),
    ],
)
def test_brace(numbers: list[int], text: str) -> None:
    """Numbers as a glob, and back."""
    assert brace(numbers) == text
    assert list(expand(f"h.{text}.fc", limit=10)) == [f"h.{each}.fc" for each in sorted(numbers)]
    assert all(Glob.parse(f"h.{text}.fc").matches(f"h.{each}.fc") for each in numbers)


@given(POINTS)
def test_products_are_a_partition(points: set[tuple[int, ...]]) -> None:
    """Each name is in one pattern, and no pattern has a name that was not there."""
    names = {f"h.{a}.experts.{b}.w.{c}" for a, b, c in points}
    assert {numbers_of(each) for each in names} == points
    patterns = [spell("h.0.experts.0.w.0", each) for each in products(points)]
    unfolded = [name for each in patterns for name in expand(each, limit=1000)]
    assert len(unfolded) == len(names)
    assert set(unfolded) == names


@pytest.mark.parametrize("name", ["", "a.b", "h.01.fc", "h.{x}.fc", "h.{0..x}.{}", "{.1.}", "a..b"])
def test_words_stay(name: str) -> None:
    """What has no numbers in the one spelling is its own pattern."""
    assert list(expand(name, limit=2)) == [name]
    assert not any(is_range(each) for each in name.split("."))
    assert list(expand(spell(name, products([numbers_of(name)])[0]), limit=2)) == [name]


def test_shape() -> None:
    """Numbers are stars; one with a leading zero is a word."""
    assert shape_of("h.10.e.0.w1.01") == "h.*.e.*.w1.01"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        pytest.param("h.{5..2}", r"range '\{5..2\}' is empty", id="backwards"),
        pytest.param("h.{0..99999999}", "too long", id="long"),
        pytest.param("h.{0..9}.{0..9}.{0..9}", "more than 100 modules", id="product"),
    ],
)
def test_too_much(pattern: str, message: str) -> None:
    """A short text cannot stand for more names than the reader allows."""
    with pytest.raises(ValueError, match=message):
        list(expand(pattern, limit=100))
