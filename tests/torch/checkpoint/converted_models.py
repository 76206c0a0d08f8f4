"""Tiny random models, of whose tensors transformers makes several, or others, while it loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

__all__ = ["CONVERTED", "save_converted", "save_ernie"]

_SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONVERTED = {
    "nomic_bert": ("NomicBertForMaskedLM", "NomicBertConfig"),
    "gte": ("GteForMaskedLM", "GteConfig"),
    "jina_embeddings_v3": ("JinaEmbeddingsV3ForMaskedLM", "JinaEmbeddingsV3Config"),
}


def save_converted(name: str, folder: Path, *, bare: bool = False, **settings: Any) -> Path:
    """A tiny embedding model in bfloat16, in the layout that the Hub has it in; `bare` is without its head."""
    model_class, config_class = CONVERTED[name]
    model_class = model_class.replace("ForMaskedLM", "Model") if bare else model_class
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**_SMALL | settings)
    getattr(transformers, model_class)(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def save_ernie(folder: Path) -> Path:
    """A tiny mixture of experts, whose text and vision experts are numbered as one list in the source."""
    text = {key: value for key, value in _SMALL.items() if key != "pad_token_id"} | {
        "num_key_value_heads": 2,
        "moe_intermediate_size": [64, 32],
        "moe_num_experts": 4,
        "moe_k": 2,
        "mlp_layer_types": ["dense", "sparse"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 4]},
    }
    vision = {"depth": 1, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4}
    torch.manual_seed(0)
    config = transformers.Ernie4_5_VLMoeConfig(text_config=text, vision_config=vision, pad_token_id=0)
    transformers.Ernie4_5_VLMoeForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    return folder
