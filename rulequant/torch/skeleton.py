"""A model on meta, from what the user calls it: a checkpoint folder, a Hub id, or `package.module:callable`."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from rulequant.diagnostics import did_you_mean
from rulequant.errors import CheckpointError, ModelError, RulequantError
from rulequant.inventory import Inventory
from rulequant.torch.calling import call_for_model, is_callable_name
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.inspect import inspect_model, with_dtypes

if TYPE_CHECKING:
    from rulequant.torch.hub.source import HubModel

__all__ = ["Skeleton", "build_skeleton"]

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BUILDABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MODEL_CLASS = re.compile(r"(?!Auto|PreTrained)\w+(Model|For[A-Z]\w+)")


@dataclass(frozen=True)
class Skeleton:
    """A model without weights, and what its checkpoint says of it."""

    name: str
    model: nn.Module
    """In eval mode, and on meta unless its weights were asked for; in the dtype that transformers would load it in."""
    dtype: torch.dtype
    folder: Path | None = None
    """The checkpoint folder; None for a callable, and for a Hub id until its weights are downloaded."""
    hub: HubModel | None = None
    """The repository and the commit, for a Hub id."""

    def at(self, folder: Path) -> Skeleton:
        """The same skeleton, with what was found out about it, once its checkpoint is in a folder."""
        found = copy.copy(self)
        object.__setattr__(found, "folder", folder)  # its cached inventory comes along
        return found

    def inventory(self) -> Inventory:
        """The inventory, with the dtypes that a checkpoint stores; taken once."""
        return self._inventory

    @cached_property
    def _inventory(self) -> Inventory:
        return with_dtypes(inspect_model(self.model, name=self.name), self._fp32_names())

    @property
    def in_memory(self) -> bool:
        """Whether the model is one that a callable returned: its tensors have their dtypes, whatever config says."""
        return self.folder is None and self.hub is None

    def encoded_dtype(self, name: str) -> torch.dtype:
        """The dtype that a weight is cast to before it is encoded."""
        return self.tensors[name].dtype if self.in_memory else self.dtype

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype in which a checkpoint stores a tensor of the model.

        transformers' own plan: float32 where the model declares it, else the dtype of the model's tensor.
        """
        tensor = self.tensors[name]
        return torch.float32 if tensor.is_floating_point() and self._kept(name) else tensor.dtype

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the model's state dict; what else a module may put there is no weight."""
        state = self.model.state_dict(keep_vars=True)
        return {name: each for name, each in state.items() if isinstance(each, torch.Tensor)}

    def _fp32_names(self) -> dict[str, str]:
        return {
            name: "float32" for name, tensor in self.tensors.items() if tensor.is_floating_point() and self._kept(name)
        }

    def _kept(self, name: str) -> bool:
        """Whether transformers keeps a tensor in float32 when it loads the model in `dtype`."""
        return self._kept_pattern is not None and self._kept_pattern.search(name) is not None

    @cached_property
    def _kept_pattern(self) -> re.Pattern[str] | None:
        get_plan = None if self.in_memory else getattr(self.model, "_get_dtype_plan", None)
        patterns = list(get_plan(self.dtype)) if get_plan else []
        if not patterns:
            return None
        from transformers.core_model_loading import build_glob_alternation

        return cast(re.Pattern[str], build_glob_alternation(patterns)[0])


def build_skeleton(
    model: str,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    real: bool = False,
) -> Skeleton:
    """Build a model on meta; no weight is read, and for a folder its config.json alone suffices.

    `real` is for a callable, whose weights are nowhere but in memory: it is called as it is, not on meta. `revision`
    and `token` are for a Hub id; without a token, HF_TOKEN or what `hf auth login` stored is used.

    Raises:
        ModelError: there is no such model, its config cannot be read, or its class cannot be built.
        CheckpointError: the folder's weights cannot be trusted.
    """
    path = Path(model)
    exists = _exists(path)
    if not exists and is_callable_name(model):
        return _from_callable(model, real=real)
    folder = path if exists and path.is_dir() else None
    if folder is None and (exists or _looks_like_path(model)):
        raise _no_such_folder(model)
    hub = None if folder else _open_hub(model, revision=revision, token=token)
    config = _config(model, folder, hub, trust_remote_code=trust_remote_code)
    dtype = _dtype(config, model, folder, hub)
    found = _remote_class(config, model, hub) if trust_remote_code else None
    with _building(model, dtype), torch.device("meta"):
        built = (found or _model_class(config, model))(config)
    return Skeleton(model, built.eval(), dtype, folder, hub)


def _open_hub(model: str, *, revision: str | None, token: str | bool | None) -> HubModel:
    from rulequant.torch.hub.source import open_hub_model

    try:
        return open_hub_model(model, revision=revision, token=token)
    except ModelError as error:
        raise ModelError(error.message, remedy=_near(Path(model)) or error.remedy) from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a name
        return False


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
    return ModelError(f"{model}: no such folder", remedy=_near(path) or "give a folder that holds config.json")


def _near(path: Path) -> str | None:
    """The folders that a misspelt path may mean."""
    try:
        return did_you_mean(path.name, [each.name for each in path.parent.iterdir() if each.is_dir()])
    except OSError:
        return None


def _from_callable(model: str, *, real: bool) -> Skeleton:
    """Call `package.module:callable` for a model; on meta unless `real`, or unless it puts its tensors elsewhere."""
    with nullcontext() if real else torch.device("meta"):
        built = call_for_model(model)
    first = next((each for each in built.parameters() if each.is_floating_point()), None)
    return Skeleton(model, built.eval(), first.dtype if first is not None else torch.float32)


def _config(model: str, folder: Path | None, hub: HubModel | None, *, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    _check_config_file(folder or cast("HubModel", hub).folder, trust_remote_code=trust_remote_code)
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code, **_at(hub))
    except Exception as error:
        raise ModelError(f"{model}: the config cannot be read: {_gist(error)}") from error


def _at(hub: HubModel | None) -> dict[str, Any]:
    """What transformers takes to look at the same commit, with the same token."""
    return {"revision": hub.commit, "token": hub.token} if hub else {}


def _gist(error: Exception) -> str:
    """The first sentence of a message of many lines."""
    lines = [each.strip() for each in str(error).splitlines() if each.strip()] or [type(error).__name__]
    end = next((index for index, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return " ".join(lines[: end + 1])


def _check_config_file(folder: Path, *, trust_remote_code: bool) -> None:
    path = folder / "config.json"
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise ModelError(f"{path} is not a file")
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
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a JSON object")
    _check_model_type(path, data, trust_remote_code=trust_remote_code)


def _check_model_type(path: Path, data: dict[str, Any], *, trust_remote_code: bool) -> None:
    import transformers

    known, model_type = list(transformers.CONFIG_MAPPING), data.get("model_type")
    if model_type in known or ("auto_map" in data and trust_remote_code):
        return
    if "auto_map" in data:
        raise ModelError(
            f"{path}: the model `{model_type}` brings its own code",
            remedy="read it, then pass --trust-remote-code",
        )
    if not isinstance(model_type, str):
        found = f"is {model_type!r}" if "model_type" in data else "is missing"
        raise ModelError(
            f"{path}: `model_type`, the name of an architecture of transformers, {found}",
            remedy="give the folder of a transformers checkpoint",
        )
    near = did_you_mean(model_type, known)
    raise ModelError(
        f"{path}: transformers does not know the model_type {model_type!r}",
        remedy=near or f"transformers {transformers.__version__} has {len(known)} types; a newer one may have it",
    )


def _remote_class(config: Any, model: str, hub: HubModel | None) -> Any:
    """The class that a checkpoint brings along: the one of its `architectures`, or else for causal language models."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    auto_map = getattr(config, "auto_map", None) or {}
    references = {key: each for key, each in auto_map.items() if key.startswith("AutoModel") and isinstance(each, str)}
    saved = [each for each in references.values() if each.rpartition(".")[2] in (config.architectures or ())]
    defaults = [references[key] for key in ("AutoModelForCausalLM", "AutoModel") if key in references]
    reference = next(iter([*saved, *defaults]), None)
    if reference is None:
        return None
    try:
        return get_class_from_dynamic_module(reference, model, **_at(hub))
    except Exception as error:
        raise ModelError(f"{model}: its code cannot be loaded: {type(error).__name__}: {_gist(error)}") from error


def _model_class(config: Any, model: str) -> Any:
    """The class that the checkpoint was saved from, or the one that transformers would choose for the config."""
    import transformers

    declared = getattr(config, "architectures", None) or []
    if not isinstance(declared, list | tuple) or not all(isinstance(each, str) for each in declared):
        raise ModelError(f"{model}: `architectures` in config.json is {declared!r}, not a list of class names")
    if not declared:
        return _default_class(config, model)
    found = getattr(transformers, declared[0], None)
    if not (isinstance(found, type) and hasattr(found, "base_model_prefix")):
        classes = [each for each in dir(transformers) if _MODEL_CLASS.fullmatch(each)]
        raise ModelError(
            f"{model}: transformers {transformers.__version__} has no model class {declared[0]!r}",
            remedy=did_you_mean(declared[0], classes),
        )
    return found


def _default_class(config: Any, model: str) -> Any:
    import transformers

    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModel):
        if type(config) in auto._model_mapping:
            found = auto._model_mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise ModelError(
        f"{model}: config.json names no `architectures`, and transformers has no default for {config.model_type}",
        remedy='add the class that the weights are of, such as `"architectures": ["BertModel"]`',
    )


def _dtype(config: Any, model: str, folder: Path | None, hub: HubModel | None) -> torch.dtype:
    """What `from_pretrained` loads in: the config's dtype, else that of the first float tensor, else float32.

    The choice is written into the config and its parts, as transformers does.
    """
    declared = getattr(config, "dtype", None)
    declared = getattr(torch, declared, None) if isinstance(declared, str) else declared
    dtype = declared or (_hub_dtype(hub) if hub else _checkpoint_dtype(folder)) or torch.float32
    if dtype not in _BUILDABLE:
        allowed = ", ".join(str(each).removeprefix("torch.") for each in _BUILDABLE)
        raise ModelError(
            f"{model}: the config's dtype is {dtype}, in which no model is built", remedy=f"one of {allowed}"
        )
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


def _hub_dtype(hub: HubModel) -> torch.dtype | None:
    """As `_checkpoint_dtype`, for weights that may still be remote: their headers alone are asked for."""
    from rulequant.torch.hub.source import remote_dtypes

    try:
        cached = _checkpoint_dtype(hub.folder)
    except CheckpointError:  # the cache has a part of them
        cached = None
    return cached or next((_FLOATS[each] for each in remote_dtypes(hub) if each in _FLOATS), None)


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
