"""Layer factories: for each method, how a layer is built and how its weight is encoded.

Importing this imports no torch: a process that only encodes does without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from rulequant.errors import RulequantError, UsageError
from rulequant.inventory import Kind
from rulequant.schemes import Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from rulequant.torch.factories.slices import SliceEncoders
    from rulequant.torch.factories.spans import EncodedParts

__all__ = [
    "ENTRY_POINTS",
    "SLICES",
    "ExpertsFactory",
    "LayerFactory",
    "NotFiniteError",
    "SharingFactory",
    "SpanFactory",
    "factory_for",
    "slices_for",
]

ENTRY_POINTS = "rulequant.factories"
SLICES = "rulequant.slices"
"""The entry points of what encodes weights slice by slice, without torch, for schemes that have a `slicing`."""


class NotFiniteError(RulequantError):
    """A weight holds NaN, or a value too large for the method."""


@runtime_checkable
class LayerFactory(Protocol):
    """What a method provides. One executor swaps layers in memory with it, the other writes a checkpoint with it.

    Why a module is unsupported and the exact bytes it takes are the scheme's to say, without torch.
    """

    tensor_names: tuple[str, ...]
    """Names of all tensors that `encode` may give, relative to a module, `weight` first; a loader collects them."""

    def build(self, module: nn.Module, scheme: Scheme) -> nn.Module:
        """The layer that replaces a module: same features, same bias, its weight on meta and not quantized."""

    def check(self, weight: Tensor, scheme: Scheme) -> None:
        """Refuse a weight that `encode` would refuse, without encoding it.

        Raises:
            NotFiniteError: the weight holds a value that the method cannot encode.
        """

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


@runtime_checkable
class SpanFactory(Protocol):
    """What a factory has as well, if it decodes weights span by span; without it a weight is decoded as a whole."""

    def span(self, parts: EncodedParts, start: int, stop: int, columns: int) -> dict[str, Tensor]:
        """The values [start, stop) of a weight [..., columns] as an encoded weight of its own, of any number of rows.

        Both are bounds of rows, and `start` is a multiple of 4096 or the first value of an expert.
        """


class SharingFactory(LayerFactory, Protocol):
    """A factory whose scheme says that it `shares`: of modules that share a weight the layers share the encoded one."""

    def share(self, layer: nn.Module, twin: nn.Module) -> None:
        """Give a built layer the very parameter that another one has as its encoded weight, and what belongs to it.

        Of fused experts both are the `ExpertWeights` of one parameter.
        """


class ExpertsFactory(LayerFactory, Protocol):
    """A factory whose scheme holds fused experts too: `build` gives the module with `ExpertWeights` children."""

    def encode_experts(
        self, slices: Iterable[Tensor], shape: torch.Size, dtype: torch.dtype, scheme: Scheme
    ) -> dict[str, Tensor]:
        """`encode` for a fused parameter of this shape and dtype, from the experts one by one, each [rows, columns].

        Raises:
            NotFiniteError: an expert holds a value that the method cannot encode.
        """


@cache
def factory_for(method: str) -> LayerFactory:
    """The factory of a method, from the installed packages (rulequant's own are found in the same way).

    Raises:
        UsageError: no package provides one or several do, or what it provides cannot be loaded or is no factory.
    """
    entry = _entry_point(ENTRY_POINTS, method)
    factory = _load(entry, method, lambda found: found() if isinstance(found, type) else found)
    if not isinstance(factory, LayerFactory):
        raise UsageError(
            f"the layer factory of `{method}` ({entry.value}) lacks {_lacking(factory)}",
            remedy="update or uninstall the package that provides it",
        )
    return factory


@cache
def slices_for(method: str) -> SliceEncoders:
    """What encodes weights of a method slice by slice, from the installed packages; its bytes are those of `encode`.

    Raises:
        UsageError: as `factory_for`.
    """
    return cast("SliceEncoders", _load(_entry_point(SLICES, method), method))


def _load(entry: metadata.EntryPoint, method: str, made: Callable[[Any], Any] = lambda found: found) -> Any:
    try:
        return made(entry.load())
    except Exception as error:  # a stranger's code: whatever it raises while it is imported
        missing = isinstance(error, ModuleNotFoundError)
        raise UsageError(
            f"the layer factory of `{method}` ({entry.value}) cannot be loaded: {type(error).__name__}: {error}",
            remedy="pip install 'rulequant[torch]'" if missing else "update or uninstall the package that provides it",
        ) from error


def _entry_point(group: str, method: str) -> metadata.EntryPoint:
    entries = {entry.value: entry for entry in metadata.entry_points(group=group, name=method)}
    if not entries:
        known = sorted({entry.name for entry in metadata.entry_points(group=group)})
        raise UsageError(
            f"no installed package provides a layer factory for the method `{method}`",
            remedy=f"installed methods: {', '.join(known) or 'none; is rulequant itself installed?'}",
        )
    if len(entries) > 1:
        raise UsageError(
            f"several packages provide a layer factory for the method `{method}`: {', '.join(sorted(entries))}",
            remedy="uninstall all but one",
        )
    return next(iter(entries.values()))


def _lacking(factory: object) -> str:
    needed = [*LayerFactory.__annotations__, *(name for name in vars(LayerFactory) if not name.startswith("_"))]
    return ", ".join(f"`{name}`" for name in needed if not hasattr(factory, name))
