"""Layer factories: for each method, how a layer is built and how its weight is encoded."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from rulequant.errors import RulequantError, UsageError
from rulequant.inventory import Kind
from rulequant.schemes import Scheme

__all__ = ["ENTRY_POINTS", "LayerFactory", "NotFiniteError", "factory_for"]

ENTRY_POINTS = "rulequant.factories"


class NotFiniteError(RulequantError):
    """A weight holds NaN, or a value too large for the method."""


@runtime_checkable
class LayerFactory(Protocol):
    """What a method provides. One executor swaps layers in memory with it, the other writes a checkpoint with it.

    Why a module is unsupported and the exact bytes it takes are the scheme's to say, without torch.
    """

    def build(self, module: nn.Module, scheme: Scheme) -> nn.Module:
        """The layer that replaces a module: same features, same bias, its weight on meta and not quantized."""

    def encode(self, weight: Tensor, kind: Kind, scheme: Scheme) -> dict[str, Tensor]:
        """The tensors that a checkpoint holds in place of a weight, by name relative to the module.

        `weight` is as the module holds it ([in, out] where `kind` is `conv1d`).

        Raises:
            NotFiniteError: the weight holds a value that the method cannot encode.
        """

    def attach(self, layer: nn.Module, encoded: dict[str, Tensor]) -> None:
        """Give a built layer its encoded weight."""

    def decode(self, encoded: dict[str, Tensor], kind: Kind) -> Tensor:
        """The weight that the encoded tensors stand for, in the orientation of the module they replace."""


@cache
def factory_for(method: str) -> LayerFactory:
    """The factory of a method, from the installed packages (rulequant's own are found in the same way).

    Raises:
        UsageError: no package provides one, or what it provides is no factory.
    """
    entries = metadata.entry_points(group=ENTRY_POINTS, name=method)
    if not entries:
        known = sorted({entry.name for entry in metadata.entry_points(group=ENTRY_POINTS)})
        raise UsageError(
            f"no installed package provides a layer factory for the method `{method}`",
            remedy=f"installed methods: {', '.join(known) or 'none; is rulequant itself installed?'}",
        )
    factory: Any = next(iter(entries)).load()
    factory = factory() if isinstance(factory, type) else factory
    if not isinstance(factory, LayerFactory):
        raise UsageError(f"the entry point `{method}` of {ENTRY_POINTS} gives {factory!r}, which is no LayerFactory")
    return factory
