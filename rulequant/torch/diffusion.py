"""Models of diffusers: a component's folder → the model on meta, and the dtypes that its files have."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from rulequant.diagnostics import did_you_mean
from rulequant.errors import CheckpointError, MissingExtraError, ModelError
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.layout import COMPONENT_STEM
from rulequant.torch.checkpoint.reader import CheckpointReader

__all__ = ["build_component", "float_dtypes", "import_diffusers", "is_component", "is_pipeline", "stored_dtypes"]

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MODEL_CLASS = re.compile(r"[A-Z]\w*(Model|Autoencoder|Transformer|UNet|VQ|AutoencoderKL)\w*")


def is_component(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of diffusers, which names the class and not the model_type."""
    return isinstance(config.get("_class_name"), str) and "model_type" not in config


def is_pipeline(folder: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of a pipeline: model_index.json, and no config.json."""
    path = Path(folder)
    try:
        return (path / "model_index.json").is_file() and not (path / "config.json").is_file()
    except OSError:  # too long for a name
        return False


def import_diffusers(what: str) -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "diffusers":
            raise
        raise MissingExtraError(
            f"{what} is a model of diffusers, which is not installed", remedy="pip install 'rulequant[torch,diffusers]'"
        ) from error
    return diffusers


def build_component(name: str, config: Mapping[str, Any]) -> nn.Module:
    """The model of a config, in the default dtype and on the default device.

    Raises:
        ModelError: the installed diffusers has no such model.
    """
    diffusers = import_diffusers(name)
    kind = str(config["_class_name"])
    found = getattr(diffusers, kind, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.ModelMixin)):
        known = [each for each in dir(diffusers) if _MODEL_CLASS.fullmatch(each)]
        raise ModelError(
            f"{name}: diffusers {diffusers.__version__} has no model class {printable(kind)!r}",
            remedy=did_you_mean(kind, known) or "give the folder of a model: a transformer, a UNet, a VAE",
        )
    return cast(nn.Module, cast(Any, found).from_config(dict(config)))


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """The dtype of each float tensor of a folder, by name; none where it holds no weights (a plan needs none).

    Raises:
        CheckpointError: it holds weights that cannot be trusted.
    """
    try:
        with CheckpointReader.open(folder, COMPONENT_STEM) as reader:
            return float_dtypes((name, each.dtype) for name, each in reader.tensors.items())
    except CheckpointError:
        if any(folder.glob(f"{COMPONENT_STEM}*.safetensors*")):
            raise
        return {}


def float_dtypes(spelled: Iterable[tuple[str, str]]) -> dict[str, torch.dtype]:
    """Of tensors by name, those that are floats; dtypes come as safetensors spells them."""
    return {name: _DTYPES[dtype] for name, dtype in spelled if dtype in _DTYPES}
