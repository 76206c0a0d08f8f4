"""Modules given another class: a subclass of their own, made on the fly, of which copies and pickles work.

A quantized layer that keeps what its class does is the module's own state under such a subclass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["copy_as", "derived_class"]

_INSTANCE_FORWARD = ("forward", "_old_forward", "_hf_hook")
"""What accelerate hangs on an instance to run the forward of just that instance."""


def derived_class(owner: Any, bases: tuple[Any, ...], contents: dict[str, Any], again: tuple[Any, ...]) -> Any:
    """A subclass with the name of the class that it is derived from.

    `again` is a function that can be imported by name and its arguments, which give the same class in another process.
    """
    by_name = {"__module__": owner.__module__, "__qualname__": owner.__qualname__}
    return type(owner.__name__, bases, by_name | {"__reduce_ex__": _reduce, "_rulequant_again": again} | contents)


def copy_as(module: nn.Module, owner: Any) -> nn.Module:
    """The module's state under another class: its tensors are the same objects, what is added to it is not shared."""
    copied: nn.Module = object.__new__(owner)
    for key, value in vars(module).items():
        if key not in _INSTANCE_FORWARD:
            copied.__dict__[key] = value.copy() if isinstance(value, dict) else value
    return copied


def _reduce(self: Any, protocol: int) -> Any:
    """Pickle and deepcopy by what makes the class, since this one cannot be imported by name."""
    del protocol
    make, *arguments = type(self)._rulequant_again
    return _blank, (make, *arguments), self.__dict__


def _blank(make: Callable[..., Any], *arguments: Any) -> nn.Module:
    blank: nn.Module = object.__new__(make(*arguments))
    return blank
