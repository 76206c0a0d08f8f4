"""Tiny random models: the default config of an architecture with every size cut down, for a quick forward pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from zoo.classes import Architecture

__all__ = ["CUTS", "tiny_model"]

MAX_PARAMETERS = 40_000_000
VOCABULARY = 300
_NAMED = (  # by what the name of a setting ends with; the first that fits
    (r"(key_value|kv)_heads|n_head_kv|num_kv_heads", 2),
    (r"heads|n_head", 4),
    (r"qk_rope_head_dim|qk_nope_head_dim|rotary_dim|index_head_dim", 8),
    (r"head_dim|d_kv|attention_head_size|kv_channels", 16),
    (r"lora_rank|dt_rank|time_step_rank", 32),
    (r"intermediate_size|ffn_dim|ffn_hidden_size|d_ff|n_inner|mlp_dim|intermediate_size_mlp|dim_feedforward", 128),
    (r"hidden_size|d_model|n_embd|embed_dim|embedding_size|hidden_dim|projection_dim|^dim|width|lru_width|out_dim", 64),
)
_LAYERS = re.compile(r"(layers?|depths?|n_layer|num_blocks|num_stages)$")
_NOT_LAYERS = re.compile(
    r"period|offset|interval|step|freq|nextn|predict|mtp|index|(^|_)ids?(_|$)|skip|select|type|replace|feat_extract|shared"
)
_EXPERTS = re.compile(r"(?<!shared_)(experts|n_routed_experts|moe_num_experts|num_local_experts)$")
_CHOSEN = re.compile(r"experts_per_tok|num_experts_per_token|moe_topk|moe_k|^top_k")
_POSITIONS = re.compile(r"max_position|n_positions|max_source|max_target|n_ctx")
_FEED_FORWARD = re.compile(r"intermediate|ffn|d_ff|n_inner|mlp_dim|feedforward")
_DIMENSIONS = re.compile(
    r"hidden_size|d_model|n_embd|embed|hidden_dim|projection|^dim$|width|intermediate|ffn|d_ff|n_inner|mlp_dim|head_dim"
    r"|d_kv|lora_rank|dt_rank|kv_channels|conv_dim|channels|rotary_dim|feedforward"
)
_NOT_DIMENSIONS = re.compile(r"num_channels|in_channels|image|input|audio_channels|position|type|ratio|std|drop")
_HIDDEN = ("hidden_size", "d_model", "n_embd", "embed_dim", "hidden_dim", "dim")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads", "attention_heads")
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer")
_RECOMPUTED = {
    *("model_type", "transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"),
    *("out_features", "out_indices", "stage_names", "_out_features", "_out_indices"),
}

Settings = dict[str, Any]
Cut = Callable[[str, int, Settings], int]


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
    return real.float().eval()


def _settings(config: Any, cut: Cut) -> Settings:
    values = {key: value for key, value in config.to_dict().items() if key not in _RECOMPUTED}
    layers = _layers(values)
    tokens = iter(range(VOCABULARY - 1, 0, -1))
    settings: Settings = {}
    for key, value in values.items():
        part = vars(config).get(key)
        if hasattr(part, "to_dict"):
            settings[key] = _settings(part, cut) | {"model_type": part.model_type}
        else:
            settings[key] = layers[key] if key in layers else _value(key, value, values, cut, tokens)
    _fit_sections(settings)
    return settings


def _fit_sections(settings: Settings) -> None:
    """The parts of a head that rotate by time, height and width have to add up to half of it."""
    for key in ("rope_parameters", "rope_scaling"):
        rope = settings.get(key)
        if isinstance(rope, dict) and "mrope_section" in rope:
            width = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
            half = int(width * rope.get("partial_rotary_factor", settings.get("partial_rotary_factor") or 1)) // 2
            settings[key] = rope | {"mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}


def _layers(values: Settings) -> Settings:
    """What is said layer by layer, for as many layers as there are kinds, and at least two."""
    number = next((values[key] for key in _DEPTHS if isinstance(values.get(key), int)), 0)
    lists = {
        key: value
        for key, value in values.items()
        if isinstance(value, list) and len(value) == number > 2 and all(isinstance(x, str | int | float) for x in value)
    }
    if not lists:
        return {}
    kinds = list(zip(*lists.values(), strict=True))
    chosen = sorted({kinds.index(each) for each in kinds})[:6]
    chosen = chosen if len(chosen) > 1 else [0, 1]
    found: Settings = {key: [value[index] for index in chosen] for key, value in lists.items()}
    return found | {key: len(chosen) for key in _DEPTHS if isinstance(values.get(key), int)}


def _value(key: str, value: Any, values: Settings, cut: Cut, tokens: Iterator[int]) -> Any:
    if type(value) is int:
        is_token = key.endswith(("token_id", "token_index")) and value >= 50
        return next(tokens) if is_token else _integer(key, value, values, cut)
    if isinstance(value, list | tuple) and value and all(type(each) is int for each in value):
        return type(value)(_integer(key, each, values, cut) for each in value)
    return value


def _integer(key: str, value: int, values: Settings, cut: Cut) -> int:
    if "vocab" in key and value > VOCABULARY and "hash" not in key:
        return VOCABULARY
    if _LAYERS.search(key) and not _NOT_LAYERS.search(key):
        return min(value, 2)
    if _EXPERTS.search(key):
        return min(value, 4)
    if _CHOSEN.search(key):
        return min(value, 2)
    if _POSITIONS.search(key):
        return min(value, 512)
    return _integer_of_its_own(key, value, values, cut)


def _integer_of_its_own(key: str, value: int, values: Settings, cut: Cut) -> int:
    if key in {"n_group", "topk_group", "num_expert_group"}:
        return 1
    if re.search(r"image_size|img_size", key):
        patch = values.get("patch_size")
        return min(value, 4 * patch) if isinstance(patch, int) and cut is not _kept else value
    return cut(key, value, values)


def _divided(key: str, value: int, values: Settings) -> int:
    """As below, but for feed-forward layers, which stand apart from the others: theirs is a multiple of a block."""
    if _FEED_FORWARD.search(key) and value >= 128:
        return 128
    return _divided_throughout(key, value, values)


def _divided_throughout(key: str, value: int, values: Settings) -> int:
    """Dimensions divided by one number, so that what has to be equal, or a multiple, still is."""
    if not _DIMENSIONS.search(key) or _NOT_DIMENSIONS.search(key):
        return value
    hidden, heads = _first(values, _HIDDEN), _first(values, _HEADS) or 1
    if not hidden:
        return max(1, value // 4) if value % 4 == 0 else value
    sizes = {each: hidden // each for each in (64, 32, 16, 8, 4, 2) if hidden % each == 0}
    factor = next((each for each, size in sizes.items() if size and size % 64 == 0 and size % (heads * 4) == 0), 1)
    return value // factor if value % factor == 0 else value


def _first(values: Settings, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := values.get(name), int)), None)


def _named(key: str, value: int, values: Settings) -> int:
    """Dimensions by their names."""
    del values
    return next((small for pattern, small in _NAMED if re.search(f"(^|_)({pattern})$", key)), value)


def _kept(key: str, value: int, values: Settings) -> int:
    """Nothing but the number of layers, experts and tokens."""
    del key, values
    return value


CUTS: dict[str, Cut] = {
    "divided": _divided,
    "divided throughout": _divided_throughout,
    "named": _named,
    "kept": _kept,
}
"""Ways of cutting; which one makes a model that runs differs from class to class."""
