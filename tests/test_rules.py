"""The bundled rule files: their form, and what each makes of every architecture of its family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rulequant.bundled import PREFIX, bundled_names, bundled_path
from rulequant.inventory import Inventory
from rulequant.loader import check_rules, load_rules
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.selection import select
from rulequant.torch.inspect import inspect_model

MODELINE = "# yaml-language-server: $schema=../schemas/ruleset.v1.schema.json"

_QWEN2_0_5B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}

_QWEN4_EXP = {
    "indexer_n_heads": 16,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 1024,
    "indexer_compress_ratio": 4,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "aya_vision": {
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 364,
            "patch_size": 14,
        }
    },
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "gemma4": {
        "text_config": {"enable_moe_block": True, "num_experts": 32, "top_k_experts": 8, "moe_intermediate_size": 704},
        "vision_config": {},
        "audio_config": {},
    },
    "gemma4_unified": {"vision_config": {}, "audio_config": {}},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 64},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "BeitForSemanticSegmentation": {"out_indices": [3, 5, 7, 11]},
    "T5GemmaEncoderModel": {"is_encoder_decoder": False},
    "nemotron_h": {"moe_latent_size": 1024, "n_routed_experts": 64},
    "qwen3_omni_moe": {
        "talker_config": {"spatial_merge_size": 2, "text_config": {"shared_expert_intermediate_size": 768}}
    },
    "qwen4_exp": {"text_config": _QWEN4_EXP},
    "qwen4_exp_text": _QWEN4_EXP,
    "wav2vec2-bert": {"vocab_size": 32},
    "wav2vec2-conformer": {"vocab_size": 32},
}
"""What default configs lack, by model type or architecture: what a class asks for, or what a skip is about."""

UNBUILT = frozenset({"gemma3n"})
"""Model types whose classes need timm, which is no requirement of the tests; their text models are planned."""

BESIDE = {
    "clip": ("CLIPTextModelWithProjection", "CLIPVisionModelWithProjection"),
    "metaclip_2_text_model": ("MetaClip2TextModel",),
    "metaclip_2_vision_model": ("MetaClip2VisionModel",),
    "siglip2_text_model": ("Siglip2TextModel",),
    "siglip_text_model": ("SiglipTextModel",),
    "gpt2": ("GPT2DoubleHeadsModel",),
}
"""Architectures that no auto class knows, by model type."""

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
    "llava-onevision-0.5b": Sibling(
        "llava", "LlavaOnevisionForConditionalGeneration", {"text_config": _QWEN2_0_5B}, quantized=24 * 7
    ),
    "internvl3-1b": Sibling(
        "internvl", "InternVLForConditionalGeneration", {"text_config": _QWEN2_0_5B}, quantized=24 * 7
    ),
    "qwen2-vl-2b": Sibling(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {
                "hidden_size": 1536,
                "intermediate_size": 8960,
                "num_hidden_layers": 28,
                "num_attention_heads": 12,
                "num_key_value_heads": 2,
            },
            "vision_config": {"hidden_size": 1536},
        },
        quantized=28 * 7,
    ),
    "qwen3-vl-2b": Sibling(
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
            },
            "vision_config": {
                "depth": 24,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "out_hidden_size": 2048,
            },
        },
        quantized=28 * 7,
    ),
    "smolvlm-256m": Sibling(
        "idefics3",
        "SmolVLMForConditionalGeneration",
        {
            "scale_factor": 4,
            "text_config": {
                "model_type": "llama",
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
            },
            "vision_config": {
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "image_size": 512,
                "patch_size": 16,
            },
        },
        quantized=30 * 7,
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
    "albert-base": Sibling(
        "albert",
        "AlbertModel",
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        quantized=6,
    ),
    "deberta-base": Sibling(
        "deberta",
        "DebertaModel",
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 512},
        quantized=12 * 5,
    ),
    "vit-tiny": Sibling(
        "vit",
        "ViTForMaskedImageModeling",
        {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3},
        quantized=12 * 6,
    ),
    "nemotron-h-8b": Sibling(
        "nemotron_h",
        "NemotronHForCausalLM",
        {"hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"},
        quantized=24 * 2 + 24 * 2,
    ),
    "deepseek-v2-lite": Sibling(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        {
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
        },
        quantized=27 * 3 + 3 + 26 * 4,
    ),
    "mamba-2.8b": Sibling(
        "mamba", "MambaForCausalLM", {"hidden_size": 2560, "num_hidden_layers": 64}, quantized=64 * 2
    ),
}

FAMILIES = tuple(name for name in bundled_names() if load_rules(name).models)
BASES = tuple(name for name in bundled_names() if name not in FAMILIES)


@dataclass(frozen=True)
class Built:
    """What the tests need of a model once it is gone."""

    inventory: Inventory
    outputs: frozenset[str]
    """All names of the output embeddings."""
    base: str | None
    """The name of the base model inside; None where the model is its own."""


@dataclass(frozen=True)
class Family:
    """A rule file, and each architecture and published size of its model types by the name it has here."""

    name: str
    built: dict[str, Built]
    plans: dict[str, Plan]


def _architectures(model_type: str) -> Iterator[str]:
    """The model classes that transformers' auto classes give for a model type, each once."""
    mappings = (
        vars(modeling_auto)[name]
        for name in sorted(vars(modeling_auto))
        if name.endswith("_NAMES") and "BACKBONE" not in name  # parts of detectors, with settings of their own
    )
    known = (mapping[model_type] for mapping in mappings if model_type in mapping)
    names = (name for each in known for name in ([each] if isinstance(each, str) else each))
    for name in dict.fromkeys((*names, *BESIDE.get(model_type, ()))):
        model_class = getattr(transformers, name, None)
        # A type of several modalities is given the text model too, which has a config and a type of its own.
        if getattr(model_class, "config_class", None) is CONFIG_MAPPING[model_type]:
            yield name


def _build(architecture: str, config: dict[str, Any]) -> Built:
    """A model on meta, by the defaults of its config where nothing is said."""
    model_class = getattr(transformers, architecture)
    with torch.device("meta"):
        model = model_class(model_class.config_class(**config))
    output = model.get_output_embeddings()
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is output]
    return Built(
        inventory=inspect_model(model),
        outputs=frozenset(names) if output is not None else frozenset(),
        base=model.base_model_prefix if model.base_model is not model else None,
    )


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    """Every architecture of a family's model types by its default config, and the published sizes, planned."""
    rules = load_rules(request.param)
    built = {
        f"{model_type} {architecture}": _build(architecture, CONFIGS.get(architecture, CONFIGS.get(model_type, {})))
        for model_type in rules.models
        if model_type not in UNBUILT
        for architecture in _architectures(model_type)
    }
    built |= {
        label: _build(each.architecture, each.config) for label, each in SIBLINGS.items() if each.rules == request.param
    }
    return Family(
        request.param, built, {label: make_plan(rules, each.inventory, None) for label, each in built.items()}
    )


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
    assert floor > 1 / 3  # the vision tower of a small model is larger than its language model


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


def test_builds_all_models(family: Family) -> None:
    """Each model type that a file is for is planned below in one architecture at least."""
    models = set(load_rules(family.name).models)
    assert {each.inventory.model_type for each in family.built.values()} == models - UNBUILT


def test_plans_without_findings(family: Family) -> None:
    """A family's file plans each of its architectures and sizes without a finding, its floor included."""
    findings = {
        label: [each.concise() for each in plan.diagnostics if each.code != "RQ411"]  # odd sizes of default configs
        for label, plan in family.plans.items()
    }
    assert {label: each for label, each in findings.items() if each} == {}
    assert all(plan.summary["quantized"] for plan in family.plans.values())


def test_skips_select_something(family: Family) -> None:
    """No pattern of the file itself is dead: in some architecture or size of the family it selects a module."""
    rules = load_rules(family.name)
    uses = [
        use
        for each in family.built.values()
        for use in select(rules, each.inventory).uses
        if use.entry.location.file == f"{PREFIX}{family.name}"
    ]
    alive = {use.glob.text for use in uses if use.weighty}
    assert {use.glob.text for use in uses} <= alive


def test_heads_stay(family: Family) -> None:
    """Output embeddings stay, and so does all else outside the base model."""
    for label, built in family.built.items():
        quantized = {each.name for each in family.plans[label].quantized}
        assert quantized.isdisjoint(built.outputs), label
        if built.base:
            assert {name for name in quantized if not name.startswith(f"{built.base}.")} == set(), label


def test_published_sizes(family: Family) -> None:
    """Exactly the expected layers of the published sizes are quantized."""
    expected = {label: each.quantized for label, each in SIBLINGS.items() if each.rules == family.name}
    assert {label: family.plans[label].summary["quantized"] for label in expected} == expected
