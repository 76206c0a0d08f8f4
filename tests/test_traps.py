"""Unquoted patterns, with both of PyYAML's loaders: same message, same place, and the data that was meant."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from rulequant import source
from rulequant.diagnostics import Diagnostic, Location
from rulequant.scalars import quote
from rulequant.source import Document


@pytest.fixture(params=["CSafeLoader", "SafeLoader"], autouse=True)
def _loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML is built without libyaml")
    monkeypatch.setattr(source, "_LOADER", getattr(yaml, request.param))


def parse(text: str) -> tuple[Document | None, list[Diagnostic]]:
    return source.parse(text, file="f.yaml")


def data(document: Document | None) -> Any:
    assert document is not None
    return document.data


BLOCK = ["*", "**", "*.mlp", "**.mlp", "*mlp", "**.mlp.*", "*.{a,b}", "*.[0-9]", "*.mlp, x", "*x, y", "* y",
         "[0-9].mlp", "[0-9]x", "[ab]*", "[0-9]?", "[0-9]@", "[]x", "[a][b].c", "{q,k}", "{q, k}", "{q,k}_proj",
         "{q,k}*", "{q,k}.[0-9]", "{0..12}", "{a}", "!x", "!gate.*", "!", "!!", "!a{b}", "!{a,b}", "!a!b", "!*.mlp",
         "!<a", "&x", "& y", "&*.mlp", "%a", "%%", "@a", "`a`", "|x", ">x", "?"]  # fmt: skip
FLOW = ["*", "**.mlp", "*mlp", "*.{a,b}.c", "**.[0-9]", "[0-9].mlp", "[0-9]*", "{q,k}", "{q,k}_proj", "a.{q,k}",
        "a.{q,k}_proj", "a.[0-9].b", "x.[0-9]*.a", "a[0-9]b[1-2]*", "a[0-9]b[1-2]c", "?.mlp", "!x", "!a{b}", "&x", "%a",
        "@a", "`a`"]  # fmt: skip


def assert_trap(text: str, pattern: str, meant: Any) -> None:
    """One RQ005 whose place is exactly the pattern, and the data of the quoted text."""
    document, problems = parse(text)
    assert [each.code for each in problems] == ["RQ005"]
    problem = problems[0]
    start = text.index(pattern)
    assert problem.location == Location("f.yaml", 1, start + 1, 1, start + 1 + len(pattern))
    assert problem.value == pattern
    assert problem.remedy == f"quote the pattern: {quote(pattern)}"
    assert problem.message.startswith(f"`{pattern}` is not quoted, and `")
    assert data(document) == meant
    fixed = text[:start] + quote(pattern) + text[start + len(pattern) :]
    assert parse(fixed)[1] == []


@pytest.mark.parametrize("pattern", BLOCK)
def test_in_a_block_list(pattern: str) -> None:
    """`- PATTERN`, the usual place of a pattern."""
    assert_trap(f"- {pattern}", pattern, [pattern])


@pytest.mark.parametrize("pattern", BLOCK)
def test_as_the_value_of_a_key_with_a_comment(pattern: str) -> None:
    """`key: PATTERN  # comment`."""
    assert_trap(f"key: {pattern}  # why", pattern, {"key": pattern})


@pytest.mark.parametrize("pattern", FLOW)
def test_in_a_flow_list(pattern: str) -> None:
    """`[x, PATTERN, y]`, where a comma ends a text that is not in brackets of its own."""
    assert_trap(f"key: [x, {pattern}, y]", pattern, {"key": ["x", pattern, "y"]})


@pytest.mark.parametrize("pattern", FLOW)
def test_in_a_flow_mapping(pattern: str) -> None:
    """`{modules: PATTERN, scheme: nf4}`."""
    meant = [{"modules": pattern, "scheme": "nf4"}]
    assert_trap(f"- {{modules: {pattern}, scheme: nf4}}", pattern, meant)


@pytest.mark.parametrize("pattern", ["**.mlp", "*mlp", "**.mlp.*", "@a"])
def test_as_a_key(pattern: str) -> None:
    """`PATTERN: nf4`."""
    assert_trap(f"{pattern}: nf4", pattern, {pattern: "nf4"})


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("**.mlp", "`**.mlp` is not quoted, and `*` starts an alias in YAML"),
        ("[0-9].mlp", "`[0-9].mlp` is not quoted, and `[` starts a list in YAML"),
        ("{q,k}_proj", "`{q,k}_proj` is not quoted, and `{` starts a mapping in YAML"),
        ("!x", "`!x` is not quoted, and `!` starts a tag in YAML"),
        ("&x", "`&x` is not quoted, and `&` starts an anchor in YAML"),
        ("%x", "`%x` is not quoted, and `%` is reserved in YAML"),
    ],
)
def test_the_message_says_how_yaml_reads_it(pattern: str, message: str) -> None:
    """What the pattern is, and why that is no string."""
    assert [each.message for each in parse(f"- {pattern}")[1]] == [message]


def test_all_patterns_of_a_file_are_reported_at_once() -> None:
    """One pass per pattern, positions of the text as written, and the rest checked too."""
    text = "a:\n  - *.mlp\n  - ok\n  - {q,k}_proj\nb: [a.{0..3}, **.x]\na: 1\n"
    document, problems = parse(text)
    places = [(each.code, each.location.line, each.location.column) for each in problems if each.location]
    expected = [("RQ005", 2, 5), ("RQ005", 4, 5), ("RQ005", 5, 5), ("RQ005", 5, 15), ("RQ006", 6, 1)]
    assert places == expected
    assert data(document) == {"a": ["*.mlp", "ok", "{q,k}_proj"], "b": ["a.{0..3}", "**.x"]}
    assert document is not None
    assert document.raw(("a", 2)) == "{q,k}_proj"
    assert document.value(("b", 1)) == Location("f.yaml", 5, 15, 5, 19)


def test_patterns_beyond_the_limit_are_left_for_the_next_run() -> None:
    """A file of a thousand unquoted patterns gives a hundred problems, not a thousand passes."""
    document, problems = parse("- *.mlp\n" * 1000)
    assert document is None
    assert {each.code for each in problems} == {"RQ005"}
    assert 0 < len(problems) <= source.MAX_PROBLEMS


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        pytest.param("[0-9]", ["0-9"], id="a list on its own is left to the type check"),
        pytest.param("- a.{q,k}_proj", ["a.{q,k}_proj"], id="brackets within block text"),
        pytest.param("a: model.[0-9]*", {"a": "model.[0-9]*"}, id="star within text"),
        pytest.param("a: x!y&z", {"a": "x!y&z"}, id="indicators within text"),
        pytest.param("{a: 1, b: }", {"a": 1, "b": None}, id="mapping with a value"),
        pytest.param("{a: , b: }", {"a": None, "b": None}, id="mapping with colons"),
        pytest.param('{"a", b}', {"a": None, "b": None}, id="quoted keys"),
        pytest.param("a: {}", {"a": {}}, id="empty mapping"),
        pytest.param("? a\n: b", {"a": "b"}, id="explicit key"),
        pytest.param("- ?x", ["?x"], id="question mark in a block"),
        pytest.param("# [\n- a, b", ["a, b"], id="bracket in a comment"),
    ],
)
def test_what_is_no_trap(text: str, meant: Any) -> None:
    """Valid YAML that only looks alike is read as it stands."""
    document, problems = parse(text)
    assert problems == []
    assert data(document) == meant


def test_a_bracket_in_a_comment_does_not_make_a_flow_list() -> None:
    """The comma belongs to the pattern: the bracket before it is in a comment."""
    document, problems = parse('# see [1] and "[\n- *.a, b')
    assert [each.value for each in problems] == ["*.a, b"]
    assert data(document) == ["*.a, b"]


def test_a_pattern_within_another_is_reported_once() -> None:
    """The outer text is what to quote."""
    document, problems = parse("- [*.a, b].c")
    assert [each.value for each in problems] == ["[*.a, b].c"]
    assert data(document) == ["[*.a, b].c"]
