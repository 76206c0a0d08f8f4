"""Tiny random embedding models, of whose projections transformers makes several while it loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

__all__ = ["CONVERTED", "save_converted"]

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


def save_converted(name: str, folder: Path, **settings: Any) -> Path:
    """A tiny embedding model in bfloat16, in the layout that the Hub has it in."""
    model_class, config_class = CONVERTED[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**_SMALL | settings)
    getattr(transformers, model_class)(config).to(torch.bfloat16).save_pretrained(folder)
    return folder
