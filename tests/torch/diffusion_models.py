"""Tiny random models of diffusers, saved as their own library does, with a fixed seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

__all__ = ["RULES", "TRANSFORMER", "inputs_for", "save_transformer"]

RULES: dict[str, Any] = {
    "version": 1,
    "models": ["FluxTransformer2DModel"],
    "quantizable_types": ["Linear"],
    "skip_modules": ["{x_embedder,context_embedder,time_text_embed,norm_out}", "**.norm*"],
    "schemes": {
        "nf4": {"method": "bnb_4bit", "double_quant": True},
        "fp4": {"method": "bnb_4bit", "quant_type": "fp4", "blocksize": 32},
        "int8": {"method": "bnb_int8"},
    },
    "scheme": "nf4",
}
TRANSFORMER = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "axes_dims_rope": (4, 4, 8),
}


def save_transformer(folder: Path, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Path:
    """A Flux transformer of three blocks."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(**TRANSFORMER)
    for each in (*model.parameters(), *model.buffers()):
        each.data = each.data.to(dtype)
    model.save_pretrained(folder, **options)
    return folder


def inputs_for(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """One small latent image and its prompt."""
    torch.manual_seed(1)
    return {
        "hidden_states": torch.randn(1, 16, 64).to(dtype),
        "encoder_hidden_states": torch.randn(1, 8, 64).to(dtype),
        "pooled_projections": torch.randn(1, 64).to(dtype),
        "timestep": torch.tensor([1.0]).to(dtype),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(8, 3),
    }
