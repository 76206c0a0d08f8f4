"""Inventories made by hand, so that the engine is tested without torch, and rule sets from text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rulequant.diagnostics import Diagnostic, DiagnosticsError
from rulequant.inventory import Inventory, LayerIndex, ModuleInfo, TensorInfo
from rulequant.loader import Loader
from rulequant.ruleset import RuleSet

HIDDEN, HEAD, WIDE, VOCABULARY = 64, 32, 128, 256

SCHEMES = """
schemes:
  nf4: {method: bnb_4bit}
  int8: {method: bnb_int8}
scheme: nf4
"""


def weight(*shape: int, dtype: str = "bfloat16", **facts: Any) -> TensorInfo:
    """A tensor called weight."""
    return TensorInfo("weight", shape, dtype, **facts)


def linear(
    name: str, rows: int, columns: int, *, bias: bool = False, dtype: str = "bfloat16", **facts: Any
) -> ModuleInfo:
    """A Linear of [rows, columns]."""
    extra = (TensorInfo("bias", (rows,), dtype),) if bias else ()
    tensors = facts.pop("tensors", (weight(rows, columns, dtype=dtype), *extra))
    return ModuleInfo(name, facts.pop("type", "Linear"), facts.pop("kind", "linear"), tensors, **facts)


def norm(name: str, **facts: Any) -> ModuleInfo:
    """A norm, whose class no rule file quantizes."""
    return ModuleInfo(name, "LlamaRMSNorm", tensors=(weight(HIDDEN),), **facts)


def llama(layers: int = 2, *, tied: bool = False, **facts: Any) -> Inventory:
    """A llama of so many layers, 36,864 parameters in each."""
    embedding = ModuleInfo(
        "model.embed_tokens", "Embedding", "embedding", (weight(VOCABULARY, HIDDEN),), shares_output_embedding=tied
    )
    tied_to = "model.embed_tokens.weight" if tied else None
    head = (weight(VOCABULARY, HIDDEN, tied_to=tied_to),)
    modules = [
        ModuleInfo("", "LlamaForCausalLM"),
        ModuleInfo("model", "LlamaModel"),
        embedding,
        ModuleInfo("model.layers", "ModuleList"),
        *(each for index in range(layers) for each in _llama_layer(index, layers)),
        norm("model.norm"),
        ModuleInfo("model.rotary_emb", "LlamaRotaryEmbedding"),
        linear("lm_head", VOCABULARY, HIDDEN, tensors=head, output_embedding=True),
    ]
    return Inventory("llama", tuple(modules), **{"model_type": "llama", "architecture": "LlamaForCausalLM"} | facts)


def _llama_layer(index: int, length: int) -> Iterable[ModuleInfo]:
    name, layer = f"model.layers.{index}", LayerIndex(index, length)
    return [
        ModuleInfo(name, "LlamaDecoderLayer", layer=layer),
        ModuleInfo(f"{name}.self_attn", "LlamaAttention", layer=layer),
        linear(f"{name}.self_attn.q_proj", HIDDEN, HIDDEN, layer=layer),
        linear(f"{name}.self_attn.k_proj", HEAD, HIDDEN, layer=layer),
        linear(f"{name}.self_attn.v_proj", HEAD, HIDDEN, layer=layer),
        linear(f"{name}.self_attn.o_proj", HIDDEN, HIDDEN, layer=layer),
        ModuleInfo(f"{name}.mlp", "LlamaMLP", layer=layer),
        linear(f"{name}.mlp.gate_proj", WIDE, HIDDEN, layer=layer),
        linear(f"{name}.mlp.up_proj", WIDE, HIDDEN, layer=layer),
        linear(f"{name}.mlp.down_proj", HIDDEN, WIDE, layer=layer),
        ModuleInfo(f"{name}.mlp.act_fn", "SiLUActivation", layer=layer),
        norm(f"{name}.input_layernorm", layer=layer),
        norm(f"{name}.post_attention_layernorm", layer=layer),
    ]


def of(*modules: ModuleInfo, **facts: Any) -> Inventory:
    """An inventory of these modules alone."""
    return Inventory(facts.pop("model", "model"), modules, **facts)


def changed(inventory: Inventory, name: str, **changes: Any) -> Inventory:
    """The inventory with other facts about one module."""
    assert name in {each.name for each in inventory.modules}
    modules = (replace(each, **changes) if each.name == name else each for each in inventory.modules)
    return replace(inventory, modules=tuple(modules))


def write(folder: Path, **files: str) -> Path:
    """Rule files by path without suffix, each with `version: 1` before its text; the folder."""
    for stem, text in files.items():
        path = folder / f"{stem}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if text.startswith("version") else f"version: 1\n{text}", encoding="utf-8")
    return folder


def check(text: str, *, file: str = "rules.yaml") -> tuple[RuleSet | None, list[Diagnostic]]:
    """The rule set of a rule file's text, indented or not, and all that is wrong with it."""
    loader = Loader()
    loaded = loader.load_text(textwrap.dedent(text).lstrip("\n"), file=file)
    return (loader.resolve(loaded) if loaded else None), loader.diagnostics


def ruleset(text: str, *, file: str = "rules.yaml") -> RuleSet:
    """The rule set of a rule file's text; `version: 1` and two schemes, nf4 by default and int8, are added to it."""
    text = textwrap.dedent(text).strip("\n")
    preset = "" if "schemes:" in text or "extends:" in text else SCHEMES
    rules, diagnostics = check(f"{text}\nversion: 1{preset}", file=file)
    if rules is None:
        raise DiagnosticsError(diagnostics)
    return rules
