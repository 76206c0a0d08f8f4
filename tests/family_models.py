"""The models that the bundled rule files are planned on, beside what default configs give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
