"""config.json of a model of transformers, read and checked, and the class that it stands for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rulequant.diagnostics import did_you_mean
from rulequant.errors import ModelError

if TYPE_CHECKING:
    from rulequant.torch.hub.source import HubModel

__all__ = ["config_data", "load_config", "model_class", "remote_class"]

_MODEL_CLASS = re.compile(r"(?!Auto|PreTrained)\w+(Model|For[A-Z]\w+)")


def load_config(model: str, folder: Path | None, hub: HubModel | None, *, trust_remote_code: bool) -> Any:
    """The config of a folder, or of a model on the Hub.

    Raises:
        ModelError: it cannot be read, or is of no architecture that transformers knows.
    """
    from transformers import AutoConfig

    place = folder or cast("HubModel", hub).folder
    _check_model_type(place / "config.json", config_data(place), trust_remote_code=trust_remote_code)
    try:
        return AutoConfig.from_pretrained(
            hub.repo_id if hub else model, trust_remote_code=trust_remote_code, **_at(hub)
        )
    except Exception as error:
        raise ModelError(f"{model}: the config cannot be read: {_gist(error)}") from error


def _at(hub: HubModel | None) -> dict[str, Any]:
    """What transformers takes to look at the same commit, with the same token."""
    if hub is None:
        return {}
    where = {"subfolder": hub.subfolder} if hub.subfolder else {}
    return {"revision": hub.commit, "token": hub.token, **where}


def _gist(error: Exception) -> str:
    """The first sentence of a message of many lines."""
    lines = [each.strip() for each in str(error).splitlines() if each.strip()] or [type(error).__name__]
    end = next((index for index, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return " ".join(lines[: end + 1])


def config_data(folder: Path) -> dict[str, Any]:
    """The data of config.json."""
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
    return data


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


def remote_class(config: Any, model: str, hub: HubModel | None) -> Any:
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
        return get_class_from_dynamic_module(reference, hub.repo_id if hub else model, **_at(hub))
    except Exception as error:
        raise ModelError(f"{model}: its code cannot be loaded: {type(error).__name__}: {_gist(error)}") from error


def model_class(config: Any, model: str) -> Any:
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
