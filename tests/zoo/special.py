"""What models of which the names of the arguments do not say enough are called with, and files beside their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.special_pictures import PICTURES
from zoo.special_sounds import SOUNDS

__all__ = ["add_files", "entry_point", "special_inputs"]

Inputs = dict[str, Any]
_ENTRIES = {
    "bark": "semantic",
    "glm_image_vqmodel": "encode",
    "qwen2_5_omni": "thinker",
    "qwen3_omni_moe": "thinker",
}
"""Models without a forward pass of their own, and what of them is called instead."""


def entry_point(model: nn.Module) -> Callable[..., Any]:
    """What of a model is called."""
    name = _ENTRIES.get(_model_type(model))
    return getattr(model, name) if name else model


def special_inputs(model: nn.Module) -> Iterator[Inputs]:
    """The inputs of a model type that is known by name; none for the others."""
    make = (PICTURES | SOUNDS).get(_model_type(model))
    if make:
        yield make(model.config)


def add_files(model: nn.Module, folder: Path) -> None:
    """Put what `from_pretrained` wants of a model, and `save_pretrained` does not write, beside its checkpoint."""
    if _model_type(model) == "qwen2_5_omni":
        voice = {"bos_token": 5, "cond": torch.randn(1, 128), "ref_mel": torch.randn(1, 30, 80)}
        torch.save({"Chelsie": voice}, folder / "spk_dict.pt")


def _model_type(model: nn.Module) -> str:
    config: Any = model.config
    return str(config.model_type)
