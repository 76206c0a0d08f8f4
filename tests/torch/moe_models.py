"""Tiny random mixture-of-experts models, one for each layout of fused experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_models import DECODER

__all__ = ["MOE", "build_moe", "moe_class", "moe_rules", "save_moe"]

_BASE = DECODER | {"intermediate_size": 64}

MOE: dict[str, tuple[str, str, dict[str, Any]]] = {
    # [E, 2I, H] and [E, H, I]; the source holds experts one by one under names of its own
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", _BASE | {"num_local_experts": 4}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        _BASE | {"num_experts": 4, "moe_intermediate_size": 64, "num_experts_per_tok": 2, "head_dim": 16},
    ),
    # the same, beside dense layers and shared experts
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        _BASE
        | {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "moe_intermediate_size": 64,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
        },
    ),
    # [E, in, out] with biases, gate and up interleaved
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        _BASE
        | {"num_local_experts": 4, "head_dim": 16, "num_experts_per_tok": 2}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    # [E, in, out], all experts at once by torch.bmm
    "llama4_text": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        _BASE | {"num_local_experts": 4, "head_dim": 16, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 1},
    ),
}  # fmt: skip
"""(model class, config class, settings) by model_type."""


def moe_class(name: str) -> Any:
    """The model class of an architecture."""
    return getattr(transformers, MOE[name][0])


def build_moe(name: str) -> Any:
    """A tiny random model in bfloat16 and eval mode; the weights depend on the name alone."""
    _, config_class, settings = MOE[name]
    torch.manual_seed(0)
    return moe_class(name)(getattr(transformers, config_class)(**settings)).to(torch.bfloat16).eval()


def save_moe(name: str, folder: Path) -> Path:
    """The same model as a checkpoint, in the layout that the Hub has it in."""
    build_moe(name).save_pretrained(folder)
    return folder


def moe_rules(**scheme: Any) -> dict[str, Any]:
    """Everything linear and all fused experts with one scheme, routers as they are."""
    routers = {
        "modules": ["**.router", "**.mlp.gate"],
        "optional": True,
        "reason": "routing errors are never made good",
    }
    return {
        "version": 1,
        "quantizable_types": ["Linear", "*Experts"],
        "skip_modules": [routers],
        "schemes": {"it": scheme},
        "scheme": "it",
    }
