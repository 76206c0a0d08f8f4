"""What a model can be called with, found by trying."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoo.special import special_inputs

__all__ = ["Inputs", "possible_inputs"]

Inputs = dict[str, Any]
_PARTS = ("vision_config", "backbone_config", "encoder", "image_config", "audio_config", "encoder_config")


def possible_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Small batches that the model may take, by its main input and its other arguments; the likely ones first."""
    torch.manual_seed(1)
    yield from special_inputs(model)
    config: Any = model.config
    main: Any = model.main_input_name
    parameters = inspect.signature(model.forward).parameters.values()
    arguments = {each.name for each in parameters}
    required = [
        each.name for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    patches = next((each for each in ("hidden_states", "pixel_values") if each in required), None)
    grid = next((each for each in ("grid_thw", "image_grid_thw") if each in arguments), None)
    if patches and grid and "input_ids" not in arguments:
        yield from _packed_patches(patches, grid, config)
    for name in dict.fromkeys([*([main] if isinstance(main, str) else main), *required]):
        yield from _BY_NAME.get(name, _unknown)(name, config, arguments)


def _ids() -> Tensor:
    return torch.randint(3, 50, (1, 12))


def _with_decoder(inputs: Inputs, arguments: set[str]) -> Inputs:
    return inputs | ({"decoder_input_ids": _ids()} if "decoder_input_ids" in arguments else {})


def _text(name: str, config: Any, arguments: set[str]) -> Iterator[Inputs]:
    ids = _ids()
    if "decoder_input_ids" in arguments:
        yield {name: ids, "decoder_input_ids": ids}
    yield {name: ids}
    yield {name: ids, "bbox": torch.zeros(1, 12, 4, dtype=torch.long)}
    if "pixel_values" in arguments:
        yield from ({name: ids, "pixel_values": each} for each in _images(config))
    if "input_features" in arguments:
        yield from ({name: ids} | each for each in _features("input_features", config, set()))
    yield {name: torch.randint(3, 50, (1, 12, 8))}
    yield {name: torch.randint(3, 50, (1, 8, 12))}


def _pictures(name: str, config: Any, arguments: set[str]) -> Iterator[Inputs]:
    images = list(_images(config))
    yield from ({name: each} for each in images)
    if "input_ids" in arguments:
        yield from ({name: each, "input_ids": _ids()} for each in images)
    if "decoder_input_ids" in arguments:
        yield from ({name: each, "decoder_input_ids": _ids()} for each in images)


def _images(config: Any) -> Iterator[Tensor]:
    for part in _parts(config):
        size, channels = (
            _int(part, "image_size", "img_size"),
            _int(part, "num_channels", "in_channels", "in_chans") or 3,
        )
        frames = _int(part, "num_frames", "frames_per_clip")
        for side in dict.fromkeys(each for each in (size, 64, 128, 224) if each):
            if frames:
                yield torch.randn(1, frames, channels, side, side)
                yield torch.randn(1, channels, frames, side, side)
            yield torch.randn(1, channels, side, side)


def _packed_patches(name: str, grid: str, config: Any) -> Iterator[Inputs]:
    channels = _int(config, "in_channels", "in_chans", "num_channels") or 3
    patch, time = _int(config, "patch_size") or 14, _int(config, "temporal_patch_size", "patch_temporal") or 1
    for shape in ((16, channels * time * patch * patch), (16, channels, patch, patch)):
        yield {name: torch.randn(shape), grid: torch.tensor([[1, 4, 4]])}


def _waves(name: str, config: Any, arguments: set[str]) -> Iterator[Inputs]:
    del config
    for shape in ((1, 4000), (1, 1, 4000), (1, 256, 80), (1, 1024, 128), (1, 20000)):
        yield {name: torch.randn(shape)}
        if "decoder_input_ids" in arguments:
            yield _with_decoder({name: torch.randn(shape)}, arguments)


def _features(name: str, config: Any, arguments: set[str]) -> Iterator[Inputs]:
    parts = list(_parts(config))
    names = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "input_dim", "feature_size")
    bins = next((found for each in parts if (found := _int(each, *names))), 80)
    frames = next((2 * found for each in parts if (found := _int(each, "max_source_positions"))), 100)
    for length in dict.fromkeys((frames, 96)):
        mask = torch.ones(1, length, dtype=torch.bool)
        columns, rows = torch.randn(1, bins, length), torch.randn(1, length, bins)
        masks = ({}, {"attention_mask": mask.long()}, {"audio_mel_mask": ~mask}, {f"{name}_mask": mask})
        yield _with_decoder({name: columns}, arguments)
        yield from (_with_decoder({name: rows} | each, arguments) for each in masks)
        yield _with_decoder({name: columns, f"{name}_mask": mask.long()}, arguments)


def _series(name: str, config: Any, arguments: set[str]) -> Iterator[Inputs]:
    del arguments
    length, count = _int(config, "context_length") or 32, _int(config, "num_input_channels") or 1
    yield {name: torch.randn(1, length, count)}
    yield {name: torch.randn(1, length)}
    yield {name: [torch.randn(64)]}


def _any(name: str, config: Any, arguments: set[str]) -> Iterator[Inputs]:
    del config
    yield {name: torch.randint(3, 50, (1, 12))}
    yield _with_decoder({name: torch.randn(1, 4000)}, arguments)


def _flattened(name: str, config: Any, arguments: set[str]) -> Iterator[Inputs]:
    patch = (_int(config, "patch_size") or 16) ** 2 * 3 + 2
    yield _with_decoder({name: torch.rand(1, 16, patch)}, arguments)


def _states(name: str, config: Any, arguments: set[str]) -> Iterator[Inputs]:
    del arguments
    for width in dict.fromkeys((_int(config, "hidden_size"), _int(config, "d_model"), 64)):
        if width:
            yield {name: torch.randn(1, 12, width)}
            yield {name: torch.randn(1, width, 12)}


def _unknown(name: str, config: Any, arguments: set[str]) -> Iterator[Inputs]:
    del name, config, arguments
    return iter(())


_BY_NAME: dict[str, Callable[[str, Any, set[str]], Iterator[Inputs]]] = {
    "input_ids": _text,
    "pixel_values": _pictures,
    "pixel_values_videos": _pictures,
    "input_values": _waves,
    "input_features": _features,
    "audio_mel": _features,
    "past_values": _series,
    "inputs": _any,
    "flattened_patches": _flattened,
    "latents": _states,
    "inputs_embeds": _states,
    "noise_embeds": _states,
}


def _parts(config: Any) -> Iterator[Any]:
    yield config
    yield from (part for name in _PARTS if (part := getattr(config, name, None)) is not None)


def _int(config: Any, *names: str) -> int | None:
    """The first of some settings that is a number, or the first number of a list."""
    for name in names:
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(value, int):
            return value
    return None
