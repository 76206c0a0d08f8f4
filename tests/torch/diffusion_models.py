"""Tiny random models of diffusers, saved as their own library does, with a fixed seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

__all__ = ["RULES", "TRANSFORMER", "inputs_for", "save_pipeline", "save_transformer", "save_unet"]

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


def save_pipeline(folder: Path) -> Path:
    """A Flux pipeline: a transformer, two text encoders with tokenizers, a VAE and a scheduler, in bfloat16."""
    import diffusers
    import tokenizers
    import transformers

    words = {"[UNK]": 0, "[PAD]": 1, "a": 2, "cat": 3}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=16,
    )

    torch.manual_seed(0)
    clip = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=64,
            projection_dim=64,
            max_position_embeddings=16,
        )
    )
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2, vocab_size=64)
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32,), latent_channels=16, norm_num_groups=8, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1,
    )  # fmt: skip
    transformer = diffusers.FluxTransformer2DModel(**TRANSFORMER)
    for model in (clip, t5, vae, transformer):
        for each in model.parameters():
            each.data = each.data.to(torch.bfloat16)
    for model in (clip, t5):
        model.config.dtype = torch.bfloat16
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=clip, tokenizer=tokenizer,
        text_encoder_2=t5, tokenizer_2=tokenizer, transformer=transformer,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA pipeline.\n")
    return folder


def save_unet(folder: Path) -> Path:
    """A UNet of Stable Diffusion with one block down and up, in float32."""
    import diffusers

    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=8,
    ).save_pretrained(folder)
    return folder
