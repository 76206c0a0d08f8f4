"""The card of an output says how it was made, and keeps what the source's card said."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rulequant.plan import Decision, Plan
from rulequant.schemes import Bnb4bit, BnbInt8
from rulequant.torch.checkpoint.card import CardFacts, card_text
from rulequant.torch.checkpoint.origin import Origin, origin_of
from rulequant.torch.checkpoint.records import write_card

PLAN = Plan(
    model="/home/someone/models/tiny",
    rules="/home/someone/rules.yaml",
    rules_sha256="0" * 64,
    decisions=(
        Decision("model.fc1", "Linear", 1000, 2000, 600, scheme="nf4"),
        Decision("model.fc2", "Linear", 1000, 2000, 600, scheme="nf4"),
        Decision("head", "Linear", 500, 1000, 1000, reason="output_embedding"),
        Decision("norm", "LayerNorm", 10, 20, 20, reason="type"),
    ),
    schemes={"nf4": Bnb4bit(double_quant=True), "int8": BnbInt8()},
    architecture="LlamaForCausalLM",
)
FACTS = CardFacts(
    plan=PLAN,
    source="tiny",
    container="bitsandbytes",
    dtype="bfloat16",
    bytes_written=2400,
    command="rulequant apply SOURCE rulequant-rules.yaml -o OUTPUT",
    version="1.2.3",
    model_class="LlamaForCausalLM",
    files={"rulequant-plan.json": "every decision, with its reason"},
)


def front(text: str) -> Any:
    """The front matter as the Hub reads it."""
    found = re.match(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\r|\n|$))", text)
    assert found
    return yaml.safe_load(found[2])


def raw_front(text: str) -> str:
    return text.split("---\n")[1]


def test_card_without_a_source() -> None:
    """Sizes, methods, loading and the command; nothing that is not known, and no path."""
    text = card_text(FACTS, None)
    assert front(text) == {"library_name": "transformers", "tags": ["rulequant", "bitsandbytes", "4-bit"]}
    assert "# tiny, quantized\n" in text
    assert "2 of 4 modules are quantized, 79.7% of the parameters" in text
    assert "| tensors | 5.02 kB | 2.40 kB (48%) |" in text
    assert "| bits per weight | 16.00 | 7.65 |" in text
    assert "| 2 | `bnb_4bit` | `quant_type: nf4, double_quant: true, blocksize: 64, compute_dtype: auto" in text
    assert "| 1 | none (output embedding) | bfloat16 |" in text
    assert 'model = LlamaForCausalLM.from_pretrained("path/to/this/folder")' in text
    assert "import rulequant" not in text
    assert "```sh\nrulequant apply SOURCE rulequant-rules.yaml -o OUTPUT\n```" in text
    assert "- `rulequant-plan.json`: every decision, with its reason" in text
    assert "/home/someone" not in text
    assert "bnb_int8" not in text


def test_own_container_says_what_to_import() -> None:
    """Without the import transformers does not know the method."""
    facts = dataclasses.replace(FACTS, container="rulequant")
    text = card_text(facts, None)
    assert "```python\nimport rulequant.torch.transformers" in text
    assert front(text)["tags"] == ["rulequant", "4-bit"]


def test_int8_and_own_code() -> None:
    """Tags follow the methods; a class that is not of transformers is loaded by the auto class."""
    decisions = [dataclasses.replace(each, scheme=each.scheme and "int8") for each in PLAN.decisions]
    plan = dataclasses.replace(PLAN, decisions=tuple(decisions))
    text = card_text(dataclasses.replace(FACTS, plan=plan, model_class=None), None)
    assert front(text)["tags"] == ["rulequant", "bitsandbytes", "8-bit"]
    assert 'AutoModel.from_pretrained("path/to/this/folder", trust_remote_code=True)' in text


def test_body_of_the_source_stays_below() -> None:
    """All of the source's text follows ours, marked as that of the original."""
    text = card_text(FACTS, "---\nlicense: mit\n---\n# Tiny\n\nA model.\n")
    ours, theirs = text.split("*The card of the original model:*")
    assert theirs == "\n\n# Tiny\n\nA model.\n"
    assert "## Loading" in ours


def test_source_without_front_matter() -> None:
    """The text is kept, and ours is added."""
    text = card_text(FACTS, "# Tiny\n\n---\n\nA model.\n")
    assert front(text)["library_name"] == "transformers"
    assert text.endswith("*The card of the original model:*\n\n# Tiny\n\n---\n\nA model.\n")


def test_link_to_a_card_that_is_no_text() -> None:
    """What cannot be put into ours is linked."""
    assert "is in [README.original.md](README.original.md)" in card_text(FACTS, None, link="README.original.md")


FRONT = """\
# a comment
language:
  - en   # another
  - "no"
license: apache-2.0
widget:
  - text: "a: b"
    example: {x: [1, 2]}
"""


def test_other_keys_stay_as_text() -> None:
    """Comments, quotes, order and nesting are untouched; our keys come after."""
    text = card_text(FACTS, f"---\n{FRONT}---\nbody\n")
    assert raw_front(text) == f'{FRONT}library_name: transformers\ntags:\n- rulequant\n- bitsandbytes\n- "4-bit"\n'
    assert front(text)["language"] == ["en", "no"]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("tags:\n- a\n- b\n", 'tags:\n- a\n- b\n- rulequant\n- bitsandbytes\n- "4-bit"\n'),
        ("tags:\n  - a # c\nx: 1\n", 'tags:\n  - a # c\n  - rulequant\n  - bitsandbytes\n  - "4-bit"\nx: 1\n'),
        ("tags: [a, 'b']\n", "tags: [a, 'b', rulequant, bitsandbytes, \"4-bit\"]\n"),
        ("tags: []\n", 'tags:\n- rulequant\n- bitsandbytes\n- "4-bit"\n'),
        ("tags:\n- rulequant\n- 4-bit\n", "tags:\n- rulequant\n- 4-bit\n- bitsandbytes\n"),
        ("tags:\n- 4-bit\n- rulequant\n- bitsandbytes\n", "tags:\n- 4-bit\n- rulequant\n- bitsandbytes\n"),
        ("tags: text\n", "tags: text\n"),
        ("tags:\n", "tags:\n"),
    ],
    ids=["block", "indented", "flow", "empty", "some there", "all there", "no list", "null"],
)
def test_tags_are_added(tags: str, expected: str) -> None:
    """In the style of the list, and only those that are not there."""
    text = card_text(FACTS, f"---\nlibrary_name: peft\n{tags}---\n")
    assert raw_front(text) == f"library_name: peft\n{expected}"


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("license: mit\n", "license: mit\nbase_model: org/name\n"),
        ("base_model: other/one\nlicense: mit\n", "base_model: org/name\nlicense: mit\n"),
        ("base_model:\n- other/one\n- other/two\nlicense: mit\n", "base_model: org/name\nlicense: mit\n"),
        ("base_model: [other/one]\nlicense: mit\n", "base_model: org/name\nlicense: mit\n"),
        ("base_model: 'org/name'\nlicense: mit\n", "base_model: 'org/name'\nlicense: mit\n"),
    ],
    ids=["absent", "another", "a list", "a flow list", "the same"],
)
def test_base_model_is_the_source(before: str, expected: str) -> None:
    """Where the source's id is known the output descends from it, and no longer from the source's own base."""
    facts = dataclasses.replace(FACTS, origin=Origin("org/name", "abc"))
    text = card_text(facts, f"---\nlibrary_name: x\ntags: y\n{before}---\n")
    assert raw_front(text) == f"library_name: x\ntags: y\n{expected}base_model_relation: quantized\n"
    assert "Made from `org/name` at commit `abc` with" in text


def test_unknown_base_model_is_left_alone() -> None:
    """What the source descends from is true of the output too."""
    text = card_text(FACTS, "---\nbase_model: other/one\n---\n")
    assert front(text)["base_model"] == "other/one"
    assert "base_model_relation" not in text


def test_windows_line_ends() -> None:
    """New lines of the front matter end as the others do."""
    text = card_text(FACTS, "---\r\nlicense: mit\r\ntags:\r\n- a\r\n---\r\nbody\r\n")
    assert "tags:\r\n- a\r\n- rulequant\r\n- bitsandbytes\r\n" in text
    assert front(text)["license"] == "mit"


@pytest.mark.parametrize(
    "broken",
    [
        "a: [1\n",
        "a: &x 1\nb: *x\n",
        "a: 1\na: 2\n",
        "- a\n",
        "just text\n",
        "a: !!python/object:x {}\n",
        "{license: mit}\n",
    ],
    ids=["unclosed", "alias", "key twice", "list", "text", "tag", "in braces"],
)
def test_front_matter_beyond_us_stays(broken: str) -> None:
    """What is not read strictly is not edited."""
    assert raw_front(card_text(FACTS, f"---\n{broken}---\nbody\n")) == broken


def test_names_are_no_markup() -> None:
    """A source name cannot break out of the heading or the table."""
    facts = dataclasses.replace(FACTS, source="a|b`c\n# d\x1b[2J")
    text = card_text(facts, None)
    assert "# a\\|b\\`c\\\\n\\# d\\\\x1b\\[2J, quantized" in text
    assert "\x1b" not in text


def _write(source: Path, output: Path) -> str:
    output.mkdir()
    write_card(
        source,
        output,
        PLAN,
        container="bitsandbytes",
        dtype="bfloat16",
        bytes_written=1,
        command="x",
        model_class=None,
        origin=origin_of(source),
    )
    return (output / "README.md").read_text()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * 2_000_000], ids=["no text", "very long"])
def test_card_that_is_kept_apart(content: bytes, tmp_path: Path) -> None:
    """It is copied as it is, under another name, and linked."""
    (tmp_path / "README.md").write_bytes(content)
    assert "[README.original.md](README.original.md)" in _write(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "README.original.md").read_bytes() == content


def test_card_of_the_hub_cache(tmp_path: Path) -> None:
    """A link into the cache's blobs is read, and the id is the base model."""
    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "abc").write_text("---\nlicense: mit\n---\nhello\n")
    snapshot = repository / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").symlink_to("../../blobs/abc")
    text = _write(snapshot, tmp_path / "out")
    assert front(text)["base_model"] == "org/name"
    assert text.endswith("hello\n")
