"""RQ001 to RQ013: the file and its YAML."""

from __future__ import annotations

from rulequant.codes.entry import Code, error

__all__ = ["CODES"]

CODES: tuple[Code, ...] = (
    error(
        "RQ001",
        "the file cannot be read",
        what="The file does not exist, may not be read, or is not a regular file (a folder, a pipe, a device).",
        why="A checker that skips what it cannot open passes for the wrong reason. The command exits 2.",
    ),
    error(
        "RQ002",
        "the file is too large",
        what="A rule file has at most 1 MiB and 50,000 keys and values.",
        why="Whole model families fit into a few kilobytes; a larger file is usually the wrong one, or hostile. Split "
        "a long one and join the parts with `extends`.",
    ),
    error(
        "RQ003",
        "the file is not plain UTF-8 text",
        what="A byte is not UTF-8, or a character is one that YAML does not allow: a control character, half a "
        "surrogate pair, or a line separator that editors and YAML readers count differently.",
        why="Such characters are invisible in a review, and readers do not agree on what they mean.",
    ),
    error(
        "RQ004",
        "YAML syntax error",
        what="The text is not YAML: an unclosed quote or bracket, a missing colon, a tab, an indentation that fits "
        "nothing.",
        why="Nothing after the error can be read, so fix it first; there may be more to say then.",
        wrong="""
skip_modules:
  - modules: "**.lm_head
""",
        right="""
skip_modules:
  - modules: "**.lm_head"
""",
    ),
    error(
        "RQ005",
        "a pattern is not quoted",
        what="Unquoted, `*.mlp` is an alias in YAML, `[0-9]` a list, `{a,b}` a mapping, `!x` a tag and `?x` a key.",
        why="Most globs start with a sign that means something else to YAML. With quotes they are what they look like.",
        wrong="""
skip_modules:
  - **.mlp.gate
""",
        right="""
skip_modules:
  - "**.mlp.gate"
""",
    ),
    error(
        "RQ006",
        "a key stands twice in one mapping",
        what="The same key is written twice at one level.",
        why="YAML readers silently keep the last one, so half of the file would have no effect.",
        wrong="""
skip_modules: ["**.gate"]
skip_modules: ["**.router"]
""",
        right="""
skip_modules: ["**.gate", "**.router"]
""",
    ),
    error(
        "RQ007",
        "anchor, alias or merge key",
        what="Rule files use no `&anchor`, `*alias` or `<<`.",
        why="They hide what a line means from whoever reviews it, and a few of them can blow a small file up to "
        "gigabytes. What several files share goes into one that they extend.",
        wrong="""
schemes:
  a: &a {method: bnb_4bit}
  b: *a
""",
        right="""
schemes:
  a: {method: bnb_4bit}
  b: {method: bnb_4bit}
""",
    ),
    error(
        "RQ008",
        "a tag",
        what="Rule files use no tags (`!!str`, `!custom`).",
        why="A tag changes the type of a value, or runs code in other readers. Text that starts with `!` needs quotes.",
        wrong="""
name: !!str 7b
""",
        right="""
name: "7b"
""",
    ),
    error(
        "RQ009",
        "a second document",
        what="A `---` starts a second document in the same file.",
        why="Most readers look at the first alone, so the rest would be ignored.",
        wrong="""
version: 1
---
version: 1
""",
        right="""
version: 1
""",
    ),
    error(
        "RQ010",
        "a key is not text",
        what="A key is a number, a boolean, null, a list or a mapping, or it is missing before its colon.",
        why="Readers turn such keys into text in different ways. Quote the key.",
        wrong="""
schemes:
  4: {method: bnb_4bit}
""",
        right="""
schemes:
  "4": {method: bnb_4bit}
""",
    ),
    error(
        "RQ011",
        "too deeply nested",
        what="There are more than 64 levels of nesting; a rule file needs about five.",
        why="Deep nesting crashes YAML readers outright.",
    ),
    error(
        "RQ012",
        "a number is too long",
        what="An unquoted number has more than 31 characters.",
        why="No such number means anything in a rule file; quote it if it is text.",
    ),
    error(
        "RQ013",
        "the file is empty",
        what="There is nothing in the file but comments.",
        why="An empty file usually was saved by accident. The smallest rule file is `version: 1`, and one that "
        "quantizes something has a `scheme` too.",
        right="""
version: 1
extends: causal_lm
""",
    ),
)
