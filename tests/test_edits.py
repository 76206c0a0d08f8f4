"""The edits that mend what the models complain about."""

from __future__ import annotations

import pytest

from rulequant.diagnostics import Diagnostic
from rulequant.edits import misspelt
from rulequant.loader import Loader

KEYS = ["name", "models", "scheme", "schemes", "min_quantized_layers"]
VALUES = ["nf4", "fp4", "bnb_4bit", "bnb_int8", "uint8", "float16", "bfloat16", "quantize"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("modles", "models"),
        ("model", "models"),
        ("modelss", "models"),
        ("shcemes", "schemes"),
        ("shceme", "scheme"),
        ("Scheme", "scheme"),
        ("min-quantized-layers", "min_quantized_layers"),
        ("minQuantizedLayers", "min_quantized_layers"),
        ("NAME", "name"),
    ],
)
def test_a_misspelt_key(word: str, meant: str) -> None:
    """One typing error, and any separators and case, leave no doubt."""
    assert misspelt(word, KEYS) == meant


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("NF4", "nf4"),
        ("nf_4", "nf4"),
        ("bnb-4bit", "bnb_4bit"),
        ("bnb_4bt", "bnb_4bit"),
        ("Quantise", "quantize"),
        ("flaot16", "float16"),
        ("quantized", "quantize"),
    ],
)
def test_a_misspelt_value(word: str, meant: str) -> None:
    """Values are compared as keys are."""
    assert misspelt(word, VALUES) == meant


@pytest.mark.parametrize(
    "word",
    ["nmae", "max_quantized_layers", "schems", "odels", "mdls", "", "_", "modelsmodels"],
    ids=["short", "other-word", "tie", "first-letter", "two-errors", "empty", "separator", "longer"],
)
def test_a_key_that_may_mean_anything(word: str) -> None:
    """Where another word may be meant there is no answer."""
    assert misspelt(word, KEYS) is None


@pytest.mark.parametrize("word", ["nf8", "bnb_8bit", "int8", "bfloat32", "bf16", "float", "nf", "bnb_int4"])
def test_a_value_that_may_mean_anything(word: str) -> None:
    """What exists elsewhere under a like name is no typing error."""
    assert misspelt(word, VALUES) is None


def offered(text: str) -> list[tuple[str, int, int, str] | None]:
    """The edits that the errors of a file offer: code, columns and text."""
    loader = Loader()
    loader.load_text(text, file="r.yaml")
    return [_offer(each) for each in loader.diagnostics]


def _offer(diagnostic: Diagnostic) -> tuple[str, int, int, str] | None:
    edit = diagnostic.fix
    return (diagnostic.code, edit.location.column, edit.location.end_column, edit.text) if edit else None


HEAD = "version: 1\nschemes:\n  a: {method: bnb_4bit}\n"
OFFERS = {
    "key": ("version: 1\nmodles: a\n", ("RQ101", 1, 7, "models")),
    "key-in-double-quotes": ('version: 1\n"modles": a\n', ("RQ101", 2, 8, "models")),
    "key-in-single-quotes": ("version: 1\n'modles': a\n", ("RQ101", 2, 8, "models")),
    "key-of-scheme": ("version: 1\nschemes:\n  a: {metod: bnb_int8}\n", ("RQ102", 7, 12, "method")),
    "literal": ("version: 1\noutput_embeddings: Skip\n", ("RQ103", 20, 24, "skip")),
    "literal-in-quotes": ("version: 1\noutput_embeddings: 'Skip'\n", ("RQ103", 21, 25, "skip")),
    "method": ("version: 1\nschemes:\n  a: {method: bnb-4bit}\n", ("RQ103", 15, 23, "bnb_4bit")),
    "number-in-quotes": ('version: "1"\n', ("RQ103", 10, 13, "1")),
    "any-number-in-quotes": ("version: 1\nexpect: {min_quantized: '0.5'}\n", ("RQ104", 25, 30, "0.5")),
    "yes": ("version: 1\nskip_modules: [{modules: a, optional: yes}]\n", ("RQ104", 39, 42, "true")),
    "off-in-quotes": ('version: 1\nskip_modules: [{modules: a, optional: "Off"}]\n', ("RQ104", 39, 44, "false")),
    "number-as-text": ("version: 1\nname: 0x10\n", ("RQ104", 7, 11, '"0x10"')),
    "boolean-as-text": ("version: 1\nmodels: [True]\n", ("RQ104", 10, 14, '"True"')),
    "class": ("version: 1\nskip_modules: a.[0-12].b\n".replace("a.", "\n- a."), ("RQ202", 5, 11, "{0..12}")),
    "class-in-quotes": ('version: 1\nskip_modules: ["[9-12].b"]\n', ("RQ202", 17, 23, "{9..12}")),
}


@pytest.mark.parametrize(("text", "offer"), OFFERS.values(), ids=OFFERS)
def test_offer(text: str, offer: tuple[str, int, int, str]) -> None:
    """Exactly what is wrong is replaced, and quotes stay unless they are what is wrong."""
    assert offered(text) == [offer]


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\nmodel: a\nmodels: b\n",
        "version: 1\nmodel: a\nmodel_s: b\n",
        'version: 1\n"m\\x6fdles": a\n',
        "version: 1\nrules: [{models: a, scheme: b}]\n",
        'version: 1\noutput_embeddings: "S\\x6bip"\n',
        "version: 1\nskip_modules: [null]\n",
        "version: 1\nexpect: {min_quantized: half}\n",
        "version: 1\nschemes: {a: {method: bnb_4bit, double_quant: 1}}\n",
        "version: 1\nskip_modules:\n- a.[!0-12].b\n",
        "version: 1\nskip_modules:\n- a.[00-12].b\n",
        'version: 1\nskip_modules:\n- "\\x61.[0-12].b"\n',
        "version: 1\n" + "".join(f"k{index}: a\n" for index in range(50)) + "modles: a\n",
    ],
    ids=[
        "present",
        "twice",
        "escape-in-key",
        "key-of-another-mapping",
        "escape-in-value",
        "null",
        "no-number",
        "one-for-true",
        "negated-class",
        "leading-zero",
        "escape-in-pattern",
        "many-keys",
    ],
)
def test_no_offer(text: str) -> None:
    """Where there may be several right answers, or the text spells the value with escapes, nothing is offered."""
    assert set(offered(text)) == {None}


@pytest.mark.parametrize("text", ["version: 1\n! modles: a\n", "version: 1\noutput_embeddings: ! Skip\n"])
def test_a_tag_is_no_quote(text: str) -> None:
    """What stands before a value is not taken for a quote."""
    assert set(offered(text)) == {None}
