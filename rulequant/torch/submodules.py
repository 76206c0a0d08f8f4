"""A module by its name, as `named_modules()` gives it."""

from __future__ import annotations

from functools import reduce
from typing import cast

from torch import nn

__all__ = ["submodule"]


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The module of a name; the model itself for an empty one.

    `get_submodule` looks attributes up, and finds the method where a module is registered as `half` or `type`.

    Raises:
        KeyError: there is none.
    """
    return reduce(lambda parent, each: cast(nn.Module, parent._modules[each]), name.split(".") if name else (), model)
