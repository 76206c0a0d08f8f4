"""Syntax errors, with both of PyYAML's loaders: same message at the same place."""

from __future__ import annotations

import pytest
import yaml

from rulequant import source


@pytest.fixture(params=["CSafeLoader", "SafeLoader"], autouse=True)
def _loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML is built without libyaml")
    monkeypatch.setattr(source, "_LOADER", getattr(yaml, request.param))


SPACE_REMEDY = "write `key: value`, or `- item` with a space after the dash"
INDENTATION = "check the indentation: the keys of a mapping, and the items of a list, start in one column"
CONTINUED = "end the line above with `:` if this belongs to it, or else give both the same indentation"
ONE_PAIR = "put the whole value in one pair of quotes"
BACKSLASH = "use single quotes, or write a backslash twice: `\\\\`"
NEEDS_QUOTES = "text that holds brackets or commas needs quotes"


@pytest.mark.parametrize(
    ("text", "place", "message", "remedy"),
    [
        pytest.param(
            "- key: value: x  # why",
            (1, 8, 1, 16),
            "`value: x` holds a second `: `, which YAML takes for a key",
            'quote the value: "value: x"',
            id="second colon",
        ),
        pytest.param(
            "a:\n\t- b", (2, 1, 2, 2), "a tab is used for indentation", "write spaces", id="tab before a list"
        ),
        pytest.param(
            "a: b\n\tc: d", (2, 1, 2, 2), "a tab is used for indentation", "write spaces", id="tab before a key"
        ),
        pytest.param(
            "version:1\nextends: bert",
            (1, 1, 1, 10),
            "`version:1` has no space after its `:`, so YAML takes it for text",
            "write `version: 1`",
            id="no space after a colon",
        ),
        pytest.param(
            "a: b\n c: d",
            (2, 3, 2, 4),
            "`:` is not expected here: YAML still reads the text of line 1",
            CONTINUED,
            id="indented after a value",
        ),
        pytest.param(
            "a\nb: c",
            (2, 2, 2, 3),
            "`:` is not expected here: YAML still reads the text of line 1",
            CONTINUED,
            id="no colon on the line above",
        ),
        pytest.param("a: 1\nfoo\nb: 2", (2, 1, 2, 4), "`foo` has no `:` after its key", SPACE_REMEDY, id="no colon"),
        pytest.param("- -\n-b", (2, 1, 2, 3), "`-b` has no `:` after its key", SPACE_REMEDY, id="no space after dash"),
        pytest.param(
            "a: - b",
            (1, 4, 1, 5),
            "a list cannot start on the line of its key",
            "start the list on the next line, or quote the text",
            id="list beside its key",
        ),
        pytest.param(
            "a:\n  b: 1\n c: 2",
            (3, 2, 3, 4),
            "`c:` does not fit into what starts on line 1",
            INDENTATION,
            id="indentation between two levels",
        ),
        pytest.param(
            "- a\nb: c", (2, 1, 2, 3), "`b:` does not fit into what starts on line 1", INDENTATION, id="key in a list"
        ),
        pytest.param(
            "  a: 1\nb: 2",
            (2, 1, 2, 3),
            "`b:` comes after the end of the document",
            INDENTATION,
            id="less than the first",
        ),
        pytest.param(": x", (1, 1, 1, 2), "`:` has no key before it", "write a key, or quote the text", id="no key"),
        pytest.param(
            "{: x}",
            (1, 2, 1, 3),
            "`:` has no key before it",
            "write a key, or quote the text",
            id="no key in a flow mapping",
        ),
        pytest.param(
            "[a,, b]", (1, 4, 1, 5), "a value is missing before `,`", "write it, or quote the text", id="two commas"
        ),
        pytest.param("a: 'x' y", (1, 8, 1, 9), "`y` follows the closing quote", ONE_PAIR, id="text after quotes"),
        pytest.param('- "a".b', (1, 6, 1, 8), "`.b` follows the closing quote", ONE_PAIR, id="text at quotes"),
        pytest.param(
            "k: 'it's'", (1, 8, 1, 10), "`s'` follows the closing quote", ONE_PAIR, id="apostrophe in single quotes"
        ),
        pytest.param(
            'a: "x\nb: 1', (1, 4, 1, 5), 'the quote `"` is never closed', 'close it with `"`', id="unclosed double"
        ),
        pytest.param(
            "a: 'x\nb: 1", (1, 4, 1, 5), "the quote `'` is never closed", "close it with `'`", id="unclosed single"
        ),
        pytest.param(
            'a: "x\\.y"', (1, 6, 1, 8), "`\\.` is not an escape that YAML knows", BACKSLASH, id="unknown escape"
        ),
        pytest.param(
            'a: "\\ud800"',
            (1, 5, 1, 11),
            "`\\ud800` is not an escape that YAML knows",
            "write the character itself",
            id="half a surrogate pair",
        ),
        pytest.param(
            'a: "\\U00110000"',
            (1, 5, 1, 15),
            "`\\U00110000` is not an escape that YAML knows",
            "write the character itself",
            id="past the last character",
        ),
        pytest.param("a: [1, 2", (1, 4, 1, 5), "`[` is never closed", "close it with `]`", id="unclosed list"),
        pytest.param(
            "a: {b: 1\nc: 2\n", (1, 4, 1, 5), "`{` is never closed", "close it with `}`", id="unclosed mapping"
        ),
        pytest.param(
            "[a, b}",
            (1, 6, 1, 7),
            "`}` is not expected here, in the `[` of line 1",
            f"write `,` before it or close with `]`; {NEEDS_QUOTES}",
            id="wrong bracket",
        ),
        pytest.param(
            '["a" b]',
            (1, 6, 1, 8),
            "`b]` is not expected here, in the `[` of line 1",
            f"write `,` before it or close with `]`; {NEEDS_QUOTES}",
            id="no comma",
        ),
        pytest.param("- ]", (1, 3, 1, 4), "`]` cannot start a value", 'quote it: "]"', id="closing bracket"),
        pytest.param("- ,a", (1, 3, 1, 5), "`,a` cannot start a value", 'quote it: ",a"', id="comma"),
        pytest.param(
            "%a",
            (1, 1, 1, 3),
            "`%a` is a directive that cannot stand here",
            'remove the line, or quote it if it is text: "%a"',
            id="directive",
        ),
        pytest.param(
            "- a\n%b c \n",
            (2, 1, 2, 5),
            "`%b c` is a directive that cannot stand here",
            'remove the line, or quote it if it is text: "%b c"',
            id="directive after the start",
        ),
        pytest.param(
            "%YAML 2.0\n---\na",
            (1, 1, 1, 10),
            "`%YAML 2.0` is a directive that cannot stand here",
            'remove the line, or quote it if it is text: "%YAML 2.0"',
            id="another major version",
        ),
        pytest.param(
            "a: 1\n...\nb", (3, 1, 3, 2), "`b` comes after the end of the document", INDENTATION, id="after the end"
        ),
    ],
)
def test_message(text: str, place: tuple[int, int, int, int], message: str, remedy: str) -> None:
    """What is wrong, where exactly, and what to do."""
    document, problems = source.parse(text, file="f.yaml")
    assert document is None
    assert len(problems) == 1
    problem = problems[0]
    assert problem.code == "RQ004"
    assert problem.message == message
    assert problem.remedy == remedy
    where = problem.location
    assert where is not None
    assert (where.line, where.column, where.end_line, where.end_column) == place


def test_a_colon_without_a_space_in_a_flow_mapping(request: pytest.FixtureRequest) -> None:
    """`{a:[b]}` is an error to the C loader alone, and is explained."""
    document, problems = source.parse("{a:[b]}", file="f.yaml")
    if "CSafeLoader" in request.node.name:
        assert [each.message for each in problems] == ["`:` has no space after it"]
    else:
        assert document is not None


def test_what_came_before_the_error_is_reported_too() -> None:
    """A syntax error ends the reading, not the report."""
    _, problems = source.parse("a: 1\na: 2\nb: *.x\nc: [", file="f.yaml")
    assert [each.code for each in problems] == ["RQ006", "RQ005", "RQ004"]
