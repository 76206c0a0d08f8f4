"""A model on meta, from what the user calls it: a checkpoint folder, a Hub id, or `package.module:callable`."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from rulequant.diagnostics import did_you_mean
from rulequant.errors import CheckpointError, ModelError, RulequantError
from rulequant.inventory import Inventory
from rulequant.torch.calling import call_for_model, is_callable_name
from rulequant.torch.checkpoint.layout import COMPONENT_STEM
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.diffusion import build_component, float_dtypes, is_component, stored_dtypes
from rulequant.torch.inspect import inspect_model, with_dtypes
from rulequant.torch.model_config import config_data, load_config, model_class, remote_class
from rulequant.torch.placement import kept_in_float32

if TYPE_CHECKING:
    from rulequant.torch.hub.source import HubModel

__all__ = ["Skeleton", "build_skeleton", "hub_model"]

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BUILDABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    dtypes: Mapping[str, torch.dtype] | None = None
    """What the files of a model of diffusers hold: they say the dtype, and its config does not."""

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
        found = replace(inspect_model(self.model, name=self.name), called=self.in_memory)
        if self.dtypes is None:
            return with_dtypes(found, self._fp32_names())
        names = {name: str(dtype).removeprefix("torch.") for name, dtype in self.dtypes.items()}
        return replace(with_dtypes(found, names), model_type=found.architecture)

    @property
    def in_memory(self) -> bool:
        """Whether the model is one that a callable returned: its tensors have their dtypes, whatever config says."""
        return self.folder is None and self.hub is None

    def encoded_dtype(self, name: str) -> torch.dtype:
        """The dtype that a weight is cast to before it is encoded."""
        if self.dtypes is not None:
            return self.dtypes.get(name, self.dtype)
        return self.tensors[name].dtype if self.in_memory else self.dtype

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype in which a checkpoint stores a tensor of the model.

        transformers' own plan: float32 where the model declares it, else the dtype of the model's tensor.
        """
        tensor = self.tensors[name]
        if self.dtypes is not None:
            return self.dtypes.get(name, tensor.dtype)
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
        return None if self.in_memory else kept_in_float32(self.model, self.dtype)


def build_skeleton(
    model: str,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    real: bool = False,
    hub: HubModel | None = None,
) -> Skeleton:
    """Build a model on meta; no weight is read, and for a folder its config.json alone suffices.

    `real` is for a callable, whose weights are nowhere but in memory: it is called as it is, not on meta. `revision`
    and `token` are for a Hub id; without a token, HF_TOKEN or what `hf auth login` stored is used. `hub` is what
    `hub_model` found already.

    Raises:
        ModelError: there is no such model, its config cannot be read, or its class cannot be built.
        CheckpointError: the folder's weights cannot be trusted.
    """
    hub = hub or hub_model(model, revision=revision, token=token)
    if hub is None and is_callable_name(model) and not _exists(Path(model)):
        return _from_callable(model, real=real)
    if hub and hub.is_pipeline:
        raise ModelError(
            f"{model} is a pipeline of several models", remedy=f"name one of its components: {model}/COMPONENT"
        )
    folder = None if hub else Path(model)
    data = config_data(hub.folder if hub else Path(model))
    if is_component(data):
        return _from_component(model, folder, hub, data)
    config = load_config(model, folder, hub, trust_remote_code=trust_remote_code)
    dtype = _dtype(config, model, folder, hub)
    found = remote_class(config, model, hub) if trust_remote_code else None
    with _building(model, dtype), torch.device("meta"):
        built = (found or model_class(config, model))(config)
    return Skeleton(model, built.eval(), dtype, folder, hub)


def hub_model(model: str, *, revision: str | None = None, token: str | bool | None = None) -> HubModel | None:
    """What MODEL is on the Hub; None for a folder and a callable.

    Raises:
        ModelError: it is neither, and the Hub has no such model.
    """
    path = Path(model)
    exists = _exists(path)
    if (exists and path.is_dir()) or (not exists and is_callable_name(model)):
        return None
    if exists or _looks_like_path(model):
        raise _no_such_folder(model)
    repo_id, component = _component_of(model)
    if component is None:
        return _open_hub(model, revision=revision, token=token)
    try:
        found = _open_hub(repo_id, revision=revision, token=token)
        return found.component(component)
    except ModelError as error:
        local = _no_such_folder(model)
        remedy = f"{local.remedy}\n  nor is it a component of a pipeline on the Hub: {error.message}"
        raise ModelError(local.message, remedy=remedy) from error


def _component_of(model: str) -> tuple[str, str | None]:
    """`org/name/component` taken apart."""
    parts = model.split("/")
    return (model, None) if len(parts) < 3 else ("/".join(parts[:2]), parts[2])


def _from_component(model: str, folder: Path | None, hub: HubModel | None, config: dict[str, Any]) -> Skeleton:
    """A model of diffusers, in the dtype of its first float tensor, as its loader does where it is told no other."""
    stored = _remote_or_cached(hub) if hub else stored_dtypes(cast(Path, folder))
    built = _build_component(model, config, torch.float32)
    # Beside an encoded weight there are floats that are none of the model's.
    dtypes = {name: stored[name] for name in built.state_dict() if name in stored}
    dtype = next((each for name, each in stored.items() if name in dtypes), torch.float32)
    if dtype != torch.float32:
        built = _build_component(model, config, dtype)
    return Skeleton(model, built.eval(), dtype, folder, hub, dtypes=dtypes)


def _remote_or_cached(hub: HubModel) -> dict[str, torch.dtype]:
    """As `stored_dtypes`, for weights that may still be remote: their headers alone are asked for."""
    from rulequant.torch.hub.source import remote_dtypes

    try:
        cached = stored_dtypes(hub.folder)
    except CheckpointError:  # the cache has a part of them
        cached = {}
    return cached or float_dtypes(remote_dtypes(hub, COMPONENT_STEM))


def _build_component(model: str, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    with _building(model, dtype), torch.device("meta"):
        return build_component(model, config)


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
    """Whether it can be nothing on the Hub, where `org/name/component` is the longest name."""
    if model.startswith((".", "/", "~")) or model.endswith((".json", ".safetensors")):
        return True
    parts = model.split("/")
    return len(parts) > 3 or (len(parts) == 3 and not parts[2].isidentifier())


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
    return cached or next((_FLOATS[dtype] for _, dtype in remote_dtypes(hub) if dtype in _FLOATS), None)


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
