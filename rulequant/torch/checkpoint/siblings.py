"""The other model classes that transformers has for a config: they too load the folder that apply writes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

__all__ = ["class_names", "sibling_models"]


def sibling_models(model: nn.Module) -> Iterator[nn.Module]:
    """Each of the other classes of the model's config, built on meta: the bare model, and those with other heads.

    A class that cannot be built from this config is left out: nobody can load it either.
    """
    config = getattr(model, "config", None)
    if not hasattr(type(model), "base_model_prefix") or config is None:
        return
    import transformers

    for name in class_names(config):
        found = getattr(transformers, name, None)
        if found is None or found is type(model) or getattr(found, "config_class", None) is not type(config):
            continue
        built = _build(found, config)
        if built is not None:
            yield built


def class_names(config: Any) -> list[str]:
    """The names of the classes that transformers' auto classes know for a config, sorted."""
    from transformers.models.auto import modeling_auto

    found: set[str] = set()
    for attribute, mapping in vars(modeling_auto).items():
        if attribute.startswith("MODEL") and attribute.endswith("_MAPPING_NAMES"):
            known = mapping.get(getattr(config, "model_type", None)) or ()
            found |= {known} if isinstance(known, str) else {each for each in known if each}
    return sorted(found)


def _build(model_class: Any, config: Any) -> nn.Module | None:
    try:
        with _quietly(), torch.device("meta"):
            return cast(nn.Module, model_class(copy.deepcopy(config)))
    except Exception:  # whatever a model class raises for a config that was not made for it
        return None


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the advice that model classes give to those who build them."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
