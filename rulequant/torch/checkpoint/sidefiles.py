"""The files of a model beside its weights: tokenizer, generation config, and what else a user expects to find again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.partfile import copy_file, write_file

__all__ = ["copy_side_files", "side_files", "source_config", "write_config"]

_WEIGHTS = frozenset({
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".onnx_data", ".ot", ".tflite",
    ".mlmodel", ".mlpackage", ".npz", ".pkl", ".pickle", ".nemo", ".tar", ".zip", ".xml",
})  # fmt: skip
"""Weights in other formats, which would be those of the full-precision model."""
_MAX_DEPTH = 3


def side_files(folder: Path) -> list[Path]:
    """The side files of a checkpoint, relative to it, sorted; weights, hidden files and config.json are left out."""
    return sorted(each.relative_to(folder) for each in _walk(folder, depth=1))


def copy_side_files(source: Path, destination: Path) -> list[Path]:
    """Copy the side files, and return them."""
    found = side_files(source)
    for each in found:
        copy_file(source / each, destination / each, root=source)
    return found


def source_config(folder: Path) -> dict[str, Any]:
    """The config.json of a source checkpoint.

    Raises:
        CheckpointError: it cannot be read, or says that the checkpoint is already quantized.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        quantized = part.get("quantization_config") or part.get("compression_config")
        if quantized:
            method = quantized.get("quant_method", "an unnamed method") if isinstance(quantized, dict) else quantized
            raise CheckpointError(
                f"{folder} is already quantized ({method})", remedy="give the checkpoint it was made from"
            )
    return dict(config)


def write_config(config: dict[str, Any], quantization: dict[str, Any], dtype: str, destination: Path) -> None:
    """Write the source's config.json with the quantization config, and the dtype of all that is not quantized.

    transformers casts biases to `dtype` and leaves weights as they are: without it the two could part.
    """
    changed = {key: value for key, value in config.items() if key != "torch_dtype"}
    changed |= {"dtype": dtype, "quantization_config": quantization}
    write_file(destination / "config.json", (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode())


def _walk(folder: Path, *, depth: int) -> Iterator[Path]:
    for each in folder.iterdir():
        if each.name.startswith(".") or each.name.endswith(".index.json") or (depth == 1 and _is_own(each.name)):
            continue
        if each.is_dir():
            if depth < _MAX_DEPTH and not each.is_symlink():
                yield from _walk(each, depth=depth + 1)
        elif each.suffix.lower() not in _WEIGHTS and each.is_file():
            yield each


def _is_own(name: str) -> bool:
    """What is written anew."""
    return name == "config.json" or name.startswith("rulequant-")
