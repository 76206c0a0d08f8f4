"""Globs: the automaton against a brute-force reference, names and patterns of every odd kind, and bounded work."""

from __future__ import annotations

import itertools
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rulequant import globs
from rulequant.globs import Glob, GlobSet
from rulequant.globtext import GlobError

# The reference knows nothing of fnmatch: what each token accepts is written out.
ACCEPTS = {
    "a": {"a"},
    "b": {"b"},
    "*": {"a", "b", "ab"},
    "?": {"a", "b"},
    "[ab]": {"a", "b"},
    "a*": {"a", "ab"},
}
SEGMENTS = ("a", "b", "ab")
PATTERNS = [each for size in range(1, 5) for each in itertools.product([*ACCEPTS, "**"], repeat=size)]
NAMES = [each for size in range(6) for each in itertools.product(SEGMENTS, repeat=size)]


def reference_matches(tokens: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    """The definition: `**` takes any number of segments, every other token one that it accepts."""
    if not tokens:
        return not segments
    head, rest = tokens[0], tokens[1:]
    if head == "**":
        return any(reference_matches(rest, segments[taken:]) for taken in range(len(segments) + 1))
    return bool(segments) and segments[0] in ACCEPTS[head] and reference_matches(rest, segments[1:])


def reference_selects(tokens: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    """The definition: the name or one of its ancestors matches."""
    return any(reference_matches(tokens, segments[:length]) for length in range(len(segments) + 1))


def selected(pattern: str, *names: str) -> list[str]:
    """The names that one pattern selects, by way of a set."""
    return [name for name, found in GlobSet([Glob.parse(pattern)]).select(names).items() if found]


def test_every_small_pattern_selects_what_the_definition_says() -> None:
    """All patterns of up to 4 segments, together in one set, agree with the reference on all names of up to 5."""
    found = GlobSet([Glob.parse(".".join(tokens)) for tokens in PATTERNS]).select(map(".".join, NAMES))
    matched = [{name for name in NAMES if reference_matches(tokens, name)} for tokens in PATTERNS]
    for name in NAMES:
        ancestors = [name[:length] for length in range(len(name) + 1)]
        expected = {index for index, whole in enumerate(matched) if not whole.isdisjoint(ancestors)}
        assert found[".".join(name)] == expected, name


def test_every_small_pattern_matches_what_the_definition_says() -> None:
    """Each pattern of up to 4 segments, by itself, agrees with the reference on all names of up to 4."""
    names = {".".join(name): name for name in NAMES if len(name) <= 4}
    for tokens in PATTERNS:
        glob = Glob.parse(".".join(tokens))
        found = {text for text in names if glob.matches(text)}
        assert found == {text for text, name in names.items() if reference_matches(tokens, name)}, tokens


some_tokens = st.lists(st.sampled_from([*ACCEPTS, "**"]), min_size=1, max_size=9).map(tuple)
some_names = st.lists(st.lists(st.sampled_from(SEGMENTS), max_size=8).map(tuple), max_size=12)


@given(patterns=st.lists(some_tokens, max_size=6), names=some_names)
@settings(deadline=None)
def test_a_set_agrees_with_each_glob(patterns: list[tuple[str, ...]], names: list[tuple[str, ...]]) -> None:
    """For longer patterns and names too, a set, a single glob and the reference say the same."""
    parsed = [Glob.parse(".".join(tokens)) for tokens in patterns]
    found = GlobSet(parsed).select(map(".".join, names))
    for name in names:
        text = ".".join(name)
        assert found[text] == {index for index, glob in enumerate(parsed) if glob.selects(text)}
        assert found[text] == {i for i, tokens in enumerate(patterns) if reference_selects(tokens, name)}
        assert [glob.matches(text) for glob in parsed] == [reference_matches(each, name) for each in patterns]


@given(st.text(st.sampled_from("ab.*?[]{}!^0-9,/\\$|()+\n "), max_size=24))
@settings(deadline=None, max_examples=500)
def test_any_text_parses_or_is_refused(text: str) -> None:
    """No text makes the parser or the automaton fail otherwise, and each refusal says what, where and what to do."""
    refusal = glob = None
    try:
        glob = Glob.parse(text)
    except GlobError as error:
        refusal = error
    if refusal:
        assert refusal.code in {"RQ201", "RQ202", "RQ203"}
        assert 0 <= refusal.offset <= len(text)
        assert refusal.message
        assert refusal.remedy
    if glob:
        assert glob.matches("a.b") <= glob.selects("a.b") <= glob.selects("a.b.c")


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        pytest.param("**.a.c", "a.b.a.c", True, id="double-star-backtracks"),
        pytest.param("**.a.**.b.c", "a.b.b.a.b.x.b.c", True, id="two-double-stars-backtrack"),
        pytest.param("a.b", "a.b.c", False, id="prefix-is-no-match"),
        pytest.param("a.b.c", "a.b", False, id="name-ends-early"),
        pytest.param("a.**.b", "a.b", True, id="double-star-takes-nothing"),
        pytest.param("a.**", "a", True, id="trailing-double-star-takes-nothing"),
        pytest.param("**", "", True, id="double-star-matches-root"),
        pytest.param("*", "", False, id="star-is-one-segment"),
        pytest.param("*", "a.b", False, id="star-stays-in-its-segment"),
        pytest.param("?_proj", "q_proj", True, id="question-mark"),
        pytest.param("?_proj", "qk_proj", False, id="question-mark-is-one-character"),
        pytest.param("[qk]_proj", "k_proj", True, id="class"),
        pytest.param("[!qk]_proj", "v_proj", True, id="negated-class"),
        pytest.param("[!qk]_proj", "q_proj", False, id="negated-class-excludes"),
        pytest.param("layer[0-9]", "layer7", True, id="range"),
        pytest.param("layer[a-c-e]", "layer-", True, id="range-then-hyphen"),
        pytest.param("Model.MLP", "model.mlp", False, id="case-matters"),
        pytest.param("a", ".a", False, id="empty-first-segment"),
        pytest.param("*.a", ".a", True, id="empty-first-segment-counts"),
    ],
)
def test_whole_names(pattern: str, name: str, matches: bool) -> None:
    """A pattern matches a whole name, segment by segment, and `**` tries every number of them."""
    assert Glob.parse(pattern).matches(name) is matches


def test_a_selected_module_brings_everything_inside() -> None:
    """The module and what is below it are selected, a sibling with the same beginning is not."""
    inside = ["model.visual", "model.visual.blocks.0.mlp", "model.visual.merger"]
    assert selected("model.visual", "", "model", *inside, "model.visual_proj", "visual") == inside


def test_double_star_selects_the_root_and_so_everything() -> None:
    """`**` matches the root, which has no segment, and selects every module."""
    assert selected("**", "", "a", "a.b") == ["", "a", "a.b"]


def test_parents_that_are_not_listed_do_not_matter() -> None:
    """A lone deep name gets the same answer as one listed after all of its ancestors."""
    glob_set = GlobSet([Glob.parse("a.*.c"), Glob.parse("**.d")])
    assert glob_set.select(["a.b.c.d.e"])["a.b.c.d.e"] == {0, 1}
    assert glob_set.select(["a", "a.b", "a.b.c", "a.b.c.d", "a.b.c.d.e"])["a.b.c.d.e"] == {0, 1}


def test_select_keeps_order_and_shares_what_is_equal() -> None:
    """Names come back in the order given, and equal selections are one object."""
    found = GlobSet([Glob.parse("b")]).select(["c", "b.x", "a", "b"])
    assert list(found) == ["c", "b.x", "a", "b"]
    assert found["c"] is found["a"]
    assert found["b"] is found["b.x"]
    assert found["a"] == frozenset()


def test_an_empty_set_selects_nothing() -> None:
    """No patterns, no selection; no names, an empty answer."""
    assert GlobSet([]).select(["", "a"]) == {"": frozenset(), "a": frozenset()}
    assert GlobSet([Glob.parse("**")]).select([]) == {}


@pytest.mark.parametrize("slash", ["/", "\\"], ids=["slash", "backslash"])
def test_a_segment_with_a_slash_is_one_segment(slash: str) -> None:
    """The key of a ModuleDict may hold a slash: it is judged as a whole, and each slash is one character."""
    name = f"heads.en{slash}de.proj"
    assert Glob.parse("heads.*.proj").matches(name)
    assert Glob.parse("heads.en?de.proj").matches(name)
    assert Glob.parse("heads.en[!a]de.proj").matches(name)
    assert not Glob.parse("heads.en.proj").selects(name)
    assert not Glob.parse("heads.en").selects(name)
    assert not Glob.parse("heads.*n.proj").selects(name)
    assert not Glob.parse("heads.en.de.proj").selects(name)


@pytest.mark.parametrize("segment", ["a\nb", "a[b", "{a,b}", "a b", "**", "\0"], ids=ascii)
def test_names_hold_any_character(segment: str) -> None:
    """What is special in a pattern is an ordinary character of a name."""
    assert Glob.parse("x.*.y").matches(f"x.{segment}.y")
    assert Glob.parse("x." + "?" * len(segment) + ".y").matches(f"x.{segment}.y")
    assert not Glob.parse("x.a.y").selects(f"x.{segment}.y")


def test_twenty_double_stars_cost_one_transition_per_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty segments of `**.a` against a thousand `a`: as many transitions as the names have segments."""
    glob_set = GlobSet([Glob.parse("**.a." * 20 + "b"), Glob.parse("**.a.*." * 20 + "**.b")])
    moves = []
    moved = GlobSet._moved

    def counted(self: GlobSet, bits: int, segment: str) -> int:
        moves.append(segment)
        return moved(self, bits, segment)

    monkeypatch.setattr(GlobSet, "_moved", counted)
    deep = ".".join("a" * 1000)
    assert not glob_set.select([deep])[deep]
    assert glob_set.select([f"{deep}.b"])[f"{deep}.b"] == {0, 1}
    assert len(moves) <= 1002


def test_many_stars_within_a_segment_are_bounded() -> None:
    """fnmatch does not backtrack exponentially over the stars of one segment."""
    assert not Glob.parse("*a" * 40 + "*b").matches("a" * 2000)


def test_each_segment_is_judged_once_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that repeat their segments cost no more calls of fnmatch2."""
    judged = []
    monkeypatch.setattr(globs, "fnmatchcase2", lambda segment, token: judged.append((segment, token)))
    glob_set = GlobSet([Glob.parse("**.*_proj"), Glob.parse("layers.*.?_proj"), Glob.parse("a.*_proj")])
    for _ in range(2):
        glob_set.select(f"layers.{index % 3}.mlp.q_proj.layers.q_proj" for index in range(100))
    assert len(judged) == len(set(judged)) == len({"layers", "0", "1", "2", "mlp", "q_proj"}) * 3


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        pytest.param("{q,k}_proj", ["q_proj", "k_proj"], id="words"),
        pytest.param("a.{b.c,d}.e", ["a.b.c.e", "a.d.e"], id="across-segments"),
        pytest.param("l.{0..3}", ["l.0", "l.1", "l.2", "l.3"], id="numbers"),
        pytest.param("l.{0..12..6}", ["l.0", "l.6", "l.12"], id="numbers-with-a-step"),
        pytest.param("l.{2..0}", ["l.2", "l.1", "l.0"], id="numbers-downwards"),
        pytest.param("l{08..10}", ["l08", "l09", "l10"], id="padded-numbers"),
        pytest.param("{a..c}", ["a", "b", "c"], id="letters"),
        pytest.param("{{0..1},7}", ["0", "1", "7"], id="range-in-a-list"),
        pytest.param("{a,b{c,d}}", ["a", "bc", "bd"], id="nested"),
        pytest.param("{a,b}.{c,d}", ["a.c", "a.d", "b.c", "b.d"], id="product"),
        pytest.param("a{,_extra}", ["a", "a_extra"], id="empty-word"),
        pytest.param("model{.inner,}.mlp", ["model.inner.mlp", "model.mlp"], id="optional-segment"),
        pytest.param("{**,a}.b", ["**.b", "a.b"], id="double-star-in-braces"),
        pytest.param("{a,a}", ["a"], id="duplicates"),
        pytest.param("{**.,}**.a", ["**.a"], id="duplicates-once-collapsed"),
        pytest.param("**.**.a.**.**", ["**.a.**"], id="double-stars-collapse"),
        pytest.param("[!ab]{c,d}", ["[!ab]c", "[!ab]d"], id="class-beside-braces"),
        pytest.param("{[0-9],x}", ["[0-9]", "x"], id="class-in-braces"),
    ],
)
def test_braces_expand(pattern: str, expanded: list[str]) -> None:
    """Braces expand as in bash, before the pattern is cut into segments; doubles are dropped."""
    glob = Glob.parse(pattern)
    assert glob.text == pattern
    assert glob.alternatives == tuple(tuple(each.split(".")) for each in expanded)


def test_braces_may_expand_to_a_thousand() -> None:
    """The limit itself is allowed."""
    assert len(Glob.parse("{0..999}").alternatives) == 1000


def test_globs_are_values() -> None:
    """Equal texts give equal, hashable globs that survive pickling."""
    glob = Glob.parse("a.{b,c}")
    assert glob == Glob.parse("a.{b,c}")
    assert len({glob, Glob.parse("a.{b,c}"), Glob.parse("a.*")}) == 2
    assert pickle.loads(pickle.dumps(glob)).matches("a.c")


@pytest.mark.parametrize(
    "pattern",
    [
        "model.*.mlp",
        "*.mlp",
        "layers.*",
        "layers.*.*",
        "**",
        "*",
        "a*b",
        "[!abc]",
        "[0-9]",
        "layers.[0-9]*.x",
        "a-b_c1",
    ],
)
def test_globs_that_resemble_regular_expressions_are_globs(pattern: str) -> None:
    """A dot before a star is the usual way to write a glob over dotted names."""
    assert Glob.parse(pattern).alternatives == (tuple(pattern.split(".")),)
