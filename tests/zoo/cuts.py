"""Ways of cutting the numbers of a config down, by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["CUTS", "Cut", "Settings", "smaller"]

Settings = dict[str, Any]
Cut = Callable[[str, int, Settings], int]

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


def smaller(key: str, value: Any, values: Settings, cut: Cut, tokens: Iterator[int]) -> Any:
    """A setting cut down; one that is no number, or no list of numbers, as it is."""
    if type(value) is int:
        is_token = key.endswith(("token_id", "token_index")) and value >= 50
        return next(tokens) if is_token else _integer(key, value, values, cut)
    if isinstance(value, list | tuple) and value and all(type(each) is int for each in value):
        return type(value)(_integer(key, each, values, cut) for each in value)
    return value


def _integer(key: str, value: int, values: Settings, cut: Cut) -> int:
    if ("vocab" in key or key == "n_words") and value > VOCABULARY and "hash" not in key:
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
"""Which one makes a model that runs differs from class to class."""
