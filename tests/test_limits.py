"""How much the patterns of a rule set may come to."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from strategies import globs

from rulequant.globs import Glob
from rulequant.globtext import MAX_SEGMENTS as MAX_SEGMENTS_OF_ONE
from rulequant.limits import MAX_SEGMENTS, past_limit, patterns_of, segments
from rulequant.loader import Loader, check_rules


@settings(deadline=None, derandomize=True, max_examples=200)
@given(globs)
def test_segments_cover_what_parsing_makes(pattern: str) -> None:
    """No pattern has more segments than are counted; without braces that say the same twice it has as many."""
    made = sum(len(each) for each in Glob.parse(pattern).alternatives)
    assert segments(pattern) >= made
    if "{" not in pattern and "**.**" not in pattern:
        assert segments(pattern) == made


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a", 1),
        ("a.b.*", 3),
        ("{a,b}.c", 4),
        ("model{.inner,}.mlp", 5),
        ("{a,{b,c}.d}.e", 8),
        ("a.{0..12}.b", 39),
        ("{12..0..3}", 5),
        ("{a..f}.b", 12),
        ("{0..9}{0..9}.x", 200),
        ("{0..999999999}.a", MAX_SEGMENTS_OF_ONE),
        ("{a,b}" * 190, MAX_SEGMENTS_OF_ONE),
        ("{a,b", 1),
        ("{a,b}}.c", 1),
        ("a,b", 1),
        ("{a,b}" * 1000, 1),
    ],
    ids=lambda value: str(value)[:20],
)
def test_segments(pattern: str, expected: int) -> None:
    """Braces multiply, a malformed or too long pattern counts as one, and none more than it may have."""
    assert segments(pattern) == expected


def test_patterns_of_any_data() -> None:
    """Patterns are found wherever they may stand, whatever else is wrong."""
    data = {"skip_modules": ["a", {"modules": ["b", 3], "except": "c"}, None], "rules": {"modules": "no"}, "x": 1}
    assert [text for text, _ in patterns_of(data)] == ["a", "b", "c"]
    assert list(patterns_of(["a"])) == []


def test_past_limit() -> None:
    """The pattern is named that passes the limit, not the ones before it."""
    patterns = [("{0..999}.b", number) for number in range(MAX_SEGMENTS // 2000 + 1)]
    assert past_limit(patterns[:-1]) is None
    assert past_limit(patterns) == patterns[-1]


def test_too_many_in_one_file() -> None:
    """The file is refused before its patterns are expanded, which would take minutes and gigabytes."""
    start = time.process_time()
    _, (found,) = check_rules({"version": 1, "skip_modules": ["x{0..999}.y{0..9}"] * 40_000})
    assert found.code == "RQ306"
    assert time.process_time() - start < 10


def test_too_many_in_several_files(tmp_path: Path) -> None:
    """What files come to together is counted, and reported once, at the place that passes the limit."""
    entry = '- "{0..999}.b"\n'
    (tmp_path / "base.yaml").write_text("version: 1\nskip_modules:\n" + entry * 20)
    (tmp_path / "child.yaml").write_text("version: 1\nextends: ./base.yaml\nskip_modules:\n" + entry * 10)
    loader = Loader()
    loaded = loader.load(tmp_path / "child.yaml")
    assert loaded
    assert loader.resolve(loaded) is None
    assert loader.resolve(loaded) is None
    (found,) = loader.diagnostics
    assert (found.code, found.location and found.location.line) == ("RQ306", 9)
