"""Tiny random models of the architectures that people quantize, saved as checkpoints with a fixed seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

__all__ = ["ARCHITECTURES", "DECODER", "inputs_for", "save_tiny"]

DECODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BERT = {key: value for key, value in DECODER.items() if key != "num_key_value_heads"}

ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER | {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", DECODER | {"tie_word_embeddings": True}),
    "llama-biases": ("LlamaForCausalLM", "LlamaConfig", DECODER | {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER),
    "mistral": ("MistralForCausalLM", "MistralConfig", DECODER),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", DECODER | {"head_dim": 16}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", DECODER),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "vocab_size": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 256,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 256,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        },
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _BERT),
    "bert": ("BertForMaskedLM", "BertConfig", _BERT),
}
"""(model class, config class, settings) by the name that tests use."""


def save_tiny(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """Save a tiny random model of an architecture; the weights depend on nothing but the arguments."""
    model_class, config_class, settings = ARCHITECTURES[name]
    config = getattr(transformers, config_class)(**(settings | changes))
    torch.manual_seed(0)
    build: Callable[..., Any] = getattr(transformers, model_class)
    model = build(config).to(dtype)
    model.save_pretrained(folder)
    return folder


def inputs_for(model: Any) -> dict[str, torch.Tensor]:
    """A small batch of token ids, with decoder ids where the model wants them."""
    ids = torch.arange(3, 19).reshape(2, 8)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :4]
    return batch
