"""Tiny random models of all architectures: what the engine lets through does not break their forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from zoo.classes import Architecture, architectures
from zoo.forward import Run, known_runs, prepare, quantized, reloaded

pytestmark = pytest.mark.slow

CHUNKS = 8
"""Parts of the zoo, so that several processes share the work."""
RUNS = known_runs()
RELOADED = (
    # decoders: Linear, Conv1D, FalconLinear, tied embeddings, fused and per-layer projections
    *("llama", "gemma2", "gpt2", "falcon", "bloom", "opt", "phi3"),
    # experts, merged from those of the source, or whose parameter is called weight
    *(
        "mistral_large4_text",
        "mixtral",
        "qwen3_moe",
        "olmoe",
        "granitemoe",
        "jetmoe",
        "phimoe",
        "minimax",
        "ernie4_5_moe",
        "qwen3_vl_moe",
    ),
    # tensors that the loader splits, joins, permutes, or takes apart; a name that it would rename twice
    *("nomic_bert", "gte", "jina_embeddings_v3", "gradium_phonon_tts", "inkling2_text", "inkling_mm_model", "radio"),
    *("minimax_m3_vl", "mistral_large4", "molmo2_text", "tipsv2", "unlimited_ocr"),
    # weights that the code reads; convolutions that the loader makes of several tensors
    *("mamba", "falcon_h1", "kimi_linear", "olmo_hybrid", "bailing_hybrid", "wavlm", "deberta", "reformer"),
    *("bert", "modernbert", "albert", "t5", "bart", "switch_transformers", "nllb-moe", "whisper"),
    *("vit", "clip", "siglip", "wav2vec2", "llava", "paligemma"),
)
"""Those that are also saved, applied and loaded again; `python scripts/architectures.py --forward` takes all."""

OWN_LENGTH = frozenset({"fastspeech2_conformer", "fastspeech2_conformer_with_hifigan"})
"""Those that put out as many frames as the durations that they compute add up to."""


def _problem(architecture: Architecture) -> str | None:
    """What goes wrong with an architecture that ran before, or None; its error is that of 4-bit weights."""
    try:
        run = prepare(architecture, *RUNS[architecture.model_type])
    except Exception as error:
        return f"does not run as it is: {type(error).__name__}: {error}; `scripts/architectures.py --forward` finds how"
    before = run.outputs
    try:
        after, _ = quantized(run)
    except Exception as error:
        return f"does not run quantized: {type(error).__name__}: {error}"
    pairs = [(a, b) for a, b in zip(before, after.outputs, strict=True) if a.isfinite().all()]
    if architecture.model_type in OWN_LENGTH:
        return None if all(b.isfinite().all() for _, b in pairs) else "puts out what is not finite when it is quantized"
    if any(a.shape != b.shape or not b.isfinite().all() for a, b in pairs):
        return "puts out something else when it is quantized"
    # A similarity alone is a single number, which may lie near zero.
    many = [(a, b) for a, b in pairs if a.numel() > 1]
    worst = max((float((a - b).norm() / a.norm().clamp(min=1e-6)) for a, b in many), default=0.0)
    return None if worst < 1 else f"has an error of {worst:.2f} when it is quantized"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_quantized_models_run(chunk: int) -> None:
    """With no rule but the types, so that every objection has to come from the engine, each model still runs."""
    chosen = [each for each in architectures() if each.model_type in RUNS][chunk::CHUNKS]
    assert len(chosen) > 40
    assert {each.model_type: problem for each in chosen if (problem := _problem(each))} == {}


@pytest.mark.parametrize("model_type", RELOADED)
def test_applied_models_run_alike(model_type: str, tmp_path: Path) -> None:
    """A checkpoint that was applied loads without a key too many or too few, and puts out what memory does."""
    (architecture,) = (each for each in architectures() if each.model_type == model_type)
    loaded = reloaded(architecture, prepare(architecture, *RUNS[model_type]), tmp_path)
    memory, plan = quantized(prepare(architecture, *RUNS[model_type]))
    assert plan.summary["quantized"] > 0
    _assert_equal(loaded, memory)


def _assert_equal(one: Run, other: Run) -> None:
    torch.testing.assert_close(one.outputs, other.outputs, rtol=0, atol=0, equal_nan=True)
