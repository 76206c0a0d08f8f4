from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rulequant import source
from rulequant.diagnostics import Diagnostic, Location
from rulequant.scalars import NumberTooLongError, resolve
from rulequant.source import Document, parse, read

LOADERS = [name for name in ("CSafeLoader", "SafeLoader") if hasattr(yaml, name)]
TEXT = """\
version: 1  # the format
skip_modules:
  - "**.gate"
  - modules: [a.b, 'c d']
    reason: >
      folded
      text

    # a comment
    optional:
rules: [{scheme: 0x10}]
"""


def document(text: str | bytes) -> Document:
    found, problems = parse(text, file="f.yaml")
    assert problems == []
    assert found is not None
    return found


def only(text: str | bytes) -> Diagnostic:
    found, problems = parse(text, file="f.yaml")
    assert found is None
    assert len(problems) == 1
    return problems[0]


@pytest.fixture(params=LOADERS)
def _loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_LOADER", getattr(yaml, request.param))


@pytest.mark.usefixtures("_loader")
def test_data_is_plain() -> None:
    """Dictionaries, lists and core scalars, as written."""
    assert document(TEXT).data == {
        "version": 1,
        "skip_modules": ["**.gate", {"modules": ["a.b", "c d"], "reason": "folded text\n", "optional": None}],
        "rules": [{"scheme": 16}],
    }


@pytest.mark.usefixtures("_loader")
@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        pytest.param(("version",), (1, 1, 1, 8), (1, 10, 1, 11), id="scalar"),
        pytest.param(("skip_modules",), (2, 1, 2, 13), (3, 3, 10, 14), id="block list"),
        pytest.param(("skip_modules", 0), (3, 5, 3, 14), (3, 5, 3, 14), id="quoted item"),
        pytest.param(("skip_modules", 1), (4, 5, 10, 14), (4, 5, 10, 14), id="mapping as item"),
        pytest.param(("skip_modules", 1, "modules"), (4, 5, 4, 12), (4, 14, 4, 26), id="flow list"),
        pytest.param(("skip_modules", 1, "modules", 1), (4, 20, 4, 25), (4, 20, 4, 25), id="flow item"),
        pytest.param(("skip_modules", 1, "reason"), (5, 5, 5, 11), (5, 13, 7, 11), id="folded text"),
        pytest.param(("skip_modules", 1, "optional"), (10, 5, 10, 13), (10, 14, 10, 14), id="no value"),
        pytest.param(("rules", 0, "scheme"), (11, 10, 11, 16), (11, 18, 11, 22), id="flow mapping"),
        pytest.param((), (1, 1, 11, 24), (1, 1, 11, 24), id="root"),
        pytest.param(("nowhere",), (1, 1, 11, 24), (1, 1, 11, 24), id="missing key"),
        pytest.param(("version", "x", 3), (1, 1, 1, 8), (1, 10, 1, 11), id="within a scalar"),
        pytest.param(("skip_modules", 0, "modules"), (3, 5, 3, 14), (3, 5, 3, 14), id="long form of a short one"),
        pytest.param(("skip_modules", 7), (2, 1, 2, 13), (3, 3, 10, 14), id="past the end"),
        pytest.param(("skip_modules", -1), (2, 1, 2, 13), (3, 3, 10, 14), id="negative index"),
        pytest.param((0,), (1, 1, 11, 24), (1, 1, 11, 24), id="index into a mapping"),
    ],
)
def test_positions(path: source.DataPath, key: tuple[int, ...], value: tuple[int, ...], line_break: str) -> None:
    """Keys and values have their span; a path that is not there has its nearest parent's."""
    found = document(TEXT.replace("\n", line_break))
    assert found.key(path) == Location("f.yaml", *key)
    assert found.value(path) == Location("f.yaml", *value)


@pytest.mark.usefixtures("_loader")
@pytest.mark.parametrize(
    ("path", "raw"),
    [
        (("skip_modules", 0), '"**.gate"'),
        (("skip_modules", 1, "modules", 1), "'c d'"),
        (("skip_modules", 1, "reason"), ">\n      folded\n      text"),
        (("skip_modules", 1, "optional"), ""),
        (("rules", 0, "scheme"), "0x10"),
        (("rules", 0), None),
        (("nowhere",), None),
        (("version", "x"), None),
    ],
)
def test_raw(path: source.DataPath, raw: str | None) -> None:
    """The text of a scalar as written, for a fix to replace."""
    assert document(TEXT).raw(path) == raw


@pytest.mark.usefixtures("_loader")
def test_columns_count_code_points() -> None:
    """Neither bytes nor UTF-16 units."""
    assert document("\u00e9\U0001f600: b").value(("\u00e9\U0001f600",)) == Location("f.yaml", 1, 5, 1, 6)


@pytest.mark.usefixtures("_loader")
def test_a_byte_order_mark_is_accepted() -> None:
    """It is no part of the text, and shifts no column."""
    found = document("\ufeffa: b".encode())
    assert found.text == "a: b"
    assert found.key(("a",)) == Location("f.yaml", 1, 1, 1, 2)
    assert document("\ufeffa: b").data == {"a": "b"}


@pytest.mark.parametrize(
    ("content", "message", "where"),
    [
        pytest.param(b"a: \xff", "the byte 0xff is not UTF-8", (1, 4, 1, 4), id="invalid byte"),
        pytest.param(b"\xc3\xa9\nb: \xe2\x82", "the byte 0xe2 is not UTF-8", (2, 4, 2, 4), id="cut short"),
        pytest.param(b"a: \xed\xa0\x80", "the byte 0xed is not UTF-8", (1, 4, 1, 4), id="surrogate"),
        pytest.param("a: b".encode("utf-16"), "the file is UTF-16, not UTF-8", (1, 1, 1, 1), id="utf-16"),
        pytest.param("a: \0", "the character U+0000 is not allowed in a YAML file", (1, 4, 1, 5), id="nul"),
        pytest.param("a: 1\n\x1b[31m", "the character U+001B is not allowed in a YAML file", (2, 1, 2, 2), id="escape"),
        pytest.param("a\x7f", "the character U+007F is not allowed in a YAML file", (1, 2, 1, 3), id="delete"),
        pytest.param("# a\x85b: 1", "the character U+0085 is not allowed in a YAML file", (1, 4, 1, 5), id="nel"),
        pytest.param(
            "# a\u2028b: 1", "the character U+2028 is not allowed in a YAML file", (1, 4, 1, 5), id="line separator"
        ),
        pytest.param("a\ufeff", "the character U+FEFF is not allowed in a YAML file", (1, 2, 1, 3), id="second mark"),
        pytest.param("a\ufffe", "the character U+FFFE is not allowed in a YAML file", (1, 2, 1, 3), id="no character"),
        pytest.param(
            "a\ud800", "the character U+D800 is not allowed in a YAML file", (1, 2, 1, 3), id="lone surrogate"
        ),
    ],
)
def test_what_is_not_text(content: str | bytes, message: str, where: tuple[int, ...]) -> None:
    """RQ003 at the first byte or character that cannot stand in a YAML file."""
    problem = only(content)
    assert (problem.code, problem.message) == ("RQ003", message)
    assert problem.location == Location("f.yaml", *where)
    assert problem.remedy


@pytest.mark.usefixtures("_loader")
@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "---\n# x\n...\n", "\ufeff"])
def test_an_empty_file(text: str) -> None:
    """RQ013 where there is nothing but comments and markers."""
    problem = only(text)
    assert (problem.code, problem.message) == ("RQ013", "`f.yaml` is empty")
    assert problem.remedy == "start with `version: 1`"


def test_null_is_not_empty() -> None:
    """Whoever writes `null` gets it, and the type check's message."""
    assert document("null").data is None


@pytest.mark.parametrize(
    "text", ["x" * (source.MAX_BYTES + 1), "\u20ac" * (source.MAX_BYTES // 3 + 1)], ids=["ascii", "euro"]
)
def test_the_size_limit_counts_bytes(text: str) -> None:
    """RQ002 for text and bytes alike."""
    assert only(text).code == "RQ002"
    assert only(text.encode()).code == "RQ002"
    assert document("x" * source.MAX_BYTES).data == "x" * source.MAX_BYTES


def test_problems_come_in_the_order_of_the_text() -> None:
    """However they were found."""
    _, problems = parse("a: !x y\na: 1\nb: *.c\n2: 3\n", file="f.yaml")
    assert [(each.code, each.location and each.location.line) for each in problems] == [
        ("RQ008", 1),
        ("RQ006", 2),
        ("RQ005", 3),
        ("RQ010", 4),
    ]


# ---- files


def test_read(tmp_path: Path) -> None:
    """A file is named by its path, or as told."""
    path = tmp_path / "rules.yaml"
    path.write_text("a: b", encoding="utf-8")
    found, problems = read(path)
    assert problems == []
    assert found is not None
    assert (found.file, found.data) == (str(path), {"a": "b"})
    named, _ = read(str(path), file="shown.yaml")
    assert named is not None
    assert named.key(("a",)).file == "shown.yaml"


def unreadable(path: Path | str) -> Diagnostic:
    found, problems = read(path, file="f.yaml")
    assert found is None
    assert len(problems) == 1
    assert problems[0].location == Location("f.yaml", 1, 1, 1, 1)
    return problems[0]


def test_a_missing_file(tmp_path: Path) -> None:
    """RQ001 with the system's reason."""
    problem = unreadable(tmp_path / "none.yaml")
    assert problem.code == "RQ001"
    assert problem.message == "cannot read `f.yaml`: No such file or directory"


def test_a_name_that_no_file_can_have() -> None:
    """A NUL in a path is a ValueError to Python, and RQ001 here."""
    assert unreadable("a\0b").code == "RQ001"


def test_a_directory(tmp_path: Path) -> None:
    """RQ001."""
    assert unreadable(tmp_path).message == "cannot read `f.yaml`: it is a directory"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    """RQ001 at once, with no writer at the other end."""
    os.mkfifo(tmp_path / "pipe")
    assert unreadable(tmp_path / "pipe").message == "cannot read `f.yaml`: it is a pipe"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_file_that_turns_into_a_pipe_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened is looked at once more."""
    regular, pipe = tmp_path / "regular", tmp_path / "pipe"
    regular.write_text("a: b")
    os.mkfifo(pipe)
    monkeypatch.setattr(Path, "stat", lambda self: os.lstat(regular))
    assert unreadable(pipe).message == "cannot read `f.yaml`: it is a pipe"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs devices")
def test_a_device() -> None:
    """RQ001: an endless one is not read."""
    assert unreadable("/dev/zero").message == "cannot read `f.yaml`: it is a device or a socket"


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RQ001 that says so."""

    def refuse(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "rules.yaml"
    path.write_text("a: b")
    monkeypatch.setattr(os, "open", refuse)
    problem = unreadable(path)
    assert problem.message == "cannot read `f.yaml`: Permission denied"
    assert problem.remedy == "check its permissions"


def test_a_large_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    """RQ002 for a sparse file of a terabyte."""
    path = tmp_path / "large.yaml"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    problem = unreadable(path)
    assert (problem.code, problem.message) == ("RQ002", "`f.yaml` is larger than 1,048,576 bytes")


def test_the_import_is_light() -> None:
    """No pydantic, and nothing of torch."""
    program = "import sys, rulequant.source; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"pydantic", "torch", "numpy", "click"} & set(done.stdout.split())


# ---- hostile input, in a process of its own: what goes wrong here takes the process with it

HOSTILE = {
    "30,000 lists": ("'[' * 30_000", "RQ011"),
    "30,000 closed lists": ("'[' * 30_000 + ']' * 30_000", "RQ011"),
    "30,000 mappings": ("'{a: ' * 30_000", "RQ011"),
    "30,000 bare braces": ("'{' * 30_000", "RQ010"),
    "30,000 block lists": ("'- ' * 30_000", "RQ011"),
    "30,000 keys": ("'? ' * 30_000", "RQ010"),
    "1,000 indented mappings": ("''.join(' ' * n + 'a:\\n' for n in range(1000))", "RQ011"),
    "a megabyte of [": ("'[' * 2**20", "RQ011"),
    "a megabyte of {": ("'{' * 2**20", "RQ010"),
    "a megabyte of dashes": ("'- ' * 2**19", "RQ011"),
    "a megabyte of question marks": ("'? ' * 2**19", "RQ010"),
    "a megabyte of commas": ("'[' + ',' * (2**20 - 1)", "RQ004"),
    "a megabyte of quotes": ("'\"' * (2**20 - 1)", "RQ004"),
    "a megabyte of items": ("'- a\\n' * 2**18", "RQ002"),
    "a megabyte of empty lists": ("'[' + '[],' * 300_000", "RQ002"),
    "a megabyte of aliases": ("'- *a\\n' * 200_000", "RQ005"),
    "a megabyte of braces": ("'- {a,b}x\\n' * 100_000", "RQ005"),
    "a megabyte of lists and text": ("'- ' + '[a]x' * 200_000", "RQ005"),
    "a megabyte of anchors": ("'- &a b\\n' * 100_000", "RQ007"),
    "a megabyte of documents": ("'--- a\\n' * 150_000", "RQ009"),
    "a megabyte in one line": ("'a: ' + 'x ' * 500_000", None),
    "a megabyte in one key": ("'x' * 1_000_000 + ': 1'", "RQ004"),
    "a megabyte in one pattern": ("'- *' + '[a' * 250_000 + ']' * 500_000", "RQ005"),
    "a megabyte of line breaks": ("'\\n' * 2**20", "RQ013"),
    "5,000 digits": ("'a: ' + '9' * 5_000", "RQ012"),
    "a million digits": ("'a: ' + '9' * 1_000_000", "RQ012"),
    "a million decimals": ("'a: 0.' + '9' * 1_000_000", "RQ012"),
    "a million hexadecimal digits": ("'a: 0x' + 'f' * 1_000_000", "RQ012"),
    "a million octal digits": ("'a: 0o' + '7' * 1_000_000", "RQ012"),
    "a million digits of an exponent": ("'a: 1e' + '9' * 1_000_000", "RQ012"),
    "NUL bytes": ("b'\\0' * 1000", "RQ003"),
    "no date": ("'a: 2024-99-99'", None),
    "alias bomb": (
        "'a0: &a0 [x]\\n' + ''.join(f'a{n}: &a{n} [{\", \".join([f\"*a{n - 1}\"] * 9)}]\\n' for n in range(1, 30))",
        "RQ007",
    ),
    "merge bomb": (
        "'a0: &a0 {x: 1}\\n' + ''.join(f'a{n}: &a{n}\\n  <<: [*a{n - 1}, *a{n - 1}]\\n' for n in range(1, 60))",
        "RQ007",
    ),
}
PROGRAM = """
import json, sys, yaml
from rulequant import source
source._LOADER = getattr(yaml, sys.argv[1])
for name, expression in json.load(sys.stdin).items():
    print(name, end="\\t", flush=True)
    document, problems = source.parse(eval(expression), file="f.yaml")
    print(problems[0].code if problems else None, flush=True)
"""


@functools.cache
def answers(loader: str) -> dict[str, str]:
    expressions = {name: expression for name, (expression, _) in HOSTILE.items() if loader in loaders_for(name)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, loader],
        input=json.dumps(expressions),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout[-200:]}\n{done.stderr[-2000:]}"
    return dict(line.split("\t") for line in done.stdout.splitlines())


def loaders_for(name: str) -> list[str]:
    """The pure Python loader takes a second for a megabyte: it has the smaller ones."""
    return LOADERS if not name.startswith("a megabyte") else LOADERS[:1]


@pytest.mark.parametrize(("loader", "name"), [(loader, name) for name in HOSTILE for loader in loaders_for(name)])
def test_hostile_text_is_answered(loader: str, name: str) -> None:
    """With its diagnostic, and neither a crash nor a wait."""
    assert answers(loader)[name] == str(HOSTILE[name][1])


# ---- any text

FRAGMENTS = ["*", "**", "&", "!", "[", "]", "{", "}", "?", ":", ": ", "- ", "#", " #", "|", ">", "%", "@", "`", '"',
             "'", "\\", "\t", "\n", "\r\n", " ", "  ", ",", "a", "1", "~", "<<", "---\n", "...\n", "\u00e9",
             "\U0001f600", "\0", "\ufeff", "\ud800", "\x85", '"\\ud800"', "*.a", "[0-9].b", "{a,b}",
             "!x", "&a", "*a"]  # fmt: skip
SNIPPETS = st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join)


def paths(data: Any, path: source.DataPath = ()) -> list[source.DataPath]:
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(each for part, child in children for each in paths(child, (*path, part)))]


@given(text=st.text() | st.binary() | SNIPPETS)
def test_any_text_gives_a_document_or_problems(text: str | bytes) -> None:
    """Never an exception; both loaders; every part of the data has a place."""
    for name in LOADERS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(source, "_LOADER", getattr(yaml, name))
            found, problems = parse(text, file="f.yaml")
        assert found is not None or problems
        assert all(each.location for each in problems)
        for path in paths(found.data) if found else ():
            assert found is not None
            assert found.key(path).file == found.value(path).file == "f.yaml"


def place(text: str, line: int, column: int) -> int:
    return sum(len(each) for each in text.splitlines(keepends=True)[: line - 1]) + column - 1


@given(parts=st.lists(st.sampled_from([*"*!&?@%.ab{},[]09-", "**", "{a,b}", "[0-9]"]), min_size=2, max_size=8))
def test_quoting_what_is_reported_mends_the_file(parts: list[str]) -> None:
    """The place of an RQ005 is what to quote, and the data already is what the mended file gives."""
    text = f"- x\n- {''.join(parts)}\n- y\n"
    found, problems = parse(text, file="f.yaml")
    if found is None or {each.code for each in problems} != {"RQ005"}:
        return
    mended = text
    for each in reversed(problems):
        assert each.location is not None
        start = place(text, each.location.line, each.location.column)
        end = place(text, each.location.end_line, each.location.end_column)
        mended = f'{mended[:start]}"{mended[start:end]}"{mended[end:]}'
    assert document(mended).data == found.data


# What may stand in a YAML file as it is, or as an escape in quotes. YAML keeps a key within 1,024 characters.
CHARACTERS = st.characters(exclude_categories=["Cs"])
# The escapes of JSON for characters past U+FFFF are surrogate pairs, which YAML does not read.
JSON_CHARACTERS = st.characters(max_codepoint=0xD7FF)


def trees(characters: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    floats = st.floats(allow_nan=False, allow_infinity=False)
    numbers = st.integers(-(10**30) + 1, 10**30 - 1) | floats
    keys = st.text(characters, max_size=50)
    return st.recursive(
        st.none() | st.booleans() | numbers | st.text(characters),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=20,
    )


class Dumper(yaml.SafeDumper):
    """Without aliases, and with quotes for what only YAML 1.2 takes for a number, such as `0E0`."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        try:
            style = None if isinstance(resolve(data), str) else '"'
        except NumberTooLongError:
            style = '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


Dumper.add_representer(str, Dumper.represent_str)


@given(data=trees(CHARACTERS), flow=st.sampled_from([False, None, True]))
def test_dumped_data_comes_back(data: Any, flow: bool | None) -> None:
    """What PyYAML writes, in quotes where YAML 1.1 needs them, reads the same."""
    text = yaml.dump(data, Dumper=Dumper, default_flow_style=flow, sort_keys=False)
    assert document(text).data == data


@given(data=trees(JSON_CHARACTERS), indent=st.sampled_from([None, 2]))
def test_json_is_yaml(data: Any, indent: int | None) -> None:
    """JSON reads as YAML, with escapes for all but ASCII."""
    assert document(json.dumps(data, indent=indent)).data == data
