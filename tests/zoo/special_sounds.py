"""What models of sound, text and series are called with of which the names of the arguments do not say enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["SOUNDS"]

Inputs = dict[str, Any]


def _ids(length: int = 12, top: int = 50) -> Tensor:
    return torch.randint(3, top, (1, length))


def _text(config: Any) -> Inputs:
    del config
    return {"input_ids": _ids()}


def _long_sound(config: Any) -> Inputs:
    del config
    return {"input_values": torch.randn(1, 3840)}


def _codes(config: Any) -> Inputs:
    return {"input_ids": torch.randint(3, 50, (1, 12, config.num_codebooks + 1))}


def _spectrum(config: Any) -> Inputs:
    del config
    return {"input_features": torch.randn(1, 48, 128), "attention_mask": torch.ones(1, 48, dtype=torch.bool)}


def _stacked_bins(config: Any) -> Inputs:
    return {"input_features": torch.randn(1, 48, 4 * config.num_mel_bins)}


def _clap(config: Any) -> Inputs:
    return {"input_ids": _ids(), "input_features": torch.randn(1, 1, 100, config.audio_config.num_mel_bins)}


def _clvp(config: Any) -> Inputs:
    return {"input_ids": _ids(), "input_features": torch.randn(1, config.decoder_config.feature_size, 100)}


def _decisions(config: Any) -> Inputs:
    return {
        "states": torch.randn(1, 8, config.state_dim),
        "actions": torch.randn(1, 8, config.act_dim),
        "rewards": torch.randn(1, 8, 1),
        "returns_to_go": torch.randn(1, 8, 1),
        "timesteps": torch.arange(8)[None],
        "attention_mask": torch.ones(1, 8, dtype=torch.long),
    }


def _stacked_frames(config: Any) -> Inputs:
    mask = torch.ones(1, 24, dtype=torch.bool)
    return {"input_features": torch.randn(1, 24, config.input_size), "input_features_mask": mask}


def _mel(config: Any) -> Inputs:
    mask = torch.zeros(1, 64, dtype=torch.bool)
    return {"audio_mel": torch.randn(1, 64, config.input_feat_size), "audio_mel_mask": mask}


def _questions(config: Any) -> Inputs:
    del config
    return {
        "input_ids": _ids(),
        "marks": torch.tensor([[6, 12]]),
        "num_options": torch.tensor([[2, 3]]),
        "question_type_ids": torch.tensor([[0, 1]]),
    }


def _drafts(config: Any) -> Inputs:
    return {
        "noise_embeds": torch.randn(1, 4, config.hidden_size),
        "context_hidden_states": torch.randn(1, 12, config.hidden_size * len(config.target_layer_ids)),
    }


def _sound_twice(config: Any) -> Inputs:
    bins = config.semantic_model_config.feature_projection_input_dim
    return {"input_values": torch.randn(1, 1, 3200), "input_features": torch.randn(1, 10, bins)}


def _sound_and_text(config: Any) -> Inputs:
    del config
    return {"input_ids": _ids(), "input_values": torch.randn(1, 1, 7680)}


def _padded_series(config: Any) -> Inputs:
    length = config.context_length
    padding = torch.zeros(1, length, dtype=torch.long)
    return {
        "past_values": torch.randn(1, length),
        "past_values_padding": padding,
        "freq": torch.zeros(1, 1, dtype=torch.long),
    }


def _dated_series(config: Any) -> Inputs:
    """A past as long as the furthest lag, and what is known of the future."""
    past, future = config.context_length + max(config.lags_sequence), config.prediction_length
    features = config.num_time_features
    return {
        "past_values": torch.randn(1, past).abs(),
        "past_time_features": torch.randn(1, past, features),
        "past_observed_mask": torch.ones(1, past),
        "future_values": torch.randn(1, future).abs(),
        "future_time_features": torch.randn(1, future, features),
    }


def _frames_of_latents(config: Any) -> Inputs:
    return {"hidden_states": torch.randn(1, config.hidden_size, 8)}


def _waves_as_states(config: Any) -> Inputs:
    del config
    return {"hidden_states": torch.randn(1, 1, 6400)}


def _described_music(config: Any) -> Inputs:
    """Of each code book as many codes."""
    return {"input_ids": _ids(), "decoder_input_ids": torch.randint(3, 50, (config.decoder.num_codebooks, 6))}


def _timed_text(config: Any) -> Inputs:
    return {"input_ids": _ids(), "t_cond": torch.randn(1, 1, config.hidden_size)}


def _masked_frames(config: Any) -> Inputs:
    frames = torch.randn(1, 96, config.asr_config.num_mel_bins)
    return {"input_features": frames, "input_features_mask": torch.ones(1, 96, dtype=torch.bool)}


def _sound(config: Any) -> Inputs:
    del config
    return {"input_values": torch.randn(1, 1, 3200)}


def _one_language(config: Any) -> Inputs:
    del config
    return {"input_ids": _ids(), "lang_ids": torch.zeros(1, dtype=torch.long)}


SOUNDS: dict[str, Callable[[Any], Inputs]] = {
    "autoformer": _dated_series,
    "bark": _text,
    "clap": _clap,
    "clvp": _clvp,
    "decision_transformer": _decisions,
    "fun_asr_nano_encoder": _stacked_frames,
    "gemma3n_audio": _mel,
    "gemma4_audio": _spectrum,
    "granite_speech5_ctc": lambda config: _stacked_bins(config.encoder_config),
    "granite_speech5_encoder": _stacked_bins,
    "informer": _dated_series,
    "jev": _questions,
    "kyutai_speech_to_text": _codes,
    "muse_glimmer_assistant": _drafts,
    "muse_spark_audio": _long_sound,
    "musicgen": _described_music,
    "musicgen_melody": _described_music,
    "nemotron3_5_transcribe_audio": _masked_frames,
    "neucodec": _sound_twice,
    "pe_audio": _sound_and_text,
    "qwen2_5_omni": _text,
    "qwen3_omni_moe": _text,
    "time_series_transformer": _dated_series,
    "timesfm": _padded_series,
    "vibevoice_acoustic_tokenizer_decoder": _frames_of_latents,
    "vibevoice_acoustic_tokenizer_encoder": _waves_as_states,
    "voxtral_realtime_text": _timed_text,
    "xcodec": _sound,
    "xcodec2": _sound_twice,
    "xmod": _one_language,
}
