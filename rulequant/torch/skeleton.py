"""A model on meta, from what the user calls it: a checkpoint folder, a Hub id, or `package.module:callable`."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from rulequant.diagnostics import did_you_mean
from rulequant.errors import CheckpointError, ModelError, RulequantError
from rulequant.inventory import Inventory
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.inspect import inspect_model, with_dtypes

__all__ = ["Skeleton", "build_skeleton"]

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BUILDABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Skeleton:
    """A model without weights, and what its checkpoint says of it."""

    name: str
    model: nn.Module
    """On meta, in eval mode, in the dtype that transformers would load it in."""
    dtype: torch.dtype
    folder: Path | None = None
    """The checkpoint folder; None for a Hub id or a callable."""

    def inventory(self) -> Inventory:
        """The inventory, with the dtypes that a checkpoint stores."""
        return with_dtypes(inspect_model(self.model, name=self.name), self._fp32_names())

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype in which a checkpoint stores a tensor of the model.

        transformers' own plan: float32 where the model declares it, else the dtype of the model's tensor.
        """
        tensor = self.tensors[name]
        return torch.float32 if tensor.is_floating_point() and self._kept(name) else tensor.dtype

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The model's state dict, on meta."""
        return cast(dict[str, torch.Tensor], self.model.state_dict(keep_vars=True))

    def _fp32_names(self) -> dict[str, str]:
        return {
            name: "float32" for name, tensor in self.tensors.items() if tensor.is_floating_point() and self._kept(name)
        }

    def _kept(self, name: str) -> bool:
        """Whether transformers keeps a tensor in float32 when it loads the model in `dtype`."""
        return self._kept_pattern is not None and self._kept_pattern.search(name) is not None

    @cached_property
    def _kept_pattern(self) -> re.Pattern[str] | None:
        get_plan = getattr(self.model, "_get_dtype_plan", None)
        patterns = list(get_plan(self.dtype)) if get_plan else []
        if not patterns:
            return None
        from transformers.core_model_loading import build_glob_alternation

        return cast(re.Pattern[str], build_glob_alternation(patterns)[0])


def build_skeleton(model: str, *, trust_remote_code: bool = False, revision: str | None = None) -> Skeleton:
    """Build a model on meta; no weight is read, and for a folder its config.json alone suffices.

    Raises:
        ModelError: there is no such model, its config cannot be read, or its class cannot be built.
        CheckpointError: the folder's weights cannot be trusted.
    """
    if ":" in model and not Path(model).exists():
        return _from_callable(model)
    folder = Path(model) if Path(model).is_dir() else None
    if folder is None and (Path(model).exists() or _looks_like_path(model)):
        raise _no_such_folder(model)
    config = _config(model, folder, trust_remote_code=trust_remote_code, revision=revision)
    dtype = _dtype(config, folder)
    with _building(model, dtype), torch.device("meta"):
        built = _model_class(config, model, trust_remote_code=trust_remote_code)(config)
    return Skeleton(model, built.eval(), dtype, folder)


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith((".json", ".safetensors"))


def _no_such_folder(model: str) -> ModelError:
    path = Path(model)
    if path.is_file():
        return ModelError(
            f"{model} is a file, not a checkpoint folder", remedy="give the folder that holds config.json"
        )
    if not path.parent.is_dir():
        return ModelError(f"{model}: no such folder", remedy=f"{path.parent} does not exist either")
    near = did_you_mean(path.name, [each.name for each in path.parent.iterdir() if each.is_dir()])
    return ModelError(f"{model}: no such folder", remedy=near or "give a folder that holds config.json")


def _from_callable(model: str) -> Skeleton:
    """Call `package.module:callable` for a model; on meta, unless it puts its tensors elsewhere itself."""
    module_name, _, attribute = model.partition(":")
    if str(Path.cwd()) not in sys.path:  # as python -m and pytest do: the user's own module lies here
        sys.path.insert(0, str(Path.cwd()))
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
        with torch.device("meta"):
            built = target()
    except RulequantError:
        raise
    except Exception as error:
        raise ModelError(f"{model} cannot be called: {type(error).__name__}: {error}") from error
    if not isinstance(built, nn.Module):
        raise ModelError(f"{model} returns {type(built).__name__}, not an nn.Module")
    first = next((each for each in built.parameters() if each.is_floating_point()), None)
    return Skeleton(model, built.eval(), first.dtype if first is not None else torch.float32)


def _config(model: str, folder: Path | None, *, trust_remote_code: bool, revision: str | None) -> Any:
    from transformers import AutoConfig

    if folder is not None:
        _check_config_file(folder, trust_remote_code=trust_remote_code)
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code, revision=revision)
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = (
            None if folder else "is it a folder that exists, or the id of a model that the Hub has and you may read?"
        )
        raise ModelError(f"{model}: the config cannot be read: {first_line}", remedy=remedy) from error


def _check_config_file(folder: Path, *, trust_remote_code: bool) -> None:
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (folder / "model_index.json").exists():
            raise ModelError(
                f"{folder} is a pipeline of several models", remedy="give one of its component folders"
            ) from error
        raise ModelError(
            f"{folder} holds no config.json", remedy="give the folder of a transformers checkpoint"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a JSON object")
    _check_model_type(path, data, trust_remote_code=trust_remote_code)


def _check_model_type(path: Path, data: dict[str, Any], *, trust_remote_code: bool) -> None:
    from transformers import CONFIG_MAPPING

    model_type = data.get("model_type")
    if "auto_map" in data and not trust_remote_code and model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"{path}: the model `{model_type}` brings its own code",
            remedy="read it, then pass --trust-remote-code",
        )
    if "auto_map" in data or model_type in CONFIG_MAPPING:
        return
    import transformers

    known = [str(each) for each in CONFIG_MAPPING]
    remedy = did_you_mean(str(model_type), known) or f"transformers {transformers.__version__} has {len(known)} types"
    raise ModelError(f"{path}: transformers does not know the model_type {model_type!r}", remedy=remedy)


def _model_class(config: Any, model: str, *, trust_remote_code: bool) -> Any:
    """The class that the checkpoint was saved from, or the one that transformers would choose for the config."""
    import transformers

    architecture = next(iter(getattr(config, "architectures", None) or []), None)
    if architecture and trust_remote_code and getattr(config, "auto_map", None):
        return _remote_class(config, model)
    if architecture is None:
        auto = transformers.AutoModelForCausalLM
        chosen = auto if type(config) in auto._model_mapping else transformers.AutoModel
        return chosen._model_mapping[type(config)]
    found = getattr(transformers, architecture, None)
    if found is None:
        near = did_you_mean(architecture, [each for each in dir(transformers) if each[:1].isupper()])
        raise ModelError(f"{model}: transformers {transformers.__version__} has no class {architecture!r}", remedy=near)
    return found


def _remote_class(config: Any, model: str) -> Any:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    reference = config.auto_map.get("AutoModelForCausalLM") or config.auto_map.get("AutoModel")
    if not reference:
        raise ModelError(f"{model}: its auto_map names neither AutoModelForCausalLM nor AutoModel")
    return get_class_from_dynamic_module(reference, model)


def _dtype(config: Any, folder: Path | None) -> torch.dtype:
    """What `from_pretrained` loads in: the config's dtype, else that of the first float tensor, else float32.

    The choice is written into the config and its parts, as transformers does.
    """
    declared = getattr(config, "dtype", None)
    declared = getattr(torch, declared, None) if isinstance(declared, str) else declared
    dtype = declared or _checkpoint_dtype(folder) or torch.float32
    if dtype not in _BUILDABLE:
        raise ModelError(f"the config's dtype is {dtype}, in which no model can be built")
    config.dtype = dtype
    for key in getattr(config, "sub_configs", ()):
        part = getattr(config, key, None)
        if part is not None:
            part.dtype = dtype
    return dtype


def _checkpoint_dtype(folder: Path | None) -> torch.dtype | None:
    if folder is None:
        return None
    try:
        with CheckpointReader.open(folder) as reader:
            return next((_FLOATS[each.dtype] for each in reader.tensors.values() if each.dtype in _FLOATS), None)
    except CheckpointError:
        if any(folder.glob("*.safetensors*")):
            raise
        return None  # a plan needs the config alone


@contextmanager
def _building(model: str, dtype: torch.dtype) -> Iterator[None]:
    """Build in a dtype; what a model class raises for its config is about the model, not about rulequant."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    except RulequantError:
        raise
    except Exception as error:
        raise ModelError(
            f"{model}: the model cannot be built from its config: {type(error).__name__}: {error}"
        ) from error
    finally:
        torch.set_default_dtype(before)
