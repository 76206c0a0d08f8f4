"""Tiny random models: the default config of an architecture with every size cut down, for a quick forward pass."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.classes import Architecture
from zoo.cuts import CUTS, VOCABULARY, Cut, Settings, smaller

__all__ = ["tiny_model"]

MAX_PARAMETERS = 40_000_000
SETTINGS: dict[str, Settings] = json.loads(Path(__file__).with_name("settings.json").read_text(encoding="utf-8"))
"""{model_type: settings} of configs, those of a model's parts too, that need more than to be cut.

They lack what their model needs, or ask for sizes to fit that no rule here knows of, or for timm, in whose place a
backbone of transformers goes.
"""
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer")
_RECOMPUTED = {
    *("model_type", "transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"),
    *("out_features", "out_indices", "stage_names", "_out_features", "_out_indices"),
}


def tiny_model(architecture: Architecture, cut: str) -> nn.Module:
    """A model in eval mode and float32, whose weights depend on nothing else.

    Whatever a class says of sizes that it was not made for is raised as it is.
    """
    config = architecture.config_class()
    settings = _settings(config(), CUTS[cut])
    with torch.device("meta"):
        model = architecture.load_class()(config(**settings))
    size = sum(each.numel() for each in model.parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{size:,} parameters are not tiny")
    torch.manual_seed(0)
    real: nn.Module = architecture.load_class()(config(**settings))
    _fill_in(real)
    return real.float().eval()


def _fill_in(model: nn.Module) -> None:
    """Some classes leave parameters as the memory was; those of which that can be seen are made random."""
    for each in model.parameters():
        if each.numel() and not float(each.detach().abs().max()) < 100:  # NaN is not less either
            nn.init.normal_(each, std=0.02)


def _settings(config: Any, cut: Cut) -> Settings:
    values = {key: value for key, value in config.to_dict().items() if key not in _RECOMPUTED}
    layers = _layers(values) | _outputs(config, values)
    tokens = iter(range(min(VOCABULARY, max(values.get("vocab_size") or VOCABULARY, 50)) - 1, 0, -1))
    settings: Settings = {}
    for key, value in values.items():
        part = vars(config).get(key)
        if hasattr(part, "to_dict"):
            settings[key] = _settings(part, cut) | {"model_type": part.model_type}
        else:
            settings[key] = layers[key] if key in layers else smaller(key, value, values, cut, tokens)
    settings |= layers
    for fit in _FITS:
        fit(settings, values)
    return _merged(settings, SETTINGS.get(config.model_type, {}))


def _merged(settings: Settings, more: Settings) -> Settings:
    """The settings with those of a table, which name the parts of a part that differ, or another one for it."""
    for key, value in more.items():
        old = settings.get(key)
        parts = isinstance(old, dict) and isinstance(value, dict) and "model_type" not in value
        settings[key] = _merged(old, value) if parts else copy.deepcopy(value)
    return settings


def _layers(values: Settings) -> Settings:
    """What is said layer by layer, for as many layers as there are kinds, and at least two."""
    number = next((values[key] for key in _DEPTHS if isinstance(values.get(key), int)), 0)
    lists = {
        key: value
        for key, value in values.items()
        if isinstance(value, list) and len(value) == number > 2 and all(isinstance(x, str | int | float) for x in value)
    }
    special = {int(index): value for index, value in (values.get("per_layer_config") or {}).items()}
    if not lists and not special:
        return {}
    kinds = list(zip(*lists.values(), (json.dumps(special.get(each)) for each in range(number)), strict=True))
    chosen = sorted({kinds.index(each) for each in kinds})[:6]
    chosen = chosen if len(chosen) > 1 else [0, 1]
    found: Settings = {key: [value[index] for index in chosen] for key, value in lists.items()}
    if special:
        found["per_layer_config"] = {str(new): special[old] for new, old in enumerate(chosen) if old in special}
    return found | {key: len(chosen) for key in _DEPTHS if isinstance(values.get(key), int)}


def _outputs(config: Any, values: Settings) -> Settings:
    """Of a backbone as many of its outputs as before: the last layers, or the same stages."""
    indices = list(vars(config).get("_out_indices") or ())
    if len(indices) < 2:
        return {}
    depth = next((key for key in _DEPTHS if isinstance(values.get(key), int)), None)
    if depth is None or "depths" in values:
        return {"out_indices": indices}
    return {"out_indices": list(range(1, len(indices) + 1)), depth: len(indices)}


def _fit_sections(settings: Settings, values: Settings) -> None:
    """The parts of a head that rotate by time, height and width have to add up to half of it."""
    del values
    for key in ("rope_parameters", "rope_scaling"):
        rope = settings.get(key)
        if isinstance(rope, dict) and "mrope_section" in rope:
            width = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
            half = int(width * rope.get("partial_rotary_factor", settings.get("partial_rotary_factor") or 1)) // 2
            settings[key] = rope | {"mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}


def _fit_latent_heads(settings: Settings, values: Settings) -> None:
    """Heads of latent attention have a part that rotates and one that does not."""
    rotates, other = values.get("qk_rope_head_dim"), values.get("qk_nope_head_dim")
    if rotates and other and values.get("qk_head_dim") == rotates + other and values.get("head_dim") == rotates:
        settings["head_dim"] = settings["qk_rope_head_dim"]
        settings["qk_head_dim"] = settings["qk_nope_head_dim"] + settings["qk_rope_head_dim"]


def _fit_mamba_heads(settings: Settings, values: Settings) -> None:
    """The heads of a state-space layer make up its inner size."""
    heads, width = values.get("mamba_n_heads"), values.get("mamba_d_head")
    if heads and width and heads * width == values["mamba_expand"] * values["hidden_size"]:
        settings |= {"mamba_n_heads": 4, "mamba_d_head": settings["mamba_expand"] * settings["hidden_size"] // 4}


def _fit_stages(settings: Settings, values: Settings) -> None:
    """There are as many stages as depths are listed, however small."""
    if "num_stages" in values and isinstance(values.get("depths"), list):
        settings["num_stages"] = len(values["depths"])


Fit = Callable[[Settings, Settings], None]
_FITS: tuple[Fit, ...] = (_fit_sections, _fit_latent_heads, _fit_mamba_heads, _fit_stages)
