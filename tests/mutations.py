"""Rule files with one mistake each, made from good ones, and what rulequant says about them."""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rulequant import source
from rulequant.bundled import bundled_names, bundled_path
from rulequant.diagnostics import Diagnostic, Location, has_errors
from rulequant.known_types import known_types
from rulequant.lint import lint
from rulequant.loader import Loader
from rulequant.remedies import keys_of
from rulequant.rulefile import Expect, Rule, RuleFile, SkipModules
from rulequant.schemes import BUILTIN
from rulequant.source import DataPath, Document

__all__ = ["KINDS", "Mutation", "Tally", "Verdict", "judge", "mutations"]

EXAMPLES = Path(__file__).with_name("examples") / "valid"
MODELS: tuple[type[BaseModel], ...] = (RuleFile, SkipModules, Rule, Expect, *BUILTIN.values())
KEYS = frozenset(key for model in MODELS for key in keys_of(model))
LITERAL_KEYS = frozenset({"version", "output_embeddings", "optional", *BUILTIN["bnb_4bit"].model_fields})
# What a literal may be at some place: a misspelling that is one of these is another value, not a mistake.
LITERALS = frozenset(
    {
        *("1", "skip", "quantize", "true", "false", "null", "~", "bnb_4bit", "bnb_int8", "nf4", "fp4"),
        *("auto", "uint8", "float16", "bfloat16", "float32"),
        *("32", "64", "128", "256", "512", "1024", "2048", "4096"),
    }
)
LETTERS = string.ascii_lowercase + string.digits + "_"
_PLAIN_LITERAL = re.compile(r"\w+")
_SUGGESTED = re.compile(r"(?:did you mean|is) `([^`]+)`")


@dataclass(frozen=True, slots=True)
class Mutation:
    """A rule file with one mistake: the text, and for a misspelt word what it is and what it should be."""

    kind: str
    path: Path
    text: str
    line: int = 0
    wrong: str | None = None
    right: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What rulequant says about a mutation."""

    mutation: Mutation
    diagnostics: tuple[Diagnostic, ...]
    invalid: bool
    refused: bool
    """pydantic refuses the data that another YAML reader finds in the text, or that reader finds none."""

    @property
    def silent(self) -> bool:
        """It passes and should not."""
        return self.refused and not self.invalid

    @property
    def counts(self) -> bool:
        """It is a misspelt word, and something is said about the file."""
        return self.mutation.right is not None and bool(self.diagnostics)

    @property
    def named(self) -> bool:
        """The right word is in a remedy or among what is allowed."""
        return any(
            self._right.search(text.casefold())
            for each in self.diagnostics
            for text in (each.remedy or "", *each.allowed)
        )

    @property
    def first(self) -> bool:
        """A remedy names the right word before any other."""
        return any(
            found and self._right.search(found[0].casefold())
            for each in self.diagnostics
            for found in [_SUGGESTED.search(each.remedy or "")]
        )

    @property
    def _right(self) -> re.Pattern[str]:
        """The right word, not as a part of another; YAML takes True for true."""
        return re.compile(rf"(?<![\w*\]]){re.escape((self.mutation.right or '').casefold())}(?![\w*\[])")


@dataclass
class Tally:
    """Figures over many verdicts."""

    total: Counter[str] = field(default_factory=Counter)
    invalid: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)
    first: Counter[str] = field(default_factory=Counter)
    silent: list[Verdict] = field(default_factory=list)
    missed: list[Verdict] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        kind = verdict.mutation.kind
        self.total[kind] += 1
        self.invalid[kind] += verdict.invalid
        if verdict.silent:
            self.silent.append(verdict)
        if verdict.counts:
            self.counted[kind] += 1
            self.named[kind] += verdict.named
            self.first[kind] += verdict.first
            if not verdict.named:
                self.missed.append(verdict)

    def share(self, hits: Counter[str], kinds: Iterable[str]) -> float:
        """The share of the counted misspellings of some kinds that are hits."""
        kinds = tuple(kinds)
        return sum(hits[each] for each in kinds) / (sum(self.counted[each] for each in kinds) or 1)


def mutations(count: int, *, seed: int) -> Iterator[Mutation]:
    """So many mutations, each kind as often as the others, from good files taken at random."""
    chance = random.Random(seed)
    made = 0
    while made < count:
        kind = tuple(KINDS)[made % len(KINDS)]
        path, document = chance.choice(_documents())
        mutation = KINDS[kind](kind, path, document, chance)
        if mutation is not None and mutation.text != document.text:
            made += 1
            yield mutation


def judge(mutation: Mutation) -> Verdict:
    """Check a mutation as `validate` does, and as two other programs do."""
    loader = Loader()
    loaded = loader.load_text(mutation.text, file=mutation.path.name, path=mutation.path)
    rules = loader.resolve(loaded) if loaded else None
    found = list(loader.diagnostics)
    if loaded and rules:
        found += lint(loader.chain(loaded) or [], rules)
    return Verdict(mutation, tuple(found), has_errors(found), _is_refused(mutation.text))


@cache
def _documents() -> tuple[tuple[Path, Document], ...]:
    """The bundled files and the valid examples."""
    paths = [path for name in bundled_names() if (path := bundled_path(name))] + sorted(EXAMPLES.glob("*.yaml"))
    return tuple((path, document) for path in paths if (document := source.read(path)[0]))


def _deleted(kind: str, path: Path, document: Document, chance: random.Random) -> Mutation:
    at = chance.randrange(len(document.text))
    return Mutation(kind, path, document.text[:at] + document.text[at + 1 :])


def _doubled(kind: str, path: Path, document: Document, chance: random.Random) -> Mutation:
    at = chance.randrange(len(document.text))
    return Mutation(kind, path, document.text[:at] + document.text[at] + document.text[at:])


def _indent_moved(kind: str, path: Path, document: Document, chance: random.Random) -> Mutation:
    lines = document.text.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    by = chance.choice((-2, -1, 1, 2))
    lines[at] = " " * by + lines[at] if by > 0 else re.sub(rf"\A {{0,{-by}}}", "", lines[at])
    return Mutation(kind, path, "".join(lines))


def _line_dropped(kind: str, path: Path, document: Document, chance: random.Random) -> Mutation:
    lines = document.text.splitlines(keepends=True)
    del lines[chance.randrange(len(lines))]
    return Mutation(kind, path, "".join(lines))


def _quote_removed(kind: str, path: Path, document: Document, chance: random.Random) -> Mutation | None:
    quotes = [each.start() for each in re.finditer("[\"']", document.text)]
    if not quotes:
        return None
    at = chance.choice(quotes)
    return Mutation(kind, path, document.text[:at] + document.text[at + 1 :])


def _key_misspelt(kind: str, path: Path, document: Document, chance: random.Random) -> Mutation | None:
    # The names of schemes are free.
    keys = [each for each in _keys(document.data) if len(each) != 2 or each[0] != "schemes"]
    chosen = chance.choice(keys)
    return _misspelt(kind, path, document, chance, document.key(chosen), str(chosen[-1]), KEYS)


def _literal_misspelt(kind: str, path: Path, document: Document, chance: random.Random) -> Mutation | None:
    values = [each for each in _scalars(document.data) if each[-1] in LITERAL_KEYS]
    chosen = chance.choice(values)
    word = document.raw(chosen) or ""
    if not _PLAIN_LITERAL.fullmatch(word.strip("\"'")) or word == "null":
        return None  # nobody misspells what need not be there
    return _misspelt(kind, path, document, chance, document.value(chosen), word.strip("\"'"), LITERALS)


def _type_misspelt(kind: str, path: Path, document: Document, chance: random.Random) -> Mutation | None:
    names = [each for each in _scalars(document.data) if "quantizable_types" in each or "types" in each]
    return _name_misspelt(kind, path, document, chance, names, known_types())


def _scheme_misspelt(kind: str, path: Path, document: Document, chance: random.Random) -> Mutation | None:
    names = [each for each in _scalars(document.data) if each[-1] == "scheme"]
    return _name_misspelt(kind, path, document, chance, names, {"nf4", "nf4_plain", "fp4", "int8"})


def _parent_misspelt(kind: str, path: Path, document: Document, chance: random.Random) -> Mutation | None:
    names = [each for each in _scalars(document.data) if each[0] == "extends"]
    return _name_misspelt(kind, path, document, chance, names, bundled_names())


def _name_misspelt(
    kind: str, path: Path, document: Document, chance: random.Random, places: list[DataPath], known: Iterable[str]
) -> Mutation | None:
    if not places:
        return None
    chosen = chance.choice(places)
    word = (document.raw(chosen) or "").strip("\"'")
    return _misspelt(kind, path, document, chance, document.value(chosen), word, frozenset(known)) if word else None


KINDS: dict[str, Callable[[str, Path, Document, random.Random], Mutation | None]] = {
    "character deleted": _deleted,
    "character doubled": _doubled,
    "indent moved": _indent_moved,
    "line dropped": _line_dropped,
    "quote removed": _quote_removed,
    "key misspelt": _key_misspelt,
    "literal misspelt": _literal_misspelt,
    "type misspelt": _type_misspelt,
    "scheme misspelt": _scheme_misspelt,
    "parent misspelt": _parent_misspelt,
}


def _misspelt(
    kind: str,
    path: Path,
    document: Document,
    chance: random.Random,
    place: Location,
    word: str,
    known: frozenset[str],
) -> Mutation | None:
    """The text with the word at a place misspelt, unless that is another word that may stand there."""
    wrong = _one_edit(word, chance)
    if wrong == word or wrong in known:
        return None
    lines = document.text.splitlines(keepends=True)
    line = lines[place.line - 1]
    start = line.index(word, place.column - 1)
    lines[place.line - 1] = line[:start] + wrong + line[start + len(word) :]
    return Mutation(kind, path, "".join(lines), place.line, wrong, word)


def _one_edit(word: str, chance: random.Random) -> str:
    """The word with a letter left out, put in or replaced, or two letters that changed places."""
    at = chance.randrange(len(word))
    letter = chance.choice(LETTERS)
    return chance.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + letter + word[at:],
            word[:at] + letter + word[at + 1 :],
            word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
        )
    )


def _keys(data: Any, path: DataPath = ()) -> Iterator[DataPath]:
    """The paths of all keys."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield (*path, key)
            yield from _keys(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _keys(value, (*path, index))


def _scalars(data: Any, path: DataPath = ()) -> Iterator[DataPath]:
    """The paths of all values that are neither mappings nor lists."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else None
    if pairs is None:
        yield path
        return
    for part, value in pairs:
        yield from _scalars(value, (*path, part))


class _Core(yaml.SafeLoader):
    """PyYAML's own reader in pure Python, with the plain scalars of YAML 1.2's core schema."""


_Core.yaml_implicit_resolvers = {}
for _tag, _pattern in (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
):
    _Core.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), None)
_Core.add_constructor(
    "tag:yaml.org,2002:int", lambda _, node: int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)
)
_Core.add_constructor(
    "tag:yaml.org,2002:float", lambda _, node: float(re.sub(r"\.(?=inf|nan)", "", node.value.casefold()))
)


def _is_refused(text: str) -> bool:
    """Whether that reader, or else pydantic, refuses the text."""
    try:
        RuleFile.model_validate(yaml.load(text, Loader=_Core))
    except (yaml.YAMLError, ValidationError, ValueError):
        return True
    return False
