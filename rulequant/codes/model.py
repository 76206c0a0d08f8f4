"""RQ401 to RQ413, RQ451 to RQ454: what a rule set and a model say about each other."""

from __future__ import annotations

from rulequant.codes.entry import Code, error, note, warning

__all__ = ["CODES"]

CODES: tuple[Code, ...] = (
    error(
        "RQ401",
        "a pattern matches nothing",
        what="A pattern of a skip or a rule selects no module of the model, or of any of the models given to "
        "`validate --model`; or it names some, and `except`, `types` and `layers` leave none.",
        why="It is misspelt, or the model is another than was meant. Where a sibling of the family lacks the part, say "
        "so with `optional: true`.",
        wrong="""
extends: causal_lm
skip_modules:
  - "**.mlp.gat"
""",
        right="""
extends: causal_lm
skip_modules:
  - "**.mlp.gate"
""",
    ),
    warning(
        "RQ402",
        "an entry decides nothing",
        what="Everything that the rule or skip selects in this model was taken by an entry before it.",
        why="It has no effect on this model. Matches are counted before precedence, so it is not misspelt.",
    ),
    warning(
        "RQ403",
        "an entry selects no quantizable module",
        what="The rule or skip selects modules, but none whose class is in `quantizable_types`.",
        why="They would stay as they are without it. If they should be quantized, list their class.",
    ),
    warning(
        "RQ404",
        "an exception matches nothing",
        what="A pattern under `except` matches no module of the model.",
        why="The exception is misspelt, and what it should let through is held back.",
    ),
    error(
        "RQ405",
        "the rules are for another family",
        what="`models` lists the model types that the file is for, and the model's is not among them.",
        why="Patterns of another family match by chance or not at all.",
        wrong="""
extends: causal_lm
models: [t5]
""",
        right="""
extends: causal_lm
models: [llama]
""",
    ),
    error(
        "RQ406",
        "too little would be quantized",
        what="The share of the parameters that would be quantized is below `expect.min_quantized` or "
        "`expect.min_quantized_layers`. The message names the heaviest module left out.",
        why="A change of the model or of the rules left out more than its author promised.",
        wrong="""
extends: causal_lm
expect: {min_quantized: 1.0}
""",
        right="""
extends: causal_lm
expect: {min_quantized_layers: 0.9}
""",
    ),
    error(
        "RQ407",
        "nothing says how to quantize",
        what="The file has no `scheme` and no `rules`, its own or inherited.",
        why="There is no default method.",
        wrong="""
name: empty
""",
        right="""
extends: causal_lm
""",
    ),
    warning(
        "RQ408",
        "a heavy class is passed over",
        what="A class that holds at least one percent of the parameters is not in `quantizable_types`, and no skip "
        "names its modules. Embeddings are not counted.",
        why="Fused experts and custom linear layers keep most of some models in full precision without a word. List "
        "the class, or skip its modules and say why.",
    ),
    warning(
        "RQ409",
        "a pattern matches only in some of the models",
        what="`validate --model` was given several models, and the pattern matches in some of them only. The message "
        "names those in which it does not.",
        why="Where members of a family differ, `optional: true` says that this is known.",
    ),
    warning(
        "RQ410",
        "no given model is of the file's family",
        what="`validate --model` was given models, and the file's `models` lists the type of none of them.",
        why="The patterns of the file were not checked against anything.",
    ),
    warning(
        "RQ411",
        "a scheme holds a module with a reservation",
        what="The method can hold the module, and the layers that load a plain `bitsandbytes` checkpoint may get it "
        "wrong. In 4 bits that is so on a CPU, as seen in bitsandbytes 0.50.2: where in_features is no multiple of the "
        "blocksize, a block reaches over two rows, which are then dequantized wrongly without an error, or, with "
        "AVX512-BF16, refused by the forward pass.",
        why="On a GPU there is no such limit. Layers made by rulequant, in memory or from a checkpoint in the "
        "`rulequant` container, go round these kernels, so nothing is said of that container.",
    ),
    warning(
        "RQ412",
        "a skip is taken back in vain",
        what="`remove_skips` takes back a skip of a parent, and of this model no module becomes quantizable by that: "
        "the skip selected none, another skip keeps them, or their class is not one of `quantizable_types`.",
        why="The file looks as if it quantized what the parent leaves alone. `validate --model` warns only where no "
        "given model gains anything.",
    ),
    note(
        "RQ413",
        "the layers of a plain checkpoint do not run everywhere",
        what="On CPUs with AVX512-BF16 the 4-bit layer of bitsandbytes (seen in 0.50.2) packs its rows by 32, and "
        "fails in the forward pass where out_features is no multiple of that: `N must be divisible by block_n`.",
        why="It concerns those who run a plain `bitsandbytes` checkpoint on such a CPU. On a GPU, on other CPUs, and "
        "in the container `rulequant` the layer works.",
    ),
    note(
        "RQ451",
        "vLLM does not know the container",
        what="The plan needs the container `rulequant`, which vLLM does not load.",
        why="vLLM reads plain `bitsandbytes` checkpoints. `rulequant plan --container bitsandbytes` says what stands "
        "in the way of one.",
    ),
    note(
        "RQ452",
        "vLLM merges layers that are not quantized alike",
        what="Of the query, key and value projections, or of gate and up, some are quantized and some are not.",
        why="vLLM makes one layer of them, which is quantized as a whole or not at all.",
    ),
    note(
        "RQ453",
        "vLLM takes all experts for NF4",
        what="Fused experts stay as they are, or have another code than `quant_type: nf4`.",
        why="vLLM heeds no skip list for experts, and reads none but NF4.",
    ),
    note(
        "RQ454",
        "vLLM takes packed bytes for uint8",
        what="A scheme has a `quant_storage` other than `uint8`.",
        why="vLLM refuses the checkpoint.",
    ),
)
