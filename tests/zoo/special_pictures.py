"""What models of pictures and videos are called with of which the names of the arguments do not say enough."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["PICTURES"]

Inputs = dict[str, Any]


def _ids(length: int = 12, top: int = 50) -> Tensor:
    return torch.randint(3, top, (1, length))


def _align(config: Any) -> Inputs:
    side = config.vision_config.image_size
    return {"input_ids": _ids(), "pixel_values": torch.randn(1, 3, side, side)}


def _blip_2(config: Any) -> Inputs:
    images = [config.image_token_index] * config.num_query_tokens
    side = config.vision_config.image_size
    return {"input_ids": torch.tensor([[*images, 5, 6, 7]]), "pixel_values": torch.randn(1, 3, side, side)}


def _instruct_blip(config: Any) -> Inputs:
    return _blip_2(config) | {"qformer_input_ids": _ids()}


def _instruct_blip_video(config: Any) -> Inputs:
    side, frames = config.vision_config.image_size, 4
    videos = [config.video_token_index] * config.num_query_tokens * frames
    return {
        "input_ids": torch.tensor([[*videos, 5, 6, 7]]),
        "pixel_values": torch.randn(1, frames, 3, side, side),
        "qformer_input_ids": _ids(),
    }


def _latents(config: Any) -> Inputs:
    return {"hidden_states": torch.randn(1, config.latent_channels, 4, 4)}


def _squares(config: Any) -> Inputs:
    """Squares of patches, one for each token of the language model."""
    side = config.patch_size * config.spatial_merge_size
    return {"pixel_values": torch.randn(4, side, side, 3), "image_grid_thw": torch.tensor([[1, 2, 2]])}


def _query(config: Any) -> Inputs:
    states = torch.randn(1, 16, config.encoder_hidden_size)
    return {"query_embeds": torch.randn(1, 8, config.hidden_size), "encoder_hidden_states": states}


def _pair_of_pictures(config: Any) -> Inputs:
    del config
    return {"pixel_values": torch.rand(1, 2, 3, 64, 64)}


def _located_patches(config: Any) -> Inputs:
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], dim=-1)
    return {"pixel_values": torch.rand(1, 36, 3 * config.patch_size**2), "pixel_position_ids": places[None]}


def _picture_and_text(config: Any) -> Inputs:
    del config
    return {"pixel_values": torch.randn(1, 3, 128, 128), "input_ids": _ids(8)}


def _idefics(config: Any) -> Inputs:
    side = config.vision_config.image_size
    return {
        "input_ids": _ids(),
        "pixel_values": torch.randn(1, 1, 3, side, side),
        "image_attention_mask": torch.ones(1, 12, 1, dtype=torch.long),
    }


def _kosmos(config: Any) -> Inputs:
    side, count = config.vision_config.image_size, config.latent_query_num
    mask = torch.zeros(1, count + 4, dtype=torch.long)
    mask[:, 1 : count + 1] = 1
    picture = torch.randn(1, 3, side, side)
    return {"pixel_values": picture, "input_ids": _ids(count + 4), "image_embeds_position_mask": mask}


def _regions(config: Any) -> Inputs:
    return {
        "input_ids": _ids(),
        "visual_feats": torch.randn(1, 5, config.visual_feat_dim),
        "visual_pos": torch.rand(1, 5, config.visual_pos_dim),
    }


def _patches_in_a_row(config: Any) -> Inputs:
    """Of MiniCPM: all patches of all pictures side by side, and how many rows and columns there are."""
    patch = config.patch_size
    return {"pixel_values": torch.randn(1, 3, patch, 16 * patch), "target_sizes": torch.tensor([[4, 4]])}


def _task_and_picture(config: Any) -> Inputs:
    length = config.task_seq_len
    return {"pixel_values": torch.randn(1, 3, 64, 64), "task_inputs": torch.randint(3, 50, (1, length))}


def _robot(config: Any) -> Inputs:
    side = config.vlm_config.vision_config.image_size
    images = [config.vlm_config.image_token_id] * (side // config.vlm_config.vision_config.patch_size) ** 2
    ids = torch.tensor([[*images, 5, 6, 7]])
    return {
        "state": torch.randn(1, config.max_state_dim),
        "noise": torch.randn(1, config.chunk_size, config.max_action_dim),
        "timestep": torch.rand(1),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 1, 3, side, side),
        "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool),
    }


def _flat_patches(config: Any) -> Inputs:
    width = config.vision_config.patch_embed_hidden_size
    places = torch.tensor([[row, column] for row in range(1, 5) for column in range(1, 5)])
    patches = torch.cat([places[None].float(), torch.rand(1, 16, width)], dim=-1)
    return {"flattened_patches": patches, "decoder_input_ids": _ids()}


def _prompted_picture(config: Any) -> Inputs:
    height, width = config.image_size
    shape = (1, 3, height // 2, width)
    return {name: torch.randn(shape) for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")}


def _spatial_patches(config: Any) -> Inputs:
    part = getattr(config, "vision_config", config)
    patches = {
        "pixel_values": torch.randn(1, 16, 3 * part.patch_size**2),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]]),
    }
    return patches | ({"input_ids": _ids()} if part is not config else {})


def _session(config: Any, side: int) -> Any:
    """A video of one frame."""
    module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    session_class: Any = next(each for name, each in vars(module).items() if name.endswith("InferenceSession"))
    return session_class(torch.randn(1, 3, side, side), side, side, dtype=torch.float32)


def _named_object(config: Any) -> Inputs:
    """A video, and the name of what to look for."""
    session = _session(config, config.detector_config.vision_config.backbone_config.image_size)
    prompt = session.add_prompt("a cat")
    session.prompt_input_ids[prompt] = _ids(8)
    session.prompt_attention_masks[prompt] = torch.ones(1, 8, dtype=torch.long)
    return {"inference_session": session, "frame_idx": 0}


def _tracked_object(config: Any) -> Inputs:
    """A video, and a point on the object to follow."""
    side = config.prompt_encoder_config.image_size
    session = _session(config, side)
    points = {"point_coords": torch.full((1, 1, 1, 2), side / 2), "point_labels": torch.ones(1, 1, 1, dtype=torch.int)}
    session.add_point_inputs(session.obj_id_to_idx(1), 0, points)
    session.obj_with_new_inputs = [1]
    return {"inference_session": session, "frame_idx": 0}


def _named_classes(config: Any) -> Inputs:
    """Two classes to look for, and the task in words."""
    side, names = config.image_size, torch.randint(3, 50, (2, 6))
    task = torch.randint(3, 50, (1, 6))
    return {
        "pixel_values": torch.randn(1, 3, side, side),
        "classes_input_ids": names,
        "classes_attention_mask": torch.ones_like(names),
        "tasks_input_ids": task,
        "tasks_attention_mask": torch.ones_like(task),
        "classes_structure": torch.tensor([2]),
    }


def _video_and_text(config: Any) -> Inputs:
    side = config.max_img_size
    return {"input_ids": _ids(), "pixel_values": torch.randn(1, config.num_frames, 3, side, side)}


def _document(config: Any) -> Inputs:
    side = config.image_size
    boxes = torch.rand(1, 12, 4).sort(dim=-1).values
    picture = torch.randn(1, 3, side, side)
    return {"input_ids": _ids(), "bbox": boxes, "pixel_values": picture, "decoder_input_ids": _ids(6)}


def _merged_patches(config: Any) -> Inputs:
    patches = torch.randn(16, config.num_channels * config.patch_size**2)
    return {"pixel_values": patches, "grid_thw": torch.tensor([[1, 4, 4]]), "merge_sizes": torch.tensor([2])}


def _clip_of_frames(config: Any) -> Inputs:
    side = config.image_size
    return {"pixel_values_videos": torch.randn(1, 2, 3, side, side)}


def _poses(config: Any) -> Inputs:
    height, width = getattr(config, "backbone_config", config).image_size
    return {"pixel_values": torch.randn(1, 3, height, width)}


PICTURES: dict[str, Callable[[Any], Inputs]] = {
    "align": _align,
    "blip-2": _blip_2,
    "blip_2_qformer": _query,
    "edgetam_video": _tracked_object,
    "efficientloftr": _pair_of_pictures,
    "gemma4_vision": _located_patches,
    "glm_image_vqmodel": _latents,
    "grounding-dino": _picture_and_text,
    "idefics": _idefics,
    "inkling2_vision": _squares,
    "instructblip": _instruct_blip,
    "instructblipvideo": _instruct_blip_video,
    "kosmos-2": _kosmos,
    "lightglue": _pair_of_pictures,
    "lxmert": _regions,
    "minicpm_ocr_vision": _patches_in_a_row,
    "minicpmv4_7_vision": _patches_in_a_row,
    "mm-grounding-dino": _picture_and_text,
    "omdet-turbo": _named_classes,
    "oneformer": _task_and_picture,
    "pi0": _robot,
    "pix2struct": _flat_patches,
    "sam2_video": _tracked_object,
    "sam3_tracker_video": _tracked_object,
    "sam3_video": _named_object,
    "seggpt": _prompted_picture,
    "siglip2": _spatial_patches,
    "siglip2_vision_model": _spatial_patches,
    "superglue": _pair_of_pictures,
    "tvp": _video_and_text,
    "udop": _document,
    "video_llama_3_vision": _merged_patches,
    "videomt": _clip_of_frames,
    "vitpose": _poses,
    "vitpose_backbone": _poses,
}
