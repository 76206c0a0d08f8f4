"""What a rule file may not use, with both of PyYAML's loaders."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from rulequant import source
from rulequant.diagnostics import Diagnostic
from rulequant.source import Document


@pytest.fixture(params=["CSafeLoader", "SafeLoader"], autouse=True)
def _loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML is built without libyaml")
    monkeypatch.setattr(source, "_LOADER", getattr(yaml, request.param))


def parse(text: str) -> tuple[Document | None, list[Diagnostic]]:
    return source.parse(text, file="f.yaml")


def only(problems: list[Diagnostic]) -> Diagnostic:
    assert len(problems) == 1
    return problems[0]


def place(problem: Diagnostic) -> tuple[int, int, int, int]:
    where = problem.location
    assert where is not None
    return where.line, where.column, where.end_line, where.end_column


def test_a_duplicate_key_points_at_the_second_and_names_the_first() -> None:
    """The first value stays, so that the rest can be checked."""
    document, problems = parse("a: 1\nb: 2\n'a': {c: [1]}\n")
    problem = only(problems)
    assert (problem.code, place(problem)) == ("RQ006", (3, 1, 3, 4))
    assert problem.message == "the key `a` is already on line 1"
    assert problem.remedy == "keep one of the two"
    assert document is not None
    assert document.data == {"a": 1, "b": 2}


def test_the_same_key_of_two_mappings_is_fine() -> None:
    """Only within one mapping a key stands once."""
    assert parse("- {a: 1}\n- {a: 2}\n")[1] == []


@pytest.mark.parametrize(
    ("text", "where"),
    [
        pytest.param("a: &x b", (1, 4, 1, 6), id="scalar"),
        pytest.param("a: &x\n  b: c", (1, 4, 1, 6), id="mapping"),
        pytest.param("a: &x [b]", (1, 4, 1, 6), id="list"),
        pytest.param("&x a: b", (1, 1, 1, 3), id="key"),
    ],
)
def test_an_anchor_is_refused_and_its_value_kept(text: str, where: tuple[int, int, int, int]) -> None:
    """RQ007 at the anchor; the data is as if it were not there."""
    document, problems = parse(text)
    problem = only(problems)
    assert (problem.code, place(problem)) == ("RQ007", where)
    assert problem.message == "`&x` is an anchor"
    assert problem.remedy == "remove it; to share rules, use `extends`"
    expected, _ = parse(text.replace("&x ", "").replace(" &x", ""))
    assert document is not None
    assert expected is not None
    assert document.data == expected.data


@pytest.mark.parametrize("text", ["a: &x b\nc: *x", "a: &x b\n*x : c", "- &x [*x]"], ids=["value", "key", "itself"])
def test_an_alias_of_an_anchor_is_refused(text: str) -> None:
    """RQ007 for both; there is no data, for it would lack what the alias stands for."""
    document, problems = parse(text)
    assert document is None
    assert [each.code for each in problems] == ["RQ007", "RQ007"]
    assert problems[1].message == "`*x` is an alias"
    assert problems[1].remedy == "write the value out, or use `extends`"


def test_a_merge_key_is_refused() -> None:
    """RQ007 at the key; in quotes it is a key like any other."""
    document, problems = parse("a: 1\n<<: {b: 2}")
    assert document is None
    assert (only(problems).code, place(only(problems))) == ("RQ007", (2, 1, 2, 3))
    assert only(problems).message == "`<<` is a merge key"
    assert parse("'<<': 1")[1] == []


@pytest.mark.parametrize(
    ("text", "tag", "data"),
    [
        pytest.param("- !!str 5", "!!str", [5], id="standard"),
        pytest.param("- !x y", "!x", ["y"], id="local"),
        pytest.param("- !<tag:x> y", "!<tag:x>", ["y"], id="verbatim"),
        pytest.param("- ! y", "!", ["y"], id="non-specific"),
        pytest.param("- !!python/object:os.system {a: b}", "!!python/object:os.system", [{"a": "b"}], id="constructor"),
        pytest.param("- !!set {a: b}", "!!set", [{"a": "b"}], id="collection"),
        pytest.param("- !!str", "!!str", [None], id="without a value"),
    ],
)
def test_a_tag_is_refused_and_has_no_effect(text: str, tag: str, data: Any) -> None:
    """RQ008 at the tag; the value is what it would be without."""
    document, problems = parse(text)
    problem = only(problems)
    assert (problem.code, place(problem)) == ("RQ008", (1, 3, 1, 3 + len(tag)))
    assert problem.message == f"`{tag}` is a tag"
    assert problem.remedy == "remove it; text that starts with `!` needs quotes"
    assert document is not None
    assert document.data == data


def test_a_tag_and_an_anchor_are_two_problems() -> None:
    """Each at its own place."""
    _, problems = parse("- &x !t y")
    assert [(each.code, each.value) for each in problems] == [("RQ007", "&x"), ("RQ008", "!t")]


def test_a_second_document_is_refused() -> None:
    """RQ009 where it begins; the first one is returned."""
    document, problems = parse("---\na: 1\n---\na: &x 2\n")
    assert (only(problems).code, place(only(problems))) == ("RQ009", (3, 1, 3, 4))
    assert only(problems).message == "a second document begins here"
    assert document is not None
    assert document.data == {"a": 1}


def test_one_document_may_have_its_markers() -> None:
    """`---`, `...` and `%YAML 1.2` are fine once."""
    document, problems = parse("%YAML 1.2\n---\na: 1\n...\n")
    assert problems == []
    assert document is not None
    assert document.data == {"a": 1}


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        pytest.param("1", "a number", id="integer"),
        pytest.param("1.5", "a number", id="float"),
        pytest.param("true", "a boolean", id="boolean"),
        pytest.param("~", "null", id="null"),
        pytest.param("9" * 50, "a number", id="long"),
    ],
)
def test_a_key_that_is_no_string_is_refused(key: str, kind: str) -> None:
    """RQ010 with the quoted key as remedy; the data has its text."""
    document, problems = parse(f"{key}: x")
    problem = only(problems)
    assert (problem.code, place(problem)) == ("RQ010", (1, 1, 1, 1 + len(key)))
    assert problem.message == f"the key `{key}` is {kind}, not a string"
    assert problem.remedy == f'quote the key: "{key}"'
    assert document is not None
    assert document.data == {key: "x"}


@pytest.mark.parametrize("key", ["no", "on", "y", "1_000", "2024-01-01", "'1'", '"true"'])
def test_a_key_that_looks_like_one_is_fine(key: str) -> None:
    """Strings of YAML 1.2, and quoted ones."""
    assert parse(f"{key}: x")[1] == []


def test_an_empty_key_is_refused() -> None:
    """RQ010, as of `{? : x}`."""
    _, problems = parse("{? : x}")
    assert (only(problems).code, only(problems).message) == ("RQ010", "the key is empty")


@pytest.mark.parametrize(
    ("text", "kind"),
    [("[a, b]: c\nd: 1\nd: 2", "list"), ("{a: b}: c\nd: 1\nd: 2", "mapping"), ("? - a\n: c\nd: 1\nd: 2", "list")],
    ids=["flow list", "flow mapping", "block list"],
)
def test_a_collection_as_a_key_is_refused(text: str, kind: str) -> None:
    """RQ010, and the rest is still checked."""
    document, problems = parse(text)
    assert document is None
    assert [each.code for each in problems] == ["RQ010", "RQ006"]
    assert problems[0].message == f"a {kind} stands where a key should"


@pytest.mark.parametrize("nesting", ["[", "{a: ", "- "], ids=["list", "mapping", "block"])
def test_depth(nesting: str) -> None:
    """64 levels are read, the 65th is RQ011."""
    closer = {"[": "]", "{a: ": "}", "- ": ""}[nesting]
    assert parse(nesting * 64 + "x" + closer * 64)[1] == []
    document, problems = parse(nesting * 65 + "x" + closer * 65)
    assert document is None
    assert (only(problems).code, only(problems).message) == ("RQ011", "more than 64 levels of nesting")
    assert place(only(problems))[1] == 64 * len(nesting) + 1


def test_a_long_number_is_refused() -> None:
    """RQ012, with the number cut to what a person can read."""
    document, problems = parse(f"a: {'9' * 5000}\nb: 1\nb: 2")
    assert document is None
    assert [each.code for each in problems] == ["RQ012", "RQ006"]
    assert problems[0].message == "a number of 5,000 characters; 31 are allowed"
    assert problems[0].value is not None
    assert len(problems[0].value) == 80
    assert place(problems[0]) == (1, 4, 1, 5004)


def test_a_long_number_in_quotes_is_text() -> None:
    """Quotes make it a string of any length."""
    document, problems = parse(f"'{'9' * 5000}'")
    assert problems == []
    assert document is not None
    assert document.data == "9" * 5000


def test_the_number_of_values_is_limited() -> None:
    """RQ002 for a list that only a program would write."""
    document, problems = parse("- a\n" * 60_000)
    assert document is None
    assert (only(problems).code, only(problems).message) == ("RQ002", "more than 50,000 keys and values")


def test_the_number_of_problems_is_limited() -> None:
    """After a hundred the reading ends."""
    document, problems = parse("a: 1\n" * 1000)
    assert document is None
    assert len(problems) == source.MAX_PROBLEMS
