"""Weights that transformers measures while it initializes a model, and the layers that are kept for it."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from small_models import rules_with, small
from torch import nn

import rulequant.torch
from rulequant.torch.initial_readers import initial_reads

WHISPER: dict[str, Any] = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 8,
    "max_source_positions": 16, "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def whisper() -> Any:
    with torch.device("meta"):
        return transformers.WhisperModel(transformers.WhisperConfig(**WHISPER))


def test_measured_weights_are_found() -> None:
    """Whisper draws the sinusoids anew by the shape of its encoder's positions, before it looks what was loaded."""
    model = whisper()
    assert [(each is model.encoder.embed_positions, reader) for each, reader in initial_reads(model)] == [
        (True, "WhisperPreTrainedModel._init_weights")
    ]


def test_arguments_of_initializers_are_not() -> None:
    """Most models only hand weights to initializers, which leave what was loaded alone."""
    assert not list(initial_reads(small("wav2vec2", meta=True)))
    assert not list(initial_reads(small("llama", meta=True)))
    assert not list(initial_reads(nn.Linear(2, 2)))


def test_the_plan_keeps_them() -> None:
    """A listed embedding that is measured stays with the reason; its neighbours do not."""
    found = rulequant.torch.plan(whisper(), rules_with(quantizable_types=["Embedding", "Conv1d"])).by_name
    kept = found["encoder.embed_positions"]
    assert (kept.reason, kept.detail) == (
        "weight_read_directly",
        "WhisperPreTrainedModel._init_weights reads its weight directly",
    )
    assert found["decoder.embed_tokens"].quantize
    assert found["encoder.conv1"].quantize
