"""RQ101 to RQ106 and RQ201 to RQ205: keys, values, patterns."""

from __future__ import annotations

from rulequant.codes.entry import Code, error

__all__ = ["CODES"]

CODES: tuple[Code, ...] = (
    error(
        "RQ101",
        "unknown key",
        what="No such key exists at this place. The message lists the keys that do.",
        why="A misspelt key that is passed over in silence leaves a module in full precision, or quantizes one that "
        "should not be.",
        wrong="""
skip_module:
  - "**.mlp.gate"
""",
        right="""
skip_modules:
  - "**.mlp.gate"
""",
    ),
    error(
        "RQ102",
        "a key is missing",
        what="A required key is not there: `version` of the file, `modules` of a selector, `scheme` of a rule, "
        "`method` of a scheme.",
        why="There is no default that would be right for everybody.",
        wrong="""
rules:
  - modules: "**.o_proj"
""",
        right="""
extends: causal_lm
rules:
  - modules: "**.o_proj"
    scheme: int8
""",
    ),
    error(
        "RQ103",
        "a value is not one of those allowed",
        what="The key takes one of a few values, and this is none of them.",
        why="The message lists them, and names the nearest.",
        wrong="""
schemes:
  small: {method: bnb_4bit, quant_type: nf5}
""",
        right="""
schemes:
  small: {method: bnb_4bit, quant_type: nf4}
""",
    ),
    error(
        "RQ104",
        "a value has the wrong type",
        what="A list stands where text should, a number where a boolean should, and so on. `yes`, `no`, `on` and `off` "
        "are text in YAML 1.2.",
        why="Values are never converted by guess: the text 'false' would count as true in other places.",
        wrong="""
schemes:
  small: {method: bnb_4bit, double_quant: yes}
""",
        right="""
schemes:
  small: {method: bnb_4bit, double_quant: true}
""",
    ),
    error(
        "RQ105",
        "a value is not valid",
        what="The value has the right type, but cannot be: it is empty, or a setting of a method refuses it.",
        why="The message says what is wrong with it.",
        wrong="""
name: ""
""",
        right="""
name: llama-mixed
""",
    ),
    error(
        "RQ106",
        "a number is out of range",
        what="The number is below or above what the key allows. Shares go from 0 to 1.",
        why="`95` for ninety-five percent would be a floor that no plan can reach.",
        wrong="""
expect:
  min_quantized: 95
""",
        right="""
expect:
  min_quantized: 0.95
""",
    ),
    error(
        "RQ201",
        "a pattern is malformed",
        what="A glob over module names is wrong in itself: unbalanced brackets or braces, an empty segment, `**` mixed "
        "with other characters, a space, a leading `!`, or braces that expand to too many patterns.",
        why="A pattern that cannot match as its author believes is worse than none.",
        wrong="""
skip_modules:
  - "model.layers.**mlp"
""",
        right="""
skip_modules:
  - "model.layers.**.mlp"
""",
    ),
    error(
        "RQ202",
        "a character class with a number of two digits",
        what="`[0-12]` is a single character: 0, 1 or 2. It is not a number from 0 to 12.",
        why="The rule would treat three layers where thirteen were meant. Write `{0..12}`, or use `layers`.",
        wrong="""
skip_modules:
  - "model.layers.[0-12].mlp"
""",
        right="""
skip_modules:
  - "model.layers.{0..12}.mlp"
""",
    ),
    error(
        "RQ203",
        "a regular expression",
        what="The text looks like a regular expression, and patterns are globs: `*` and `?` within one segment of the "
        "name, `**` for any number of segments, `{a,b}` for either.",
        why="Rule files never run a user's regular expression: most are wrong about dots, and some take forever.",
        wrong="""
skip_modules:
  - "model\\\\.layers\\\\.\\\\d+\\\\.mlp"
""",
        right="""
skip_modules:
  - "model.layers.*.mlp"
""",
    ),
    error(
        "RQ204",
        "not an index or slice of layers",
        what="`layers` takes Python indices and slices over the stack of layers around a module: `0`, `-1`, `0:2`, "
        "`-2:`, `::2`. The stop is not included.",
        why="`0-2` could mean two layers or three.",
        wrong="""
skip_modules:
  - modules: "**.mlp"
    layers: 0-2
""",
        right="""
skip_modules:
  - modules: "**.mlp"
    layers: "0:3"
""",
    ),
    error(
        "RQ205",
        "not a class name",
        what="`quantizable_types` and `types` take names of module classes, exact or with wildcards, no dotted paths.",
        why="A class is matched by its own name, so that a file does not depend on where a package keeps it.",
        wrong="""
quantizable_types: [torch.nn.Linear]
""",
        right="""
quantizable_types: [Linear]
""",
    ),
)
