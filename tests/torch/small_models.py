"""Tiny random models in memory, real or on meta, of many kinds; what tests of one call need to run them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

__all__ = ["RULES", "SMALL", "close", "rules_with", "small", "small_inputs"]

RULES: dict[str, Any] = {
    "version": 1,
    "quantizable_types": ["Linear", "Conv1D", "FalconLinear"],
    "schemes": {"nf4": {"method": "bnb_4bit"}},
    "scheme": "nf4",
}
"""Everything linear in nf4; what may not be quantized is left to the engine."""

_IDS = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = _IDS | {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
_BERT = {key: value for key, value in _DECODER.items() if key != "num_key_value_heads"}
_MAMBA = _IDS | {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "intermediate_size": 128}
_WAV = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 32,
    "conv_dim": (32, 32), "conv_stride": (5, 4), "conv_kernel": (10, 4), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
_T5 = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 99,
    "decoder_start_token_id": 0,
}
_WHISPER = _IDS | {
    "num_mel_bins": 16, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_source_positions": 50,
    "max_target_positions": 32, "decoder_start_token_id": 1,
}  # fmt: skip
_VIT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip

SMALL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _DECODER | {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", _DECODER | {"tie_word_embeddings": True}),
    "llama-score": ("LlamaForSequenceClassification", "LlamaConfig", _DECODER),
    "llama-qa": ("LlamaForQuestionAnswering", "LlamaConfig", _DECODER),
    "bert": ("BertForMaskedLM", "BertConfig", _BERT),
    "bert-base": ("BertModel", "BertConfig", _BERT),
    "bert-classifier": ("BertForSequenceClassification", "BertConfig", _BERT),
    "bert-qa": ("BertForQuestionAnswering", "BertConfig", _BERT),
    "roberta-classifier": ("RobertaForSequenceClassification", "RobertaConfig", _BERT),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _IDS | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "opt": ("OPTForCausalLM", "OPTConfig", _BERT | {"ffn_dim": 96, "word_embed_proj_dim": 32}),
    "bloom": ("BloomForCausalLM", "BloomConfig", _IDS | {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconForCausalLM", "FalconConfig", _DECODER),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", _WHISPER),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _DECODER | {"head_dim": 16, "tie_word_embeddings": False}),
    "mamba": ("MambaForCausalLM", "MambaConfig", _MAMBA),
    "falcon_mamba": ("FalconMambaForCausalLM", "FalconMambaConfig", _MAMBA),
    "jamba": ("JambaForCausalLM", "JambaConfig", _DECODER | {
        "mamba_d_state": 8, "mamba_dt_rank": 8, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1,
    }),
    "nllb_moe": ("NllbMoeForConditionalGeneration", "NllbMoeConfig", _IDS | {
        "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_experts": 2, "encoder_sparse_step": 2,
        "decoder_sparse_step": 2, "expert_capacity": 64,
    }),
    "wavlm": ("WavLMModel", "WavLMConfig", _WAV),
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", _WAV),
    "vit-classifier": ("ViTForImageClassification", "ViTConfig", _VIT),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", _DECODER | {
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    }),
}  # fmt: skip
"""(model class, config class, settings) by name."""


def small(name: str, *, meta: bool = False, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A tiny model in eval mode; its weights depend on nothing but the arguments."""
    model_class, config_class, settings = SMALL[name]
    config = getattr(transformers, config_class)(**(settings | changes))
    torch.manual_seed(0)
    with torch.device("meta" if meta else "cpu"):
        model = getattr(transformers, model_class)(config)
    return model.to(dtype).eval()


def small_inputs(model: Any) -> dict[str, Tensor]:
    """A small batch of what the model takes."""
    generator = torch.Generator().manual_seed(1)
    kind = model.main_input_name
    if kind == "pixel_values":
        return {kind: torch.randn(2, 3, 32, 32, generator=generator, dtype=model.dtype)}
    if kind == "input_values":
        return {kind: torch.randn(2, 400, generator=generator, dtype=model.dtype)}
    if kind == "input_features":
        return {
            kind: torch.randn(2, 16, 100, generator=generator).to(model.dtype),
            "decoder_input_ids": torch.arange(8).reshape(2, 4),
        }
    ids = torch.randint(3, 99, (2, 8), generator=generator)
    return {kind: ids, "decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {kind: ids}


def close(model: nn.Module, before: Tensor, inputs: Mapping[str, Tensor]) -> float:
    """The relative error of a model's first output against what it was."""
    with torch.no_grad():
        after = model(**inputs)[0]
    assert after.isfinite().all()
    return float((after.float() - before.float()).norm() / before.float().norm())


def rules_with(**changes: Any) -> dict[str, Any]:
    """`RULES` with some keys replaced."""
    return RULES | changes
