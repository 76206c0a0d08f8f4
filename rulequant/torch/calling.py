"""`package.module:callable`: imported and called for a model."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from torch import nn

from rulequant.diagnostics import did_you_mean
from rulequant.errors import ModelError, RulequantError

__all__ = ["call_for_model", "is_callable_name"]

_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_callable_name(name: str) -> bool:
    """Whether a name has the form `package.module:callable`."""
    return _CALLABLE.fullmatch(name) is not None


def call_for_model(name: str) -> nn.Module:
    """The model that a callable returns, wherever it puts its tensors.

    Raises:
        ModelError: it cannot be imported or called, or returns no model.
    """
    target = _import(name)
    try:
        built = target()
    except RulequantError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{name} cannot be called: {type(error).__name__}: {error}") from error
    if not isinstance(built, nn.Module):
        raise ModelError(f"{name} returns {type(built).__name__}, not an nn.Module")
    return built


def _import(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:  # as python -m and pytest do: the user's own module lies here
        sys.path.insert(0, str(Path.cwd()))
    try:
        target: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{module_name} cannot be imported: {type(error).__name__}: {error}",
            remedy="install it, or run in the folder that holds it",
        ) from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise ModelError(f"{module_name} has no `{attribute}`", remedy=did_you_mean(part, dir(target)))
        target = getattr(target, part)
    return target
