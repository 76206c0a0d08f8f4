"""The text of a pattern: checked, its braces expanded, and split into segments."""

from __future__ import annotations

import re
from typing import NoReturn

import bracex

__all__ = ["MAX_LENGTH", "MAX_SEGMENTS", "MULTI_DIGIT_CLASS", "GlobError", "alternatives"]

MAX_LENGTH = 1000  # characters of a pattern
MAX_ALTERNATIVES = 1000  # what its braces may expand to
MAX_SEGMENTS = 10_000  # of all its alternatives together: they bound the size of a state
MAX_NESTING = 10  # braces within braces; bracex recurses
MALFORMED, MULTI_DIGIT_CLASS, REGULAR_EXPRESSION = "RQ201", "RQ202", "RQ203"

_INNERMOST_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d{1,9}\.\.-?\d{1,9}|[a-z]\.\.[a-z]|[A-Z]\.\.[A-Z])(\.\.\d{1,9})?", re.A)
_MULTI_DIGIT = re.compile(r"\d{2,}-\d+|\d+-\d{2,}", re.A)

# What a regular expression has and no glob needs. `.*` alone is no mark: `layers.*.mlp` is a glob.
_REGEX_MARK = re.compile(
    r"\Are:|\A\.[*+]|\.\*\?|[.\])*]\+|\[0-9\]\{\d+(?:,\d*)?\}|\[\^|[\^$|()]|\\[.dDwWsSbB*+?(){}\[\]^$|]"
)
_REGEX_TO_GLOB = (  # \0 is an escaped dot, \1 to \4 are what they become: `*`, `**`, `{`, `}`
    (r"(?:\\[dw]|\[0-9\]|\[\^[.\0]\])(?:[+*]\??|\{\d+(?:,\d*)?\})", "\1"),
    (r"\A\.[*+]\??[.\0]", "\2\0"),
    (r"\A\.[*+]\??\Z", "\2"),
    (r"\A\.[*+]\??", "\2\0\1"),
    (r"\0\.[*+]\??(?=\0|\Z)", "\0\2"),
    (r"\.[*+]\??\Z|(?<=\.)\*(?=\.)", "\1"),
    (r"\((?:\?:)?([^()|]*)\)", r"\g<1>"),
    (r"\|(?=[^()]*\))", ","),
    (r"\((?:\?:)?([^()]*)\)", "\3\\g<1>\4"),
    (r"\[\^", "[!"),
    (r"\\d", "[0-9]"),
)
_GLOB_FOR = str.maketrans({0: ".", 1: "*", 2: "**", 3: "{", 4: "}"})


class GlobError(ValueError):
    """A pattern is malformed: what is wrong, what to write instead, and where in the pattern."""

    def __init__(self, message: str, remedy: str, offset: int = 0, code: str = MALFORMED) -> None:
        super().__init__(f"{message}; {remedy}")
        self.message = message
        self.remedy: str | None = remedy
        self.offset = offset
        self.code = code


def alternatives(text: str) -> tuple[tuple[str, ...], ...]:
    """The segments of each alternative that the braces of a pattern expand to, each alternative once.

    Raises:
        GlobError: the pattern is malformed, or means something else than its author believes.
    """
    _check_characters(text)
    _check_structure(text)
    return tuple(dict.fromkeys(_segments(text, each) for each in _expand(text)))


def _check_characters(text: str) -> None:
    if not text:
        raise GlobError("the pattern is empty", "write `**` for the whole model, or remove the pattern")
    if len(text) > MAX_LENGTH:
        raise GlobError(f"a pattern of over {MAX_LENGTH} characters", "use several patterns", MAX_LENGTH)
    for offset, character in enumerate(text):
        if character.isspace() or not character.isprintable():
            message = f"a pattern holds no whitespace or control characters, and this one has {character!a}"
            raise GlobError(message, "remove it; `?` matches any one character of a name", offset)
    if text.startswith("!"):
        raise GlobError("no pattern is negated with `!`", f"use except: `except: {text[1:]}` in the selector")
    if mark := _REGEX_MARK.search(text):
        message = f"`{text}` looks like a regular expression (`{mark[0]}`), and patterns are globs"
        glob = _regex_as_glob(text)
        remedy = f"`{glob}`" if glob else "`*` in a segment, `**` for any number of them, `{a,b}` for either"
        raise GlobError(message, f"write {remedy}", mark.start(), REGULAR_EXPRESSION)
    if slash := re.search(r"[/\\]", text):
        dotted = ".".join(filter(None, re.split(r"[/\\.]+", text)))
        raise GlobError(f"a pattern holds no `{slash[0]}`", f"separate with dots: `{dotted}`", slash.start())


def _regex_as_glob(text: str) -> str | None:
    """The glob for a regular expression, where that is obvious; the expression itself is never run."""
    body = text.removeprefix("re:").removeprefix("^").removesuffix("$").replace("\\.", "\0")
    if "|" in body and "(" not in body:
        body = f"({body})"
    for pattern, replacement in _REGEX_TO_GLOB:
        body = re.sub(pattern, replacement, body)
    if re.search(r"\Are:|[\\^$*+?|(){}]", body):
        return None
    try:
        glob: str = body.translate(_GLOB_FOR)
        alternatives(glob)
    except GlobError:
        return None
    return glob


def _check_structure(text: str) -> None:
    """Brackets and braces close, and mean what they look like; each is blanked out once it is checked."""
    flat = re.sub(r"\[[^\]]*\]", _checked_class, text)
    for _ in range(MAX_NESTING):
        flat = _INNERMOST_BRACES.sub(lambda braces: _checked_braces(braces, text), flat)
    if deep := _INNERMOST_BRACES.search(flat):
        raise GlobError(f"braces nest more than {MAX_NESTING} deep", "use several patterns", deep.start())
    if odd := re.search(r"[\[\]{}]", flat):
        message = f"`{odd[0]}` {'is never closed' if odd[0] in '[{' else 'closes nothing'}"
        raise GlobError(message, "write both `[` and `]`, both `{` and `}`", odd.start())
    if "," in flat:
        raise GlobError("a comma outside braces", f"use a list of patterns, or `{{{text}}}`", flat.index(","))


def _checked_class(found: re.Match[str]) -> str:
    whole, start = found[0], found.start()
    body = whole[1:-1].removeprefix("!")
    if not body:
        raise GlobError(f"the class `{whole}` is empty", "list its characters: `[abc]`", start)
    if number := _MULTI_DIGIT.search(body):
        _refuse_multi_digit(found, number[0])
    if odd := re.search(r"[.,\[{}]", body):
        message = f"the class `{whole}` holds `{odd[0]}`, and lists single characters of one segment"
        raise GlobError(message, "`[abc]` is one of three characters, `{ab,c}` one of two words", start)
    if backwards := [f"{high}-{low}" for low, high in _spans(body) if low > high]:
        raise GlobError(f"a range of `{whole}` runs backwards", f"write `{backwards[0]}`", start)
    return "_" * len(whole)


def _spans(body: str) -> list[tuple[str, str]]:
    """The ranges of a class as fnmatch reads them; a single character is a range of one."""
    return [(each[0], each[-1]) for each in re.findall(r".-.|.", body)]


def _refuse_multi_digit(found: re.Match[str], number: str) -> NoReturn:
    whole, text = found[0], found.string
    ranges = [range(ord(low), ord(high) + 1) for low, high in _spans(whole[1:-1].removeprefix("!"))]
    single = sorted({chr(code) for each in ranges for code in each[:10]})
    listed = " or ".join(filter(None, [", ".join(single[:-1]), *single[-1:]])) or "none"
    listed = f"any but {listed}" if whole[1] == "!" else listed
    first, last = number.split("-")
    low, high = sorted((int(first), int(last)))
    fixed = f"{text[: found.start()]}{{{first}..{last}}}{text[found.end() :]}"
    remedy = f"write `{fixed}`" if whole == f"[{number}]" else "write the numbers in braces"
    remedy += f', or use `layers: ["{low}:{high + 1}"]`'
    message = f"`{whole}` is a single character ({listed}), not a number from {first} to {last}"
    raise GlobError(message, remedy, found.start(), MULTI_DIGIT_CLASS)


def _checked_braces(found: re.Match[str], text: str) -> str:
    words = found[1].split(",")
    inner = text[found.start() + 1 : found.end() - 1]
    ranges = [word for word in words if _RANGE.fullmatch(word)]
    if len(words) == 1 and not ranges:
        bounds = re.fullmatch(r"(\d+)(?:-|:|\.{3,})(\d+)", inner, re.A)
        remedy = f"`{{{bounds[1]}..{bounds[2]}}}`" if bounds else "`{a,b}`, `{0..12}`, `{a..f}` or no braces"
        message = f"`{{{inner}}}` is neither a list of words nor a range"
        raise GlobError(message, f"write {remedy}", found.start())
    if len(words) > 1 and ranges:
        fixed = ",".join(f"{{{word}}}" if word in ranges else word for word in words)
        message = f"`{ranges[0]}` in the list `{{{inner}}}` needs its own braces"
        raise GlobError(message, f"write `{{{fixed}}}`", found.start())
    return "_" * len(found[0])


def _expand(text: str) -> list[str]:
    """What the braces expand to, in order, the empty string too: bracex drops that, hence the prefix."""
    try:
        expanded = [each[1:] for each in bracex.iexpand("/" + text, limit=MAX_ALTERNATIVES)]
    except bracex.ExpansionLimitException:
        expanded = []
    if not expanded or sum(each.count(".") + 1 for each in expanded) > MAX_SEGMENTS:
        message = f"the braces expand to more than {MAX_ALTERNATIVES} patterns or {MAX_SEGMENTS} segments"
        remedy = "write `*` for the numbers and name them with `layers`, or use several patterns"
        raise GlobError(message, remedy, text.index("{"))
    return expanded


def _segments(text: str, expanded: str) -> tuple[str, ...]:
    kept: list[str] = []
    for segment in expanded.split("."):
        if not segment:
            _refuse_empty_segment(text, expanded)
        if "**" in segment and segment != "**":
            _refuse_double_star(text, segment)
        if segment != "**" or kept[-1:] != ["**"]:
            kept.append(segment)
    return tuple(kept)


def _refuse_empty_segment(text: str, expanded: str) -> NoReturn:
    if expanded != text:
        message = f"the braces expand to `{expanded}`, which has an empty segment"
        raise GlobError(message, "put the dot inside the braces: `model{.inner,}.mlp`", text.index("{"))
    plain = ".".join(filter(None, text.split("."))) or "**"
    deep = re.sub(r"\A\.+|\.{2,}", ".**.", text).strip(".")
    also = f", or `{deep}` for any depth" if deep != plain else ", which selects everything inside it too"
    message = f"`{text}` has an empty segment: a dot stands at its start, at its end or beside another"
    dot = next(re.finditer(r"\A\.|\.\.|\.\Z", text))
    raise GlobError(message, f"write `{plain}`{also}", dot.start())


def _refuse_double_star(text: str, segment: str) -> NoReturn:
    message = f"`**` stands for whole segments, and `{segment}` mixes it with something else"
    apart = ".".join("**" if "**" in part else part for part in re.split(r"(\*{2,})", segment) if part)
    remedy = f"write `{apart}`, or `{re.sub(r'[*]+', '*', segment)}` to stay within one segment"
    raise GlobError(message, remedy, max(text.find(segment), 0))
