"""The files of a model beside its weights: tokenizer, generation config, and what else a user expects to find again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.partfile import copy_file, write_file

__all__ = [
    "copy_side_files",
    "is_side_file",
    "module_folders",
    "side_files",
    "source_config",
    "without_code",
    "write_config",
]

_WEIGHTS = frozenset({
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".onnx_data", ".ot", ".tflite",
    ".mlmodel", ".mlpackage", ".npz", ".pkl", ".pickle", ".nemo", ".tar", ".zip", ".xml",
})  # fmt: skip
"""Weights in other formats, which would be those of the full-precision model."""
_NO_WEIGHTS = frozenset({"spk_dict.pt"})
"""Called so, and no weights: the voices of Qwen2.5-Omni, without which transformers does not load it."""
_MAX_DEPTH = 3
_QUANTIZATION_KEYS = frozenset({"quantization_config", "compression_config"})


def side_files(folder: Path) -> list[Path]:
    """The side files of a checkpoint, relative to it, sorted.

    Weights, hidden files and what is written anew (config.json, README.md) are left out.
    """
    modules = _module_folders(folder)
    return sorted(each for each in _walk(folder) if is_side_file(PurePosixPath(each.as_posix()), modules))


def is_side_file(path: PurePosixPath, modules: frozenset[str]) -> bool:
    """Whether a file, by its path in the checkpoint, is one; all are in the folders named by `modules`."""
    folders = path.parts[:-1]
    if len(path.parts) > _MAX_DEPTH or _is_own(path.parts[0]) or any(each.startswith(".") for each in path.parts):
        return False
    if any(PurePosixPath(each).suffix.lower() in _WEIGHTS for each in folders):
        return False
    return not modules.isdisjoint(folders) or not _is_weight(path.name)


def copy_side_files(source: Path, destination: Path) -> list[Path]:
    """Copy the side files, and return them."""
    found = side_files(source)
    for each in found:
        copy_file(source / each, destination / each, root=source)
    return found


def source_config(folder: Path, name: str | None = None) -> dict[str, Any]:
    """The config.json of a source checkpoint, which messages call by its name.

    Raises:
        CheckpointError: it cannot be read, or says that the checkpoint is already quantized.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    for where, quantized in _quantizations(config):
        method = quantized.get("quant_method", "an unnamed method") if isinstance(quantized, dict) else quantized
        raise CheckpointError(
            f"{name or folder} is already quantized ({printable(method)}, by `{where}` in config.json)",
            remedy="give the checkpoint it was made from",
        )
    return dict(config)


def _quantizations(config: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """What a config, or one of the configs in it, says of quantization, and where."""
    for key, value in config.items():
        if key in _QUANTIZATION_KEYS and value:
            yield f"{path}{key}", value
        elif isinstance(value, dict):
            yield from _quantizations(value, f"{path}{key}.")


def write_config(config: dict[str, Any], quantization: dict[str, Any], dtype: str | None, destination: Path) -> None:
    """Write the source's config.json with the quantization config, and the dtype of all that is not quantized, if any.

    transformers casts biases to `dtype` and leaves weights as they are: without it the two could part.
    """
    changed = {key: value for key, value in config.items() if key != "torch_dtype"}
    changed |= ({"dtype": dtype} if dtype else {}) | {"quantization_config": quantization}
    write_file(destination / "config.json", (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode())


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model that was quantized as a class of transformers has it, for that class only.

    Code of the model's own, which `auto_map` names, may know the layers by other names, and `trust_remote_code` prefers
    it. Tokenizers and processors keep theirs.
    """
    known = config.get("auto_map")
    if not isinstance(known, dict):
        return dict(config)
    others = {key: each for key, each in known.items() if not key.startswith(("AutoConfig", "AutoModel"))}
    changed = {key: value for key, value in config.items() if key != "auto_map"}
    return changed | ({"auto_map": others} if others else {})


def _walk(folder: Path, above: Path = Path()) -> Iterator[Path]:
    """The files of a folder, relative to it, no deeper than side files lie; links to folders are not followed."""
    for each in sorted((folder / above).iterdir()):
        path = above / each.name
        if each.name.startswith("."):  # .git alone holds thousands
            continue
        if each.is_dir():
            if len(path.parts) < _MAX_DEPTH and not each.is_symlink():
                yield from _walk(folder, path)
        elif each.is_file():
            yield path


def _is_weight(name: str) -> bool:
    if name in _NO_WEIGHTS:
        return False
    suffixes = {each.lower() for each in Path(name).suffixes}
    return Path(name).suffix.lower() in _WEIGHTS or ".ckpt" in suffixes or name.endswith(".index.json")


def _is_own(name: str) -> bool:
    """What is written anew."""
    return name in {"config.json", "README.md"} or name.startswith("rulequant-")


def _module_folders(folder: Path) -> frozenset[str]:
    try:
        return module_folders((folder / "modules.json").read_bytes())
    except OSError:
        return frozenset()


def module_folders(text: bytes) -> frozenset[str]:
    """The folders of sentence-transformers' other modules, such as `2_Dense`, whose weights no one else holds.

    `text` is that of modules.json.
    """
    try:
        return frozenset(str(each["path"]) for each in json.loads(text) if each["path"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return frozenset()
