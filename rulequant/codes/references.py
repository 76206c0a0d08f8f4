"""RQ301 to RQ318: schemes, parents, and entries that have no effect."""

from __future__ import annotations

from rulequant.codes.entry import Code, error, warning

__all__ = ["CODES"]

CODES: tuple[Code, ...] = (
    error(
        "RQ301",
        "no such scheme",
        what="`scheme` names a key of `schemes` that neither this file nor any that it extends defines.",
        why="Nothing says how to quantize the modules.",
        wrong="""
extends: causal_lm
scheme: int4
""",
        right="""
extends: causal_lm
scheme: int8
""",
    ),
    error(
        "RQ302",
        "no such file to extend",
        what="`extends` takes the name of a bundled file, or a path relative to the file it stands in.",
        why="Without its parent the file has other rules than its author believes.",
        wrong="""
extends: casual_lm
""",
        right="""
extends: causal_lm
""",
    ),
    error(
        "RQ303",
        "extends goes in a circle",
        what="A file extends itself, directly or by way of others. The message prints the chain.",
        why="There is no first file to start from.",
    ),
    error(
        "RQ306",
        "too many patterns",
        what="All patterns of the file and of what it extends, their braces written out, have more than 50,000 "
        "segments together.",
        why="Time and memory of matching grow with them. Write `*` where any number will do, and narrow with `layers`.",
    ),
    warning(
        "RQ310",
        "a rule never wins",
        what="An earlier rule selects everything that this one selects, and of all rules that match a module the first "
        "wins.",
        why="The rule looks as if it did something. Move it up, or remove it.",
        wrong="""
extends: causal_lm
rules:
  - {modules: "**.self_attn", scheme: int8}
  - {modules: "**.self_attn.o_proj", scheme: fp4}
""",
        right="""
extends: causal_lm
rules:
  - {modules: "**.self_attn.o_proj", scheme: fp4}
  - {modules: "**.self_attn", scheme: int8}
""",
    ),
    warning(
        "RQ311",
        "a rule is behind a skip",
        what="A skip selects everything that this rule selects, and a skip always beats a rule.",
        why="The modules stay as they are, whatever the rule says.",
        wrong="""
extends: causal_lm
skip_modules: ["**.self_attn"]
rules:
  - {modules: "**.self_attn.o_proj", scheme: int8}
""",
        right="""
extends: causal_lm
skip_modules:
  - {modules: "**.self_attn", except: "**.o_proj"}
rules:
  - {modules: "**.self_attn.o_proj", scheme: int8}
""",
    ),
    warning(
        "RQ312",
        "a skip adds nothing",
        what="Another skip, of this file or of one it extends, selects everything that this one selects.",
        why="Whoever removes the other believes that this one still holds less than it does.",
        wrong="""
skip_modules:
  - model.visual
  - model.visual.blocks
""",
        right="""
skip_modules:
  - model.visual
""",
    ),
    warning(
        "RQ313",
        "a pattern adds nothing to its list",
        what="Another pattern of the same list selects everything that this one selects. Selecting a module selects "
        "all that is inside it.",
        why="It is noise, and often a sign that one of the two was meant otherwise.",
        wrong="""
skip_modules:
  - modules: ["**.mlp", "**.mlp.gate"]
""",
        right="""
skip_modules:
  - modules: ["**.mlp"]
""",
    ),
    warning(
        "RQ314",
        "a scheme is never used",
        what="The file defines a scheme that neither `scheme` nor any rule names. A file without `models` is a base "
        "for others, and may define schemes for them.",
        why="Often a rule names another scheme than was meant.",
        wrong="""
extends: causal_lm
models: [llama]
schemes:
  careful: {method: bnb_int8, threshold: 4.0}
""",
        right="""
extends: causal_lm
models: [llama]
schemes:
  careful: {method: bnb_int8, threshold: 4.0}
rules:
  - {modules: "**.down_proj", scheme: careful}
""",
    ),
    warning(
        "RQ315",
        "an unknown class name",
        what="No module class of torch or transformers has this name. A class of your own is fine.",
        why="A misspelt class selects nothing. Names are case-sensitive, and a subclass is not its base.",
        wrong="""
quantizable_types: [linear]
""",
        right="""
quantizable_types: [Linear]
""",
    ),
    error(
        "RQ316",
        "a slice selects no layer",
        what="The slice is empty for every number of layers.",
        why="The start comes before the stop, and the stop is not included: `0:2` is layers 0 and 1.",
        wrong="""
skip_modules:
  - {modules: "**.mlp", layers: "2:0"}
""",
        right="""
skip_modules:
  - {modules: "**.mlp", layers: "0:2"}
""",
    ),
    warning(
        "RQ317",
        "an override changes nothing",
        what="The file sets a key to what a file it extends says already.",
        why="When the parent changes, this file will not follow.",
        wrong="""
extends: causal_lm
scheme: nf4
""",
        right="""
extends: causal_lm
""",
    ),
    warning(
        "RQ318",
        "not all patterns were compared",
        what="The patterns are so many and so much alike that finding all those without effect would take too long.",
        why="Entries that have no effect may be among them and go unreported. Join patterns with `*`, braces and "
        "`layers`.",
    ),
)
