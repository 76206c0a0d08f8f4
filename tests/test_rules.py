"""The bundled rule files: their form, and what each makes of every architecture of its family."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rulequant.bundled import bundled_names, bundled_path
from rulequant.inventory import Inventory
from rulequant.loader import check_rules, load_rules
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.selection import select
from rulequant.torch.inspect import inspect_model

MODELINE = "# yaml-language-server: $schema=../schemas/ruleset.v1.schema.json"
BASES = ("causal_lm", "encoder")

_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
_DECODER = ("Model", "ForCausalLM", *_CLASSIFIERS)
_DECODER_QA = (*_DECODER, "ForQuestionAnswering")
_ENCODER = ("Model", "ForMaskedLM", "ForMultipleChoice", *_CLASSIFIERS, "ForQuestionAnswering")


def _named(prefix: str, *suffixes: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{suffix}" for suffix in suffixes)


ARCHITECTURES = {
    "llama": _named("Llama", *_DECODER_QA),
    "mistral": _named("Mistral", *_DECODER_QA),
    "qwen2": _named("Qwen2", *_DECODER_QA),
    "qwen3": _named("Qwen3", *_DECODER_QA),
    "gemma2": _named("Gemma2", *_DECODER),
    "gemma3": _named(
        "Gemma3",
        *("Model", "ForConditionalGeneration", "ForSequenceClassification"),
        *("TextModel", "ForCausalLM", "TextForSequenceClassification"),
    ),
    "phi3": _named("Phi3", *_DECODER),
    "gpt2": _named("GPT2", "Model", "LMHeadModel", "DoubleHeadsModel", *_CLASSIFIERS, "ForQuestionAnswering"),
    "opt": _named("OPT", "Model", "ForCausalLM", "ForSequenceClassification", "ForQuestionAnswering"),
    "bloom": _named("Bloom", *_DECODER_QA),
    "falcon": _named("Falcon", *_DECODER_QA),
    "gpt_neox": _named("GPTNeoX", *_DECODER_QA),
    "t5": _named("T5", "Model", "EncoderModel", "ForConditionalGeneration", *_CLASSIFIERS, "ForQuestionAnswering"),
    "bert": _named("Bert", *_ENCODER, "ForPreTraining", "ForNextSentencePrediction", "LMHeadModel"),
    "roberta": _named("Roberta", *_ENCODER, "ForCausalLM"),
    "vit": _named("ViT", "Model", "ForImageClassification", "ForMaskedImageModeling"),
    "clip": _named(
        "CLIP",
        *("Model", "TextModel", "TextModelWithProjection"),
        *("VisionModel", "VisionModelWithProjection", "ForImageClassification"),
    ),
    "whisper": _named("Whisper", "Model", "ForConditionalGeneration", "ForCausalLM", "ForAudioClassification"),
    "mamba": _named("Mamba", "Model", "ForCausalLM"),
    "mixtral": _named("Mixtral", *_DECODER_QA),
    "qwen2_moe": _named("Qwen2Moe", *_DECODER_QA),
    "qwen3_moe": _named("Qwen3Moe", *_DECODER_QA),
    "qwen3_next": _named("Qwen3Next", *_DECODER_QA),
    "deepseek_v2": _named("DeepseekV2", "Model", "ForCausalLM", "ForSequenceClassification"),
    "deepseek_v3": _named("DeepseekV3", "Model", "ForCausalLM", *_CLASSIFIERS),
    "gpt_oss": _named("GptOss", "Model", "ForCausalLM", *_CLASSIFIERS),
    "llama4": _named("Llama4", "ForConditionalGeneration", "ForCausalLM", "TextModel"),
}
"""The architectures of each file; each is planned with the default values of its config."""

_SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
    "vision_use_head": False,
}
_GEMMA3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}


@dataclass(frozen=True)
class Sibling:
    """A published model whose sizes differ in what matters to a rule file from the default config's."""

    rules: str
    architecture: str
    config: dict[str, Any]
    quantized: int
    """Number of layers that are to be quantized."""


SIBLINGS = {
    "smollm-135m": Sibling(
        "llama",
        "LlamaForCausalLM",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
        quantized=30 * 7,
    ),
    "gemma-3-4b": Sibling(
        "gemma3",
        "Gemma3ForConditionalGeneration",
        {"text_config": _GEMMA3_4B, "vision_config": _SIGLIP_SO400M},
        quantized=34 * 7,
    ),
    "opt-350m": Sibling(
        "opt",
        "OPTForCausalLM",
        {
            "hidden_size": 1024,
            "ffn_dim": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "word_embed_proj_dim": 512,
            "do_layer_norm_before": False,
        },
        quantized=24 * 6,
    ),
    "t5-11b-encoder": Sibling(
        "t5",
        "T5EncoderModel",
        {"d_model": 1024, "d_ff": 65536, "num_heads": 128, "d_kv": 128, "num_layers": 24},
        quantized=24 * 5,
    ),
    "flan-t5-small": Sibling(
        "t5",
        "T5ForConditionalGeneration",
        {
            "d_model": 512,
            "d_ff": 1024,
            "num_heads": 6,
            "d_kv": 64,
            "num_layers": 8,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
        quantized=8 * 6 + 8 * 10,
    ),
    "bert-tiny": Sibling(
        "bert",
        "BertModel",
        {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
        quantized=2 * 6,
    ),
    "all-MiniLM-L6-v2": Sibling(
        "bert",
        "BertModel",
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
        quantized=6 * 6,
    ),
    "vit-tiny": Sibling(
        "vit",
        "ViTForMaskedImageModeling",
        {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3},
        quantized=12 * 6,
    ),
    "mamba-2.8b": Sibling(
        "mamba", "MambaForCausalLM", {"hidden_size": 2560, "num_hidden_layers": 64}, quantized=64 * 2
    ),
}

FAMILIES = tuple(name for name in bundled_names() if name not in BASES)
ROWS = [
    pytest.param(rules, architecture, id=f"{rules}-{architecture}")
    for rules, architectures in ARCHITECTURES.items()
    for architecture in architectures
]


@dataclass(frozen=True)
class Built:
    """What the tests need of a model once it is gone."""

    inventory: Inventory
    outputs: frozenset[str]
    """All names of the output embeddings."""
    base: str | None
    """The name of the base model inside; None where the model is its own."""


@cache
def _build(label: str) -> Built:
    """A sibling, or an architecture by the defaults of its config, on meta."""
    sibling = SIBLINGS.get(label)
    model_class = getattr(transformers, sibling.architecture if sibling else label)
    with torch.device("meta"):
        model = model_class(model_class.config_class(**(sibling.config if sibling else {})))
    output = model.get_output_embeddings()
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is output]
    return Built(
        inventory=inspect_model(model),
        outputs=frozenset(names) if output is not None else frozenset(),
        base=model.base_model_prefix if model.base_model is not model else None,
    )


@cache
def _plan(rules: str, label: str) -> Plan:
    return make_plan(load_rules(rules), _build(label).inventory)


def _text(name: str) -> str:
    path = bundled_path(name)
    assert path is not None
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", bundled_names())
def test_loads_without_findings(name: str) -> None:
    """A bundled file and all that it extends give neither errors nor warnings."""
    rules, diagnostics = check_rules(name)
    assert diagnostics == []
    assert rules is not None
    assert rules.name == name


@pytest.mark.parametrize("name", bundled_names())
def test_says_what_it_is(name: str) -> None:
    """A bundled file has the editor's modeline, a comment of its own, and one sentence of description."""
    first, *lines = _text(name).splitlines()
    assert first == MODELINE
    assert any("# " in line for line in lines)
    description = load_rules(name).description
    assert description is not None
    assert description.endswith(".")
    assert ". " not in description
    assert f"\nname: {name}\n" in _text(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_has_floor(name: str) -> None:
    """A family file says which share of the layers it quantizes at least, in its own lines."""
    assert "\nexpect:\n" in _text(name)
    floor = load_rules(name).expect.min_quantized_layers
    assert floor is not None
    assert floor > 0.5


@pytest.mark.parametrize("name", BASES)
def test_base_is_for_any_model(name: str) -> None:
    """A base sets neither a family nor a floor, which whoever extends it would inherit."""
    rules = load_rules(name)
    assert rules.models == ()
    assert rules.expect.model_fields_set == set()


def test_model_types_are_real_and_claimed_once() -> None:
    """No two files are for the same model type, and transformers knows all of them."""
    claimed = [model_type for name in FAMILIES for model_type in load_rules(name).models]
    assert len(set(claimed)) == len(claimed)
    assert set(claimed) <= set(CONFIG_MAPPING)


@pytest.mark.parametrize("name", bundled_names())
def test_skips_have_reasons(name: str) -> None:
    """Every skip of a bundled file says why, for `plan` and `why` to print."""
    assert [each.location for each in load_rules(name).skips if not each.selector.reason] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_skips_select_something(name: str) -> None:
    """No bundled pattern is dead: in some architecture or size of the family it selects a module."""
    rules = load_rules(name)
    siblings = (label for label, each in SIBLINGS.items() if each.rules == name)
    uses = [use for label in (*ARCHITECTURES[name], *siblings) for use in select(rules, _build(label).inventory).uses]
    alive = {use.glob.text for use in uses if use.weighty}
    assert {use.glob.text for use in uses} <= alive


@pytest.mark.parametrize("name", FAMILIES)
def test_table_covers_models(name: str) -> None:
    """Each model type that a file is for is planned below, and no other."""
    planned = {_build(each).inventory.model_type for each in ARCHITECTURES[name]}
    assert planned == set(load_rules(name).models)


@pytest.mark.parametrize(("rules", "architecture"), ROWS)
def test_plans_architecture(rules: str, architecture: str) -> None:
    """A family's file plans each of its architectures without a finding, its floor included."""
    plan = _plan(rules, architecture)
    assert [each.concise() for each in plan.diagnostics if each.code != "RQ411"] == []  # odd sizes of default configs
    assert plan.summary["quantized"] > 0


@pytest.mark.parametrize(("rules", "architecture"), ROWS)
def test_heads_stay(rules: str, architecture: str) -> None:
    """Output embeddings stay, and so does all else outside the base model."""
    built = _build(architecture)
    quantized = {each.name for each in _plan(rules, architecture).quantized}
    assert quantized.isdisjoint(built.outputs)
    if built.base:
        assert {name for name in quantized if not name.startswith(f"{built.base}.")} == set()


@pytest.mark.parametrize("label", SIBLINGS)
def test_plans_published_sizes(label: str) -> None:
    """The floors hold for the family's odd sizes too, and exactly the expected layers are quantized."""
    sibling = SIBLINGS[label]
    plan = _plan(sibling.rules, label)
    assert [each.concise() for each in plan.diagnostics if each.code != "RQ411"] == []  # odd sizes of default configs
    assert plan.summary["quantized"] == sibling.quantized
