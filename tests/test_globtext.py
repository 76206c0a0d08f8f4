"""Malformed globs: the code, the message, the remedy and the offset of every refusal."""

from __future__ import annotations

import re

import pytest

from rulequant.globs import Glob, GlobSet
from rulequant.globtext import GlobError


def error_of(pattern: str) -> GlobError:
    """The error that parsing the pattern raises."""
    with pytest.raises(GlobError, match=r".") as caught:
        Glob.parse(pattern)
    return caught.value


MALFORMED = {
    "empty": ("", 0, "the pattern is empty", "write `**` for the whole model, or remove the pattern"),
    "overlong": ("a" * 1001, 1000, "a pattern of over 1000 characters", "use several patterns"),
    "space": (
        "a b",
        1,
        "a pattern holds no whitespace or control characters, and this one has ' '",
        "remove it; `?` matches any one character of a name",
    ),
    "control": (
        "a\x1b",
        1,
        "a pattern holds no whitespace or control characters, and this one has '\\x1b'",
        "remove it; `?` matches any one character of a name",
    ),
    "negation": (
        "!**.mlp",
        0,
        "no pattern is negated with `!`",
        "use except: `except: **.mlp` in the selector",
    ),
    "slash": ("model/mlp", 5, "a pattern holds no `/`", "separate with dots: `model.mlp`"),
    "backslash": ("model\\mlp", 5, "a pattern holds no `\\`", "separate with dots: `model.mlp`"),
    "leading-dot": (
        ".mlp",
        0,
        "`.mlp` has an empty segment: a dot stands at its start, at its end or beside another",
        "write `mlp`, or `**.mlp` for any depth",
    ),
    "trailing-dot": (
        "model.",
        5,
        "`model.` has an empty segment: a dot stands at its start, at its end or beside another",
        "write `model`, which selects everything inside it too",
    ),
    "two-dots": (
        "a..b",
        1,
        "`a..b` has an empty segment: a dot stands at its start, at its end or beside another",
        "write `a.b`, or `a.**.b` for any depth",
    ),
    "only-a-dot": (
        ".",
        0,
        "`.` has an empty segment: a dot stands at its start, at its end or beside another",
        "write `**`, which selects everything inside it too",
    ),
    "empty-alternative": (
        "a.{,x}.b",
        2,
        "the braces expand to `a..b`, which has an empty segment",
        "put the dot inside the braces: `model{.inner,}.mlp`",
    ),
    "nothing-but-an-empty-alternative": (
        "{,x}",
        0,
        "the braces expand to ``, which has an empty segment",
        "put the dot inside the braces: `model{.inner,}.mlp`",
    ),
    "double-star-before-text": (
        "**mlp",
        0,
        "`**` stands for whole segments, and `**mlp` mixes it with something else",
        "write `**.mlp`, or `*mlp` to stay within one segment",
    ),
    "double-star-after-text": (
        "model.layers**.mlp",
        6,
        "`**` stands for whole segments, and `layers**` mixes it with something else",
        "write `layers.**`, or `layers*` to stay within one segment",
    ),
    "three-stars": (
        "a.***",
        2,
        "`**` stands for whole segments, and `***` mixes it with something else",
        "write `**`, or `*` to stay within one segment",
    ),
    "double-star-through-braces": (
        "a{**,b}",
        0,
        "`**` stands for whole segments, and `a**` mixes it with something else",
        "write `a.**`, or `a*` to stay within one segment",
    ),
    "open-bracket": ("a.[bc", 2, "`[` is never closed", "write both `[` and `]`, both `{` and `}`"),
    "open-brace": ("a.{b,c", 2, "`{` is never closed", "write both `[` and `]`, both `{` and `}`"),
    "stray-bracket": ("ab]", 2, "`]` closes nothing", "write both `[` and `]`, both `{` and `}`"),
    "stray-brace": ("ab}", 2, "`}` closes nothing", "write both `[` and `]`, both `{` and `}`"),
    "comma": ("a,b", 1, "a comma outside braces", "use a list of patterns, or `{a,b}`"),
    "empty-class": ("a.[]", 2, "the class `[]` is empty", "list its characters: `[abc]`"),
    "empty-negated-class": ("[!]", 0, "the class `[!]` is empty", "list its characters: `[abc]`"),
    "comma-in-class": (
        "[q,k]_proj",
        0,
        "the class `[q,k]` holds `,`, and lists single characters of one segment",
        "`[abc]` is one of three characters, `{ab,c}` one of two words",
    ),
    "dot-in-class": (
        "a[.]b",
        1,
        "the class `[.]` holds `.`, and lists single characters of one segment",
        "`[abc]` is one of three characters, `{ab,c}` one of two words",
    ),
    "braces-in-class": (
        "[{a,b}]",
        0,
        "the class `[{a,b}]` holds `{`, and lists single characters of one segment",
        "`[abc]` is one of three characters, `{ab,c}` one of two words",
    ),
    "backwards-range": ("[z-a]", 0, "a range of `[z-a]` runs backwards", "write `a-z`"),
    "one-word-in-braces": (
        "{mlp}",
        0,
        "`{mlp}` is neither a list of words nor a range",
        "write `{a,b}`, `{0..12}`, `{a..f}` or no braces",
    ),
    "empty-braces": (
        "a.{}",
        2,
        "`{}` is neither a list of words nor a range",
        "write `{a,b}`, `{0..12}`, `{a..f}` or no braces",
    ),
    "mixed-case-range": (
        "{A..z}",
        0,
        "`{A..z}` is neither a list of words nor a range",
        "write `{a,b}`, `{0..12}`, `{a..f}` or no braces",
    ),
    "hyphen-range": ("l.{0-12}", 2, "`{0-12}` is neither a list of words nor a range", "write `{0..12}`"),
    "slice-range": ("l.{0:12}", 2, "`{0:12}` is neither a list of words nor a range", "write `{0..12}`"),
    "three-dot-range": (
        "l.{0...12}",
        2,
        "`{0...12}` is neither a list of words nor a range",
        "write `{0..12}`",
    ),
    "range-in-a-list": (
        "l.{0..3,7}",
        2,
        "`0..3` in the list `{0..3,7}` needs its own braces",
        "write `{{0..3},7}`",
    ),
    "too-many-patterns": (
        "l.{0..1000}",
        2,
        "the braces expand to more than 1000 patterns or 10000 segments",
        "write `*` for the numbers and name them with `layers`, or use several patterns",
    ),
    "too-many-empty-words": (
        "l{a,}" + "{b,}" * 11,
        1,
        "the braces expand to more than 1000 patterns or 10000 segments",
        "write `*` for the numbers and name them with `layers`, or use several patterns",
    ),
    "too-many-segments": (
        "{0..999}" + ".a" * 10,
        0,
        "the braces expand to more than 1000 patterns or 10000 segments",
        "write `*` for the numbers and name them with `layers`, or use several patterns",
    ),
    "too-deep": ("{a," * 11 + "b" + "}" * 11, 0, "braces nest more than 10 deep", "use several patterns"),
}


@pytest.mark.parametrize(("pattern", "offset", "message", "remedy"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_patterns_are_refused(pattern: str, offset: int, message: str, remedy: str) -> None:
    """Each says what is wrong, where, and what to write instead."""
    error = error_of(pattern)
    assert (error.code, error.message, error.remedy, error.offset) == ("RQ201", message, remedy, offset)
    assert str(error) == f"{message}; {remedy}"


@pytest.mark.parametrize(
    ("pattern", "offset", "message", "remedy"),
    [
        pytest.param(
            "model.layers.[0-12].mlp",
            13,
            "`[0-12]` is a single character (0, 1 or 2), not a number from 0 to 12",
            'write `model.layers.{0..12}.mlp`, or use `layers: ["0:13"]`',
            id="0-12",
        ),
        pytest.param(
            "[10-20]",
            0,
            "`[10-20]` is a single character (0, 1 or 2), not a number from 10 to 20",
            'write `{10..20}`, or use `layers: ["10:21"]`',
            id="10-20",
        ),
        pytest.param(
            "[8-15]",
            0,
            "`[8-15]` is a single character (5), not a number from 8 to 15",
            'write `{8..15}`, or use `layers: ["8:16"]`',
            id="backwards-for-fnmatch",
        ),
        pytest.param(
            "x[!0-12]",
            1,
            "`[!0-12]` is a single character (any but 0, 1 or 2), not a number from 0 to 12",
            'write the numbers in braces, or use `layers: ["0:13"]`',
            id="negated",
        ),
        pytest.param(
            "[0-12,15]",
            0,
            "`[0-12,15]` is a single character (,, 0, 1, 2 or 5), not a number from 0 to 12",
            'write the numbers in braces, or use `layers: ["0:13"]`',
            id="with-a-list",
        ),
        pytest.param(
            "[5-14-3]",
            0,
            "`[5-14-3]` is a single character (none), not a number from 5 to 14",
            'write the numbers in braces, or use `layers: ["5:15"]`',
            id="that-matches-nothing",
        ),
    ],
)
def test_classes_of_many_digits_are_refused(pattern: str, offset: int, message: str, remedy: str) -> None:
    """A range with a bound of several digits says what it really means, and how numbers are written."""
    error = error_of(pattern)
    assert (error.code, error.message, error.remedy, error.offset) == ("RQ202", message, remedy, offset)


HOW_TO = "write `*` in a segment, `**` for any number of them, `{a,b}` for either"


@pytest.mark.parametrize(
    ("pattern", "mark", "remedy"),
    [
        (r"^lm_head$", "^", "write `lm_head`"),
        (r"lm_head$", "$", "write `lm_head`"),
        (r"re:.*lm_head", "re:", "write `**.*lm_head`"),
        (r"re:.*\.mlp\.gate$", "re:", "write `**.mlp.gate`"),
        (r"re:lm_head", "re:", "write `lm_head`"),
        (r"re:", "re:", HOW_TO),
        ("re:" * 300, "re:", HOW_TO),
        (r".*", ".*", "write `**`"),
        (r".*.mlp", ".*", "write `**.mlp`"),
        (r".*mlp", ".*", "write `**.*mlp`"),
        (r".+mlp", ".+", "write `**.*mlp`"),
        (r"mlp.+", ".+", "write `mlp*`"),
        (r"model\.layers\.\d+\.mlp", r"\.", "write `model.layers.*.mlp`"),
        (r"model.layers.\d+.mlp", r"\d", "write `model.layers.*.mlp`"),
        (r"model.layers.\d.mlp", r"\d", "write `model.layers.[0-9].mlp`"),
        (r"model.layers.[0-9]+.mlp", "]+", "write `model.layers.*.mlp`"),
        (r"model.layers.[0-9]{1,2}.mlp", "[0-9]{1,2}", "write `model.layers.*.mlp`"),
        (r"model\.visual\..*", r"\.", "write `model.visual.**`"),
        (r"a\..*\.b", r"\.", "write `a.**.b`"),
        (r"model.layers.*.mlp$", "$", "write `model.layers.*.mlp`"),
        (r"(q|k|v)_proj", "(", "write `{q,k,v}_proj`"),
        (r"(?:self_attn|mlp)\..*", "(", "write `{self_attn,mlp}.**`"),
        (r"layers.(\d+).mlp", "(", "write `layers.*.mlp`"),
        (r"lm_head|score", "|", "write `{lm_head,score}`"),
        (r"[^qk]_proj", "[^", "write `[!qk]_proj`"),
        (r"[^.]+_proj", "[^", "write `*_proj`"),
        (r"model.*?mlp", ".*?", HOW_TO),
        (r"^(?!lm_head).*", "^", HOW_TO),
        (r"(mlp)?.gate", "(", HOW_TO),
        (r"visual?$", "$", HOW_TO),
        (r"model.*mlp$", "$", HOW_TO),
        (r"\bmlp\b", r"\b", HOW_TO),
        (r"a)", ")", HOW_TO),
        (r"a\.\.b", r"\.", HOW_TO),
        (r"${a,b}", "$", HOW_TO),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_regular_expressions_are_refused(pattern: str, mark: str, remedy: str) -> None:
    """What gives it away is named, and the glob is suggested where the translation is obvious."""
    error = error_of(pattern)
    assert error.code == "RQ203"
    assert error.message == f"`{pattern}` looks like a regular expression (`{mark}`), and patterns are globs"
    assert error.remedy == remedy
    assert pattern[error.offset :].startswith(mark)


@pytest.mark.parametrize(
    "expression",
    [r"re:.*\.mlp\.gate$", r".*lm_head", r"^model\.vis\..*", r"(q|k)_proj", r".*\.(?:q|k)_proj", r"model\.(\d+)"],
)
def test_suggested_globs_select_what_the_expression_meant(expression: str) -> None:
    """The suggestion selects every name that the expression matches, and not an unrelated one."""
    names = ["lm_head", "a.my_lm_head", "b.mlp.gate", "model.vis.a.b", "q_proj", "a.k_proj", "model.3", "other"]
    suggestion = re.fullmatch(r"write `(.+)`", error_of(expression).remedy or "")
    assert suggestion
    meant = re.compile(expression.removeprefix("re:"))
    found = GlobSet([Glob.parse(suggestion[1])]).select(names)
    assert any(map(meant.fullmatch, names))
    assert all(found[name] for name in names if meant.fullmatch(name))
    assert not found["other"]
