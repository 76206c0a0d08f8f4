"""Containment of globs, proven against what they select over all small names."""

from __future__ import annotations

from itertools import product

import pytest

from rulequant.globs import Glob, GlobSet
from rulequant.overlap import GlobCover, SelectorCover, Steps, TooManyStepsError, covers, selector_covers
from rulequant.selector import Selector

NAMES = [".".join(parts) for length in range(1, 5) for parts in product(("a", "b", "ab"), repeat=length)]
TOKENS = ("a", "*", "**", "a*", "?")
PATTERNS = sorted(
    {
        glob.text
        for length in range(1, 4)
        for parts in product(TOKENS, repeat=length)
        for glob in [Glob.parse(".".join(parts))]
    }
)


def test_a_yes_is_always_right() -> None:
    """Where one glob covers another, every name that the other selects is selected by it."""
    globs = [Glob.parse(each) for each in PATTERNS]
    selected = GlobSet(globs).select(NAMES)
    names = [{name for name, hits in selected.items() if index in hits} for index in range(len(globs))]
    yes = 0
    for (wide, wide_names), (narrow, narrow_names) in product(zip(globs, names, strict=True), repeat=2):
        if covers(wide, narrow):
            yes += 1
            assert narrow_names <= wide_names, (wide.text, narrow.text)
    assert yes > len(globs)


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("**", "model.layers"),
        ("**.mlp", "**.mlp.gate"),
        ("**.mlp", "model.layers.*.mlp.up_proj"),
        ("model", "model.visual.blocks"),
        ("**.*_proj", "**.q_proj"),
        ("**.self_attn.*", "**.self_attn.{q,k}_proj"),
        ("**.{q,k,v}_proj", "**.{v,q}_proj"),
        ("model.**.b", "model.**.a.b"),
        ("**.q*", "**.q_*"),
        ("**.*proj", "**.q_*proj"),
    ],
)
def test_covers_what_people_write(wide: str, narrow: str) -> None:
    """The usual ways to say the same twice are recognised, and not the other way round."""
    assert covers(Glob.parse(wide), Glob.parse(narrow))
    assert not covers(Glob.parse(narrow), Glob.parse(wide))


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [("**.mlp.gate", "**.mlp"), ("a?", "a*"), ("model.*", "**.model.x"), ("**.q_proj", "**.k_proj"), ("a.b", "a")],
)
def test_does_not_cover(wide: str, narrow: str) -> None:
    """A glob that lacks some of the other's names does not cover it."""
    assert not covers(Glob.parse(wide), Glob.parse(narrow))


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ({"modules": "**.a"}, {"modules": "**.a", "layers": "0:2"}, True),
        ({"modules": "**.a", "layers": "0:2"}, {"modules": "**.a"}, False),
        ({"modules": "**.a", "types": "Linear"}, {"modules": "**.a", "types": ["Linear"]}, True),
        ({"modules": "**.a", "types": "Linear"}, {"modules": "**.a"}, False),
        ({"modules": "**.a", "except": "**.a.b"}, {"modules": "**.a"}, False),
        ({"modules": "**.a", "except": "**.a.b"}, {"modules": "**.a", "except": ["**.a.b", "x"]}, True),
    ],
    ids=["narrowed-by-layers", "wider-than-layers", "same-types", "wider-than-types", "exception", "same-exception"],
)
def test_narrowings_count(wide: dict[str, object], narrow: dict[str, object], expected: bool) -> None:
    """`except`, `types` and `layers` are part of what a selector selects."""
    assert selector_covers(Selector.model_validate(wide), Selector.model_validate(narrow)) is expected


def test_many_at_once() -> None:
    """Among many globs those are found that cover a glob on their own."""
    globs = [Glob.parse(each) for each in [*PATTERNS, "{a,b}.c", "a{.b,}.a", "**.{a,ab}*"]]
    cover = GlobCover(globs, Steps(10_000_000))
    for narrow in globs:
        alone = {index for index, wide in enumerate(globs) if covers(wide, narrow)}
        assert cover.of(narrow) == alone, narrow.text


def test_all_patterns_must_be_covered_by_one_selector() -> None:
    """Two selectors that share the patterns of a third do not cover it; one that has them all does."""
    texts: list[list[str]] = [["**.a"], ["**.b"], ["**.b", "**.a"], ["**.a.c", "**.b.c"]]
    selectors = [Selector.model_validate({"modules": each}) for each in texts]
    assert SelectorCover(selectors).of(selectors[3]) == [2, 3]


@pytest.mark.parametrize("pattern", ["**", "**.a{}*b"], ids=["same", "wild"])
def test_gives_up(pattern: str) -> None:
    """Thousands of globs that are much alike are not compared to the end."""
    globs = [Glob.parse(pattern.replace("{}", str(number))) for number in range(3000)]
    cover = GlobCover(globs)
    with pytest.raises(TooManyStepsError):
        [cover.of(each) for each in globs]


def test_thousands_of_names() -> None:
    """Thousands of names are no trouble: each is found by its own segments."""
    globs = [Glob.parse(f"model.layers.{layer}.mlp.experts.{expert}") for layer in range(40) for expert in range(64)]
    cover = GlobCover(globs)
    assert all(cover.of(each) == {index} for index, each in enumerate(globs))
