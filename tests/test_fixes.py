"""Fixing rule files: what is mended, what is left, and what stays as it is."""

from __future__ import annotations

import os
import random
import stat
import sys
from pathlib import Path

import pytest
from example_files import EXAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st

from rulequant.bundled import bundled_names, bundled_path
from rulequant.diagnostics import Diagnostic, Severity
from rulequant.errors import UsageError
from rulequant.fixes import Fixed, fix_file, fix_text
from rulequant.loader import Loader

HEAD = "version: 1\nschemes: {nf4: {method: bnb_4bit}}\n"


def errors(text: str) -> list[Diagnostic]:
    """The errors of a text by itself."""
    loader = Loader()
    loader.load_text(text, file="r.yaml")
    return [each for each in loader.diagnostics if each.severity is Severity.ERROR]


def codes(fixed: Fixed) -> list[str]:
    """The codes of what was mended."""
    return [each.code for each in fixed.applied]


MENDED = {
    "alias": ("skip_modules:\n  - *.mlp  # why\n", 'skip_modules:\n  - "*.mlp"  # why\n', ["RQ005"]),
    "double-star": ("skip_modules: [**.mlp, a]\n", 'skip_modules: ["**.mlp", a]\n', ["RQ005"]),
    "class": ("skip_modules:\n- [ab].mlp\n", 'skip_modules:\n- "[ab].mlp"\n', ["RQ005"]),
    "braces": ("skip_modules:\n- {a,b}.mlp\n", 'skip_modules:\n- "{a,b}.mlp"\n', ["RQ005"]),
    "braces-alone": ("skip_modules: [{a,b}]\n", 'skip_modules: ["{a,b}"]\n', ["RQ005"]),
    "braces-in-flow": ("skip_modules: [a.{b,c}, d]\n", 'skip_modules: ["a.{b,c}", d]\n', ["RQ005"]),
    "text": ("description: @team owns this\n", 'description: "@team owns this"\n', ["RQ005"]),
    "apostrophe": ("description: *Don't*\n", 'description: "*Don\'t*"\n', ["RQ005"]),
    "numbers": ("skip_modules:\n- a.[0-12].b\n", "skip_modules:\n- a.{0..12}.b\n", ["RQ202"]),
    "numbers-in-quotes": ("skip_modules: ['[0-12].b']\n", "skip_modules: ['{0..12}.b']\n", ["RQ202"]),
    "numbers-first": ("skip_modules:\n- [0-12].b\n", 'skip_modules:\n- "{0..12}.b"\n', ["RQ005", "RQ202"]),
    "numbers-twice": (
        "skip_modules: ['[0-12].[3-24].b']\n",
        "skip_modules: ['{0..12}.{3..24}.b']\n",
        ["RQ202", "RQ202"],
    ),
    "key": ("modles: [llama]  # why\n", "models: [llama]  # why\n", ["RQ101"]),
    "key-in-quotes": ("'modles' : [llama]\n", "'models' : [llama]\n", ["RQ101"]),
    "key-in-flow": ("rules: [{moduls: a, scheme: nf4}]\n", "rules: [{modules: a, scheme: nf4}]\n", ["RQ101"]),
    "several-in-one-line": (
        "rules: [{moduls: *.a, schme: nf4, optional: no}]\n",
        'rules: [{modules: "*.a", scheme: nf4, optional: false}]\n',
        ["RQ005", "RQ101", "RQ101", "RQ104"],
    ),
    "literal": ("output_embeddings: 'Skip'\n", "output_embeddings: 'skip'\n", ["RQ103"]),
    "boolean": (
        "skip_modules: [{modules: a, optional: 'yes'}]\n",
        "skip_modules: [{modules: a, optional: true}]\n",
        ["RQ104"],
    ),
    "number-as-text": ("name: 7  # why\n", 'name: "7"  # why\n', ["RQ104"]),
    "text-as-number": ("expect: {min_quantized: '.5'}\n", "expect: {min_quantized: .5}\n", ["RQ104"]),
    "beside-what-stays": ("foo: 1\nname: 7\n", 'foo: 1\nname: "7"\n', ["RQ104"]),
    "behind-what-stays": ("rules:\n- modules: *.a\n", 'rules:\n- modules: "*.a"\n', ["RQ005"]),
    "pattern-with-an-error": ("skip_modules: [!a]\n", 'skip_modules: ["!a"]\n', ["RQ005"]),
    "unreadable-later": ("skip_modules: [*.a]\nfoo: {\n", 'skip_modules: ["*.a"]\nfoo: {\n', ["RQ005"]),
}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize(("before", "after", "mended"), MENDED.values(), ids=MENDED)
def test_what_is_mended(before: str, after: str, mended: list[str], ends: str) -> None:
    """The edit is made and all else stays, line ends too; nothing is left to mend."""
    before, after = ((HEAD + each).replace("\n", ends) for each in (before, after))
    fixed = fix_text(before, file="r.yaml")
    assert fixed.after == after
    assert sorted(codes(fixed)) == mended
    assert fix_text(after, file="r.yaml") == Fixed(after, after)
    assert len(errors(after)) < len(errors(before))


def test_a_byte_order_mark_stays() -> None:
    """An editor that wrote the mark finds it again."""
    assert fix_text("\ufeffversion: '1'\n", file="r.yaml").after == "\ufeffversion: 1\n"


def test_a_key_of_a_scheme_without_method() -> None:
    """What only shows once the method is known is mended in the next round."""
    text = "version: 1\nschemes:\n  a: {metod: bnb_4bit, doble_quant: on, quant_type: NF4, blocksize: '64'}\n"
    fixed = fix_text(text, file="r.yaml")
    expected = "  a: {method: bnb_4bit, double_quant: true, quant_type: nf4, blocksize: 64}\n"
    assert fixed.after.splitlines(keepends=True)[-1] == expected
    assert errors(fixed.after) == []


LEFT = {
    "list-of-names": "models: {llama,opt}\n",
    "names-in-list": "models: [*llama]\n",
    "scheme-name": "scheme: *nf4\n",
    "scheme-of-rule": "rules: [{modules: a, scheme: *nf4}]\n",
    "parent": "extends: *base\n",
    "mapping": "expect: {min_quantized}\n",
    "other-kind": "rules: [{modules: a, schemes: {a: {method: bnb_int8}}}]\n",
    "reveals-more": "rulse: [{}]\n",
    "reveals-more-than-it-mends": "rulse: [{optional: yes}]\n",
    "not-a-class-name": "quantizable_types: [5]\n",
    "not-a-number": "expect: {min_quantized: '.nan'}\n",
    "too-many": "skip_modules: ['a.[0-99999].b']\n",
    "unreadable-later": "skip_modules: [*mlp]\nfoo: {\n",
    "quote-in-the-wrong-place": 'skip_modules:\n- *"*.mlp"\n',
    "single-quote-in-the-wrong-place": "skip_modules:\n- *'*.mlp'\n",
    "tagged": "name: !!int 7\n",
}


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_what_is_left(text: str) -> None:
    """Where the edit would only move the problem, or something else may be meant, nothing is changed."""
    text = HEAD + text
    assert errors(text)
    assert fix_text(text, file="r.yaml") == Fixed(text, text)


def test_one_bad_edit_does_not_stop_the_others() -> None:
    """Edits that must not be made are told apart from those that may."""
    good = "".join(f"- *.a{index}\n" for index in range(9))
    text = f"{HEAD}quantizable_types: [5]\nmodles: a\nskip_modules:\n{good}- 'a.[0-99999].b'\nname: 7\n"
    fixed = fix_text(text, file="r.yaml")
    assert [each.code for each in errors(fixed.after)] == ["RQ104", "RQ202"]
    assert len(fixed.applied) == 11


def test_more_than_are_reported_at_once() -> None:
    """A file with more problems than one reading reports is mended to its end."""
    text = HEAD + "skip_modules:\n" + "".join(f"- *.a{index}\n" for index in range(250))
    fixed = fix_text(text, file="r.yaml")
    assert errors(fixed.after) == []
    assert len(fixed.applied) == 250


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("invalid/*.yaml")), ids=lambda path: path.stem)
def test_examples(path: Path) -> None:
    """No example gets worse, one pass is enough, and only lines with a problem change."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        pytest.skip("no text to fix")
    fixed = fix_text(text, file=path.name)
    assert len(errors(fixed.after)) <= len(errors(text))
    assert fix_text(fixed.after, file=path.name) == Fixed(fixed.after, fixed.after)
    lines = zip(text.splitlines(), fixed.after.splitlines(), strict=True)
    changed = {number for number, (old, new) in enumerate(lines, 1) if old != new}
    assert changed == {each.location.line for each in fixed.applied if each.location}


BUNDLED = [(bundled_path(name) or Path()).read_text(encoding="utf-8") for name in bundled_names()]
MISTAKES = [
    ('"', ""),
    ("'", ""),
    ("extends:", "extend:"),
    ("models:", "modles:"),
    ("method:", "metod:"),
    ("modules:", "module:"),
    ("optional: true", "optional: yes"),
    ("version: 1", 'version: "1"'),
    ("bnb_4bit", "bnb-4bit"),
    ("{1,2}", "[1-22]"),
    (": ", ":"),
    ("\n  ", "\n"),
    ("reason", "raeson"),
    ("]", ""),
    ("\n", "\r\n"),
    (" [", " {"),
    ("skip_modules:", "skip_modules: "),
    ("true", "True"),
]


@given(
    text=st.sampled_from(BUNDLED),
    mistakes=st.lists(st.tuples(st.sampled_from(MISTAKES), st.integers(1, 9)), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
    dropped=st.integers(0, 2),
)
@settings(max_examples=300, deadline=None)
def test_mutated_files(text: str, mistakes: list[tuple[tuple[str, str], int]], seed: int, dropped: int) -> None:
    """Whatever is wrong with a file, it gets no worse; where every error offers an edit, it gets right or stays."""
    for (right, wrong), times in mistakes:
        text = text.replace(right, wrong, times)
    chance = random.Random(seed)
    for _ in range(dropped):
        at = chance.randrange(len(text))
        text = text[:at] + text[at + 1 :]
    before = errors(text)
    fixed = fix_text(text, file="r.yaml")
    after = errors(fixed.after)
    assert len(after) <= len(before)
    assert bool(fixed.applied) == (fixed.after != text)
    assert fix_text(fixed.after, file="r.yaml").applied == ()
    assert fixed.after.count("\n") == text.count("\n")
    assert fixed.after.count("#") == text.count("#")


@given(st.text(alphabet="abc*?[]{}!&:-, \n\r\t#'\"|>%@`0192.~\\\ufeff", max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_text(text: str) -> None:
    """No text makes it fail, and none gets worse."""
    fixed = fix_text(text, file="r.yaml")
    assert len(errors(fixed.after)) <= len(errors(text))


RIGHT = """\
# yaml-language-server: $schema=ruleset.v1.schema.json
version: 1
name: "9"  # a name
models: [llama]
schemes:
  nf4: {method: bnb_4bit, quant_type: nf4, double_quant: true, blocksize: 64}
scheme: nf4
output_embeddings: skip
skip_modules:
  - "**.mlp"   # quoted
  - {modules: "{a,b}.c", optional: true}
  - modules: "d.{0..12}"
    reason: "*why*"
rules:
  - modules: ["**.q", "[ab].k"]
    layers: ["0:2"]
    scheme: nf4
"""
FIXABLE = [
    ("version: 1", 'version: "1"'),
    ('"9"', "9"),
    ("models:", "modles:"),
    ("method:", "metod:"),
    ("double_quant: true", "doubleQuant: yes"),
    ("quant_type: nf4", "quant_type: NF4"),
    ("64}", '"64"}'),
    ("output_embeddings: skip", "output_embedding: Skip"),
    ('"**.mlp"', "**.mlp"),
    ('"{a,b}.c"', "{a,b}.c"),
    ("optional: true", "optional: on"),
    ("{0..12}", "[0-12]"),
    ('"*why*"', "*why*"),
    ('"**.q"', "**.q"),
    ('"[ab].k"', "[ab].k"),
    ("layers:", "layer:"),
]


@given(st.sets(st.sampled_from(FIXABLE), min_size=1))
@settings(max_examples=200, deadline=None)
def test_every_fixable_mistake_is_undone(mistakes: set[tuple[str, str]]) -> None:
    """Any set of the known mistakes is mended, and the file is the same again, but for quotes."""
    text = RIGHT
    for right, wrong in sorted(mistakes):
        text = text.replace(right, wrong)
    fixed = fix_text(text, file="r.yaml")
    assert errors(text)
    assert errors(fixed.after) == []
    assert fixed.after == RIGHT


def test_a_file_is_written(tmp_path: Path) -> None:
    """The file is replaced by one with its mode, and nothing else is left in the folder."""
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfversion: '1'\r\n# caf\xc3\xa9\r\n")
    path.chmod(0o640)
    fixed = fix_file(path)
    assert codes(fixed) == ["RQ103"]
    assert path.read_bytes() == b"\xef\xbb\xbfversion: 1\r\n# caf\xc3\xa9\r\n"
    assert list(tmp_path.iterdir()) == [path]
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_that_is_right_is_not_touched(tmp_path: Path) -> None:
    """Without a fix nothing is written."""
    path = tmp_path / "r.yaml"
    path.write_text("version: 1\n")
    before = path.stat()
    assert fix_file(path).applied == ()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_preview_writes_nothing(tmp_path: Path) -> None:
    """The text before and after is there to make a diff of."""
    path = tmp_path / "r.yaml"
    path.write_text("version: '1'\n")
    fixed = fix_file(path, write=False)
    assert (fixed.before, fixed.after, path.read_text()) == ("version: '1'\n", "version: 1\n", "version: '1'\n")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """Not the link is replaced but the file that it leads to."""
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "r.yaml", tmp_path / "link.yaml"
    real.write_text("version: '1'\n")
    try:
        link.symlink_to(real)
    except OSError:
        pytest.skip("no links here")
    fix_file(link)
    assert link.is_symlink()
    assert real.read_text() == "version: 1\n"


def test_what_cannot_be_read_is_left(tmp_path: Path) -> None:
    """A missing file, a folder, a pipe, another encoding, a file too large: validation says what they are."""
    (tmp_path / "latin.yaml").write_bytes(b"version: '1' # caf\xe9\n")
    (tmp_path / "large.yaml").write_bytes(b"version: '1'\n" + b"# filler\n" * 120_000)
    names = ["latin.yaml", "large.yaml", "missing.yaml", ".", "a\0b", "x" * 300]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.yaml")
        names.append("pipe.yaml")
    for name in names:
        assert fix_file(tmp_path / name) == Fixed("", "")
    assert (tmp_path / "latin.yaml").read_bytes() == b"version: '1' # caf\xe9\n"


def test_bundled_files_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They belong to rulequant, under whatever name."""
    bundled = tmp_path / "llama.yaml"
    bundled.write_text("version: '1'\n")
    monkeypatch.setattr("rulequant.fixes.bundled_path", lambda name: bundled if name == "llama" else None)
    (tmp_path / "folder").mkdir()
    assert fix_file(tmp_path / "folder" / ".." / "llama.yaml") == Fixed("", "")
    assert bundled.read_text() == "version: '1'\n"


def test_a_failed_write_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs nothing but the fix."""
    path = tmp_path / "r.yaml"
    path.write_text("version: '1'\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot write .*r\.yaml: No space left on device"):
        fix_file(path)
    assert path.read_text() == "version: '1'\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_protected_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To replace it would go around its protection."""
    path = tmp_path / "r.yaml"
    path.write_text("version: '1'\n")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match=r"cannot write r\.yaml: Permission denied"):
        fix_file(path, file="r.yaml")
    assert path.read_text() == "version: '1'\n"
