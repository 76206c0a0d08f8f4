"""What a model is for, as far as its inventory tells: the bundled rule file that it gets where its family has none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from rulequant.inventory import Inventory, ModuleInfo

__all__ = ["CONNECTORS", "TASKS", "TOWERS", "Task", "task_of"]

Task = Literal["causal_lm", "encoder", "seq2seq", "multimodal", "vision", "audio", "diffusion"]

TASKS: dict[Task, str] = {
    "causal_lm": "decoder language models",
    "encoder": "encoders of text",
    "seq2seq": "an encoder and a decoder",
    "multimodal": "language models with a tower for images or sound",
    "vision": "vision models",
    "audio": "audio models",
    "diffusion": "models of diffusers",
}
"""The default rule files, and what they are for."""

TOWERS = frozenset(
    {
        *("vision_tower", "image_tower", "video_tower", "audio_tower", "vision_model", "vision_encoder", "visual"),
        *("image_encoder", "video_model", "audio_model", "audio_encoder", "speech_encoder", "high_res_vision_model"),
        *("acoustic_tokenizer_encoder", "semantic_tokenizer_encoder", "codec_model", "embed_vision", "embed_audio"),
        "embed_tokens_extend",
    }
)
"""How models of transformers call the parts that turn images or sound into what a language model reads."""
CONNECTORS = frozenset(
    {
        *("multi_modal_projector", "mm_projector", "projector", "connector", "semantic_connector", "aligner", "merger"),
        *("resampler_model", "vision_adapter", "vision_projection", "language_projection", "image_to_text_projection"),
    }
)
"""And the parts that lead from a tower to the language model."""

_MASKED = re.compile(r"ForMaskedLM|ForPreTraining")
_AUDIO = re.compile(r"Audio|Speech|A[Ss][Rr]|Wav|Hubert|odec|ForCTC|ForRNNT|ForTDT")
_VISION = re.compile(r"Vi[tT]|Vision|Image|Video")
_NO_TOKENS = re.compile(r"pos|query|class|type|bias|rel|reference|feat|codebook")
_VOCABULARY = 200
"""Rows from which an embedding may be that of tokens: bytes are 256."""


def task_of(inventory: Inventory) -> Task:
    """The task of a model: by its parts first, by the name of its class where they leave it open."""
    if "diffusers" in inventory.versions:
        return "diffusion"
    leaves = {each.name.rpartition(".")[2] for each in inventory.modules}
    name = inventory.architecture or ""
    generates = any(each.output_embedding for each in inventory.modules)
    if leaves & (TOWERS | CONNECTORS) and "language_model" in leaves:
        return "multimodal"
    if not _reads_text(inventory):
        return _without_text(inventory, name)
    if leaves & TOWERS:
        # What a tower puts out goes into a language model; in CLIP it is compared with what a text's puts out.
        return "multimodal" if generates or leaves & CONNECTORS else "encoder"
    if _MASKED.search(name):
        return "encoder"
    if _has_two_stacks(inventory):
        return "seq2seq"
    return "causal_lm" if generates or not leaves & {"encoder", "pooler"} else "encoder"


def _without_text(inventory: Inventory, name: str) -> Task:
    """By the dimensions over which the first convolution runs, of which one is time, and by the name of the class."""
    dimensions = _first_convolution(inventory)
    if dimensions == 1 or _AUDIO.search(name):
        return "audio"
    return "vision" if dimensions or _VISION.search(name) else "encoder"


def _reads_text(inventory: Inventory) -> bool:
    is_named = re.search(r"Text(Model|Encoder)", inventory.architecture or "") is not None
    return is_named or any(each.output_embedding or _is_vocabulary(each) for each in inventory.modules)


def _is_vocabulary(info: ModuleInfo) -> bool:
    """Whether a module is an embedding of tokens, not of positions, queries or classes."""
    rows = next((each.shape[0] for each in info.tensors if len(each.shape) == 2), 0)
    return info.kind == "embedding" and rows >= _VOCABULARY and not _NO_TOKENS.search(info.name.rpartition(".")[2])


def _first_convolution(inventory: Inventory) -> int | None:
    shapes: Iterable[tuple[int, ...]] = (
        tensor.shape for each in inventory.modules if each.kind == "convolution" for tensor in each.tensors
    )
    return next((len(shape) - 2 for shape in shapes if len(shape) > 2), None)


def _has_two_stacks(inventory: Inventory) -> bool:
    """Whether the model, or the base model in it, has both an encoder and a decoder."""
    parents = [each.name.removesuffix("encoder") for each in inventory.modules if each.name.count(".") <= 1]
    return any(f"{each}encoder" in inventory.by_name and f"{each}decoder" in inventory.by_name for each in parents)
