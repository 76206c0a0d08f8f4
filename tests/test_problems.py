"""Messages about a rule file: what is wrong, at which line and column, what is allowed, what to do."""

from __future__ import annotations

from importlib import metadata
from typing import Literal

import pytest
from inventories import check

from rulequant import schemes
from rulequant.schemes import Scheme

HEAD = "version: 1\n"

CASES: dict[str, tuple[str, str]] = {
    # Unknown keys, at every level, at the key.
    "unknown-key": (
        "version: 1\nmodles: llama\n",
        "2:1: RQ101 error: unknown key `modles`; did you mean `models`?",
    ),
    "unknown-key-far-off": (
        "version: 1\nzzz: 3\n",
        (
            "2:1: RQ101 error: unknown key `zzz`; allowed keys: version, name, description, extends, models, "
            "quantizable_types, skip_modules, remove_skips, output_embeddings, schemes, scheme, rules, "
            "expect, components"
        ),
    ),
    # Keys as other programs call them.
    "skip-list-of-transformers": (
        HEAD + "llm_int8_skip_modules: [lm_head]\n",
        "2:1: RQ101 error: unknown key `llm_int8_skip_modules`; did you mean `skip_modules`?",
    ),
    "short-for-skips": (HEAD + "skip: [a]\n", "2:1: RQ101 error: unknown key `skip`; did you mean `skip_modules`?"),
    "exclude-in-a-rule": (
        HEAD + "rules:\n- {modules: a, scheme: x, exclude: b}\n",
        "3:27: RQ101 error: unknown key `exclude` in `rules[1]`; did you mean `except`?",
    ),
    "pattern-for-modules": (
        HEAD + "rules:\n- {pattern: a, scheme: x}\n",
        "3:4: RQ101 error: unknown key `pattern` in `rules[1]`; did you mean `modules`?",
    ),
    "load-in-4bit": (
        HEAD + "load_in_4bit: true\n",
        (
            "2:1: RQ101 error: unknown key `load_in_4bit`; "
            "a scheme says the method: `schemes: {nf4: {method: bnb_4bit}}` and `scheme: nf4`"
        ),
    ),
    "setting-at-the-top": (
        HEAD + "expect: {bnb_4bit_quant_type: nf4}\n",
        (
            "2:10: RQ101 error: unknown key `bnb_4bit_quant_type` in `expect`; it is `quant_type` here, and belongs "
            "in a scheme of the method bnb_4bit; here: min_quantized, min_quantized_layers"
        ),
    ),
    "method-for-a-scheme": (
        HEAD + "schemes: {a: int8}\n",
        '2:14: RQ104 error: `schemes.a` must be a mapping, not "int8"; name the method: `{method: bnb_int8}`',
    ),
    "unknown-key-in-a-skip": (
        HEAD + 'skip_modules:\n  - modules: "**.gate"\n    excpt: "**.mlp.gate"\n',
        "4:5: RQ101 error: unknown key `excpt` in `skip_modules[1]`; did you mean `except`?",
    ),
    "unknown-key-in-a-flow-skip": (
        HEAD + "skip_modules: [a, {modules: b, resaon: c}]\n",
        "2:32: RQ101 error: unknown key `resaon` in `skip_modules[2]`; did you mean `reason`?",
    ),
    "unknown-key-in-a-rule": (
        HEAD + "rules:\n- {modules: a, scheme: x, layer: 0}\n",
        "3:27: RQ101 error: unknown key `layer` in `rules[1]`; did you mean `layers`?",
    ),
    "unknown-key-in-expect": (
        HEAD + "expect: {min_quantised: 0.9}\n",
        "2:10: RQ101 error: unknown key `min_quantised` in `expect`; did you mean `min_quantized`?",
    ),
    "unknown-key-in-a-scheme": (
        HEAD + "schemes:\n  nf4:\n    method: bnb_4bit\n    block_size: 64\n",
        "5:5: RQ101 error: unknown key `block_size` in `schemes.nf4`; did you mean `blocksize`?",
    ),
    "option-of-another-method": (
        HEAD + "schemes: {a: {method: bnb_int8, double_quant: true}}\n",
        (
            "2:33: RQ101 error: unknown key `double_quant` in `schemes.a`; "
            "it belongs in a scheme of the method bnb_4bit; here: method, threshold"
        ),
    ),
    # What is missing, at the mapping that lacks it.
    "no-version": ("name: x\n", "1:1: RQ102 error: `version` is missing; add `version: 1` as the first line"),
    "no-scheme": (
        HEAD + 'rules:\n  - modules: "**.mlp"\n',
        "3:5: RQ102 error: `scheme` is missing in `rules[1]`; say how: `scheme: NAME`, one of the keys of `schemes`",
    ),
    "no-modules": (
        HEAD + "skip_modules:\n  - reason: because\n",
        (
            "3:5: RQ102 error: `modules` is missing in `skip_modules[1]`; "
            'say which modules it is about: `modules: "**.lm_head"`'
        ),
    ),
    "no-method": (
        HEAD + "schemes:\n  nf4: {quant_type: nf4}\n",
        (
            "3:3: RQ102 error: `method` is missing in `schemes.nf4`; "
            "say which method: `method: bnb_4bit` or `method: bnb_int8`"
        ),
    ),
    "misspelt-method": (
        HEAD + "schemes: {nf4: {metod: bnb_4bit}}\n",
        "2:11: RQ102 error: `method` is missing in `schemes.nf4`; is `metod` a misspelling of `method`?",
    ),
    # What is not one of the allowed values, at the value.
    "version-2": ("version: 2\n", "1:10: RQ103 error: `version` cannot be 2; allowed: 1"),
    "version-text": ('version: "1"\n', '1:10: RQ103 error: `version` cannot be "1"; write it without quotes: 1'),
    "version-true": ("version: true\n", "1:10: RQ103 error: `version` cannot be true; allowed: 1"),
    "version-empty": ("version:\n", "1:9: RQ103 error: `version` cannot be empty; allowed: 1"),
    "output-embeddings": (
        HEAD + "output_embeddings: Skip\n",
        '2:20: RQ103 error: `output_embeddings` cannot be "Skip"; did you mean `skip`?',
    ),
    "output-embeddings-no": (
        HEAD + "output_embeddings: no\n",
        '2:20: RQ103 error: `output_embeddings` cannot be "no"; allowed: skip, quantize',
    ),
    "blocksize": (
        HEAD + "schemes:\n  nf4: {method: bnb_4bit, blocksize: 96}\n",
        ("3:38: RQ103 error: `schemes.nf4.blocksize` cannot be 96; allowed: 32, 64, 128, 256, 512, 1024, 2048, 4096"),
    ),
    "blocksize-text": (
        HEAD + "schemes:\n  nf4: {method: bnb_4bit, blocksize: '64'}\n",
        '3:38: RQ103 error: `schemes.nf4.blocksize` cannot be "64"; write it without quotes: 64',
    ),
    "quant-type": (
        HEAD + "schemes: {a: {method: bnb_4bit, quant_type: NF4}}\n",
        '2:45: RQ103 error: `schemes.a.quant_type` cannot be "NF4"; did you mean `nf4`?',
    ),
    "unknown-method": (
        HEAD + "schemes: {a: {method: bnb4bit}}\n",
        '2:23: RQ103 error: `schemes.a.method` cannot be "bnb4bit"; did you mean `bnb_4bit`?',
    ),
    "unlike-any-method": (
        HEAD + "schemes: {a: {method: gptq}}\n",
        '2:23: RQ103 error: `schemes.a.method` cannot be "gptq"; allowed: bnb_4bit, bnb_int8',
    ),
    # What is of the wrong type, at the value.
    "file-is-a-list": (
        "- version: 1\n",
        (
            "1:1: RQ104 error: the file must be a mapping, not a list; "
            "remove the dashes; a rule file starts with `version: 1`"
        ),
    ),
    "file-is-text": (
        "version 1\n",
        (
            '1:1: RQ104 error: the file must be a mapping, not "version 1"; '
            "write `key: value`; a rule file starts with `version: 1`"
        ),
    ),
    "name-number": (HEAD + "name: 0x10\n", '2:7: RQ104 error: `name` must be a string, not 16; quote it: "0x10"'),
    "type-number": (
        HEAD + "quantizable_types: [Linear, 4]\n",
        '2:29: RQ104 error: `quantizable_types[2]` must be a string, not 4; quote it: "4"',
    ),
    "pattern-number": (
        HEAD + "skip_modules: [{modules: 3}]\n",
        '2:26: RQ104 error: `skip_modules[1].modules` must be a string, not 3; quote it: "3"',
    ),
    "pattern-list": (
        HEAD + "skip_modules: [{modules: [[0-9]]}]\n",
        (
            "2:27: RQ104 error: `skip_modules[1].modules[1]` must be a string, not a list; "
            'a pattern that starts with `[` or `{` must be quoted: "[0-9].mlp"'
        ),
    ),
    "models-of-lists": (
        HEAD + "models: [[a]]\n",
        (
            "2:10: RQ104 error: `models[1]` must be a string, not a list; "
            "write one text; quote it if it holds brackets, braces or `: `"
        ),
    ),
    "pattern-empty": (
        HEAD + "skip_modules:\n  - modules:\n",
        "3:13: RQ104 error: `skip_modules[1].modules` must be a string, not empty; remove the key, or give it a value",
    ),
    "optional-yes": (
        HEAD + "skip_modules: [{modules: a, optional: yes}]\n",
        (
            '2:39: RQ104 error: `skip_modules[1].optional` must be true or false, not "yes"; '
            "write `true`: yes, no, on and off are strings in YAML 1.2"
        ),
    ),
    "optional-1": (
        HEAD + "skip_modules: [{modules: a, optional: 1}]\n",
        "2:39: RQ104 error: `skip_modules[1].optional` must be true or false, not 1; write `true` or `false`",
    ),
    "threshold-text": (
        HEAD + 'schemes: {a: {method: bnb_int8, threshold: "6"}}\n',
        '2:44: RQ104 error: `schemes.a.threshold` must be a number, not "6"; write it without quotes: 6',
    ),
    "skip-without-a-list": (
        HEAD + 'skip_modules: "**.gate"\n',
        '2:15: RQ104 error: `skip_modules` must be a list, not "**.gate"; start each entry with a dash: `- "**.gate"`',
    ),
    "rules-without-a-list": (
        HEAD + "rules:\n  modules: a\n  scheme: x\n",
        (
            "3:3: RQ104 error: `rules` must be a list, not a mapping; "
            "start each entry with a dash: `- {modules: ..., scheme: NAME}`"
        ),
    ),
    "rules-empty": (
        HEAD + "rules:\n",
        "2:7: RQ104 error: `rules` must be a list, not empty; remove the key, or give it a value",
    ),
    "rule-bare": (
        HEAD + 'rules: ["**.mlp"]\n',
        (
            '2:9: RQ104 error: `rules[1]` must be a mapping, not "**.mlp"; '
            'a rule says how: `{modules: "**.mlp", scheme: NAME}`'
        ),
    ),
    "scheme-bare": (
        HEAD + "schemes: {nf4: bnb_4bit}\n",
        '2:16: RQ104 error: `schemes.nf4` must be a mapping, not "bnb_4bit"; name the method: `{method: bnb_4bit}`',
    ),
    "schemes-list": (
        HEAD + "schemes: [nf4]\n",
        (
            "2:10: RQ104 error: `schemes` must be a mapping, not a list; "
            "give each scheme a name: `NAME: {method: bnb_4bit}`"
        ),
    ),
    "expect-number": (
        HEAD + "expect: 0.95\n",
        "2:9: RQ104 error: `expect` must be a mapping, not 0.95; say of what: `{min_quantized: 0.95}`",
    ),
    # Values out of range or empty, at the value.
    "percent": (
        HEAD + "expect: {min_quantized: 95}\n",
        (
            "2:25: RQ106 error: `expect.min_quantized` cannot be 95: it must be at most 1; "
            "shares go from 0 to 1: 95% is 0.95"
        ),
    ),
    "negative-share": (
        HEAD + "expect: {min_quantized: -0.1}\n",
        "2:25: RQ106 error: `expect.min_quantized` cannot be -0.1: it must be at least 0; shares go from 0 to 1",
    ),
    "negative-threshold": (
        HEAD + "schemes: {a: {method: bnb_int8, threshold: -6}}\n",
        "2:44: RQ106 error: `schemes.a.threshold` cannot be -6: it must be at least 0",
    ),
    "not-finite": (
        HEAD + "schemes: {a: {method: bnb_int8, threshold: .inf}}\n",
        "2:44: RQ106 error: `schemes.a.threshold` cannot be inf: it must be a finite number",
    ),
    "empty-list": (
        HEAD + "models: []\n",
        "2:9: RQ105 error: `models` is an empty list; remove the key, or give it a value",
    ),
    "empty-reason": (
        HEAD + 'skip_modules: [{modules: a, reason: ""}]\n',
        "2:37: RQ105 error: `skip_modules[1].reason` is empty; remove the key, or give it a value",
    ),
    # What is a language of its own: globs, slices, class names.
    "glob": (
        HEAD + 'skip_modules:\n  - "model.layers[0-12]"\n',
        (
            "3:5: RQ202 error: `[0-12]` is a single character (0, 1 or 2), not a number from 0 to 12; "
            'write `model.layers{0..12}`, or use `layers: ["0:13"]`'
        ),
    ),
    "second-glob": (
        HEAD + 'skip_modules:\n  - modules: ["a", "b."]\n',
        (
            "3:20: RQ201 error: `b.` has an empty segment: a dot stands at its start, at its end or beside another; "
            "write `b`, which selects everything inside it too"
        ),
    ),
    "except-glob": (
        HEAD + 'skip_modules: [{modules: a, except: "^a$"}]\n',
        "2:37: RQ203 error: `^a$` looks like a regular expression (`^`), and patterns are globs; write `a`",
    ),
    "slice": (
        HEAD + 'skip_modules: [{modules: a, layers: [0, "0-3"]}]\n',
        (
            "2:41: RQ204 error: '0-3' is neither an index nor a slice of layers; "
            'layers are Python indices or slices: 0, -1, "0:2", "-2:", "::2"'
        ),
    ),
    "class-name": (
        HEAD + "quantizable_types: torch.nn.Linear\n",
        (
            "2:20: RQ205 error: 'torch.nn.Linear' is not a class name; "
            'write the class name alone, such as Linear, or with wildcards: "*Experts"'
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name: str) -> None:
    """One mistake is one diagnostic at its place."""
    text, expected = CASES[name]
    _, diagnostics = check(text)
    assert [each.concise() for each in diagnostics] == [f"rules.yaml:{expected}"]


def test_all_problems_in_the_order_of_the_text() -> None:
    """Problems of the YAML and of what it says are reported together, line by line."""
    _, diagnostics = check(
        """
        version: 1
        output_embeddings: maybe
        schemes:
          nf4: {method: bnb_4bit, blocksize: 63, quant: nf4}
        name: a
        name: b
        skip_modules:
          - modules: ["a..b", "[0-12]"]
            optional: no
        rules:
          - {modules: a}
        excpt: 3
        """
    )
    found = [(each.location.line, each.location.column, each.code) for each in diagnostics if each.location]
    assert found == [
        (2, 20, "RQ103"),
        (4, 38, "RQ103"),
        (4, 42, "RQ101"),
        (6, 1, "RQ006"),
        (8, 15, "RQ201"),
        (8, 23, "RQ202"),
        (9, 15, "RQ104"),
        (11, 5, "RQ102"),
        (12, 1, "RQ101"),
    ]


def test_diagnostics_carry_their_data() -> None:
    """The offending value and the allowed ones are fields, and the location is the whole value."""
    _, (diagnostic,) = check("version: 1\nschemes: {a: {method: bnb_4bit, quant_type: nf5}}\n")
    assert (diagnostic.value, diagnostic.allowed) == ("nf5", ("nf4", "fp4"))
    assert diagnostic.to_dict()["location"] == {
        "file": "rules.yaml", "line": 2, "column": 45, "end_line": 2, "end_column": 48,
    }  # fmt: skip


def test_not_more_than_a_reader_reads() -> None:
    """Ten thousand mistakes are cut to the first hundred."""
    keys = "".join(f"key{number}: 1\n" for number in range(10_000))
    _, diagnostics = check(f"version: 1\n{keys}")
    assert [each.value for each in diagnostics] == [f"key{number}" for number in range(100)]


class Foreign(Scheme):
    """A third party's scheme with a union and an alias."""

    method: Literal["foreign"] = "foreign"
    groups: int | list[int] = 8


def test_settings_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's settings are checked by its own model, and messages point into the file all the same."""
    entries = metadata.EntryPoints([metadata.EntryPoint("foreign", f"{__name__}:Foreign", schemes.ENTRY_POINTS)])
    monkeypatch.setattr(metadata, "entry_points", lambda **_: entries)
    text = "version: 1\nschemes:\n  a: {method: foreign, group: 8}\n  b: {method: foreign, groups: [1, x]}\n"
    _, diagnostics = check(text)
    assert [each.concise().partition(";")[0] for each in diagnostics] == [
        "rules.yaml:3:24: RQ101 error: unknown key `group` in `schemes.a`",
        "rules.yaml:4:32: RQ104 error: `schemes.b.groups` must be an integer, not a list",
        'rules.yaml:4:36: RQ104 error: `schemes.b.groups[2]` must be an integer, not "x"',
    ]


def test_a_broken_package_is_a_diagnostic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that cannot be loaded is reported at the method."""
    entries = metadata.EntryPoints([metadata.EntryPoint("broken", "math:pi", schemes.ENTRY_POINTS)])
    monkeypatch.setattr(metadata, "entry_points", lambda **_: entries)
    _, (diagnostic,) = check("version: 1\nschemes: {a: {method: broken}}\n")
    assert diagnostic.concise() == (
        "rules.yaml:2:23: RQ105 error: the method `broken` (math:pi) is no subclass of Scheme; "
        "update or uninstall the package that provides it"
    )
