"""RQ5: what no checkpoint can express, or not the one that was asked for; and what `verify` finds in one."""

from __future__ import annotations

from rulequant.codes.entry import Code, error, note, warning

__all__ = ["CODES"]

CODES: tuple[Code, ...] = (
    error(
        "RQ501",
        "the plan quantizes nothing",
        what="Not one module of the model would be quantized.",
        why="The output would be a copy of the input under a name that promises otherwise. `rulequant plan` says for "
        "each module why not.",
    ),
    error(
        "RQ502",
        "bitsandbytes cannot load the method",
        what="A `bitsandbytes` checkpoint was asked for, and a scheme uses a method of another package.",
        why="Plain transformers would not know the tensors. Leave `--container` at `auto`, or change the scheme.",
    ),
    error(
        "RQ503",
        "4-bit and int8 in one bitsandbytes checkpoint",
        what="A `bitsandbytes` checkpoint was asked for, and the plan mixes 4-bit and int8 modules.",
        why="transformers loads one or the other, by one switch in config.json. Leave `--container` at `auto`, or use "
        "one method.",
    ),
    error(
        "RQ504",
        "settings that one bitsandbytes checkpoint shares",
        what="A `bitsandbytes` checkpoint was asked for, and its schemes differ in a setting that config.json holds "
        "once: `compute_dtype` and `quant_storage` of 4-bit schemes, `threshold` of int8 schemes.",
        why="All modules would get the first scheme's value.",
    ),
    error(
        "RQ505",
        "transformers would decide otherwise",
        what="A `bitsandbytes` checkpoint was asked for, and no skip list makes transformers' own matcher decide as "
        "the plan does. The message names the module in dispute.",
        why="The model would load with a module quantized that was written plain, or the reverse.",
    ),
    error(
        "RQ530",
        "a file is not what the manifest says",
        what="A file of the output has another size or sha256 than `rulequant-manifest.json` lists, is no regular "
        "file, or leads out of the folder. Where tensors of a shard were changed, the message names them. The "
        "manifest holds a sha256 of itself, so a change of it is found too.",
        why="The weights, or what loads them, are no longer those that apply wrote: a copy broke off, a disk "
        "failed, or somebody edited the file.",
    ),
    error(
        "RQ531",
        "a file is missing",
        what="`rulequant-manifest.json` lists a file that the folder does not have.",
        why="The folder was copied or downloaded in part.",
    ),
    error(
        "RQ532",
        "a file that the manifest does not list",
        what="The folder has a file that apply did not write. Hidden files are let pass, since publishing and "
        "downloading add some.",
        why="Loaders take files by their names: code, an adapter or other weights in the folder may change what "
        "is loaded.",
    ),
    error(
        "RQ533",
        "plan, rules and manifest do not belong together",
        what="The plan or the rules in the folder are in order by themselves, and are not those whose hash the "
        "manifest holds.",
        why="The folder then does not say how its weights came about: it was put together from several outputs, "
        "or edited.",
    ),
    error(
        "RQ534",
        "a tensor is not what the plan promises",
        what="A tensor of the shards has another shape or dtype than the plan and its schemes ask for, is missing "
        "beside an encoded weight, or is there although nothing asks for it.",
        why="A loader would refuse it, or take it for something else.",
    ),
    error(
        "RQ535",
        "the bytes are not those of the plan",
        what="The tensors of the shards, or of one module, do not come to the bytes that the plan promises as "
        "`bytes_after`.",
        why="Those bytes are exact; where they differ, plan and checkpoint are not of one run.",
    ),
    error(
        "RQ536",
        "transformers would load other layers than planned",
        what="Built on meta by its config.json, as `from_pretrained` does before it reads weights, the model has a "
        "module of another class than the plan says, or with another `compute_dtype` or `threshold`.",
        why="The model would load with a module quantized that was written plain, or the reverse: config.json was "
        "edited, or another version of transformers decides otherwise.",
    ),
    error(
        "RQ537",
        "an unquantized tensor is not the original's",
        what="A tensor that the plan leaves as it is differs from that of `--against MODEL`, cast to the dtype in "
        "which the output stores it.",
        why="MODEL is another model, a fine-tuned one perhaps, or the output was changed.",
    ),
    error(
        "RQ538",
        "a weight that does not stand for the original's",
        what="The dequantized weight differs from that of `--against MODEL` by as much as a weight of zeros would, "
        "is not finite, or cannot be decoded.",
        why="No method that rulequant has errs so much: MODEL is another model, or the output was changed.",
    ),
    error(
        "RQ539",
        "a part of the output cannot be read",
        what="The plan, config.json, the index or the header of a shard is damaged, missing, or at odds with the "
        "others. What depends on it was not checked.",
        why="A loader would fail at the same place, or load something else.",
    ),
    error(
        "RQ541",
        "bitsandbytes holds no model without a config.json",
        what="A `bitsandbytes` checkpoint was asked for, of a model that `package.module:callable` returned.",
        why="transformers builds a model by its config.json, which such a model does not have. Leave `--container` at "
        "`auto`; `rulequant.torch.load_quantized` loads the output.",
    ),
    error(
        "RQ542",
        "diffusers cannot hold the plan",
        what="A `bitsandbytes` checkpoint was asked for, of a component of diffusers, and the plan has what its loader "
        "does not know: 4-bit beside int8, another method, a `quant_storage` other than uint8, or settings that differ "
        "between layers. Or, in whatever container, the plan quantizes other layers than `Linear`.",
        why="diffusers' own loader reads one method and its settings from the component's config.json; double "
        "quantization, block sizes, nf4 and fp4 may differ, since they are stored with each tensor. Leave "
        "`--container` at `auto`: then diffusers loads the output after `import rulequant.torch.diffusers`.",
    ),
    error(
        "RQ543",
        "diffusers would decide otherwise",
        what="A `bitsandbytes` checkpoint was asked for, of a component of diffusers, and its loader, run with the "
        "list of modules to skip, would treat the named module otherwise than the plan does.",
        why="It compares the last segment of each name with the whole list: to skip `proj_out` is to skip "
        "`single_transformer_blocks.0.proj_out` as well. Skip both, or neither, or leave `--container` at `auto`.",
    ),
    error(
        "RQ544",
        "no such component",
        what="A rule file names a component, and the pipeline has no model of that name: model_index.json does not "
        "list it, or it has no config.json, as schedulers and tokenizers have none.",
        why="Nothing would be quantized by its rules.",
    ),
    error(
        "RQ545",
        "a copy is not the original's",
        what="`verify --against` found a file of a component that was not quantized, or of the pipeline itself, which "
        "the given original does not have, or has with other bytes.",
        why="Such files are copied as they are, so the output was made from another pipeline, or the original has "
        "changed since.",
    ),
    note(
        "RQ546",
        "diffusers loads it after an import",
        what="The rules ask for what the own loader of diffusers does not know, such as 4-bit beside int8 in one "
        "component. The output gets the container `rulequant`.",
        why="Who loads it has to `import rulequant.torch.diffusers` first; without that diffusers refuses it. "
        "`--container bitsandbytes` makes an error of it.",
    ),
    error(
        "RQ551",
        "transformers' bitsandbytes loader has no layer for it",
        what="A `bitsandbytes` checkpoint was asked for, and the plan quantizes modules that transformers' loader does "
        "not replace, or not everywhere: fused experts other than those of Llama 4, subclasses of `Linear`, a module "
        "under several names, layers that share an int8 weight, or a 4-bit one where they have a bias.",
        why="They would be random or spoilt after loading, mostly without an error. Leave `--container` at `auto`, or "
        "skip them.",
    ),
    warning(
        "RQ552",
        "an expert's layer is held with a reservation",
        what="A plain `bitsandbytes` checkpoint has a Linear layer for each expert of Llama 4, and the method says "
        "what to know of it first, as RQ411 does of other modules.",
        why="The fused experts of the container `rulequant` have no such rows.",
    ),
    note(
        "RQ553",
        "vLLM does not understand the skip list",
        what="The skip list of config.json has a regular expression, which transformers needs to tell the modules "
        "apart, or to match many of them in time.",
        why="vLLM compares entries with names and their components as they stand. The module in the message would be "
        "taken for a quantized one.",
    ),
)
