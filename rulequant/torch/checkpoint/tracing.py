"""What transformers makes of source tensors while it loads them: its own operations, run on where the values lie.

An operation that only rearranges values (splits, joins, stacks, permutes, reshapes) is followed, whatever its name is;
one that computes new ones cannot be.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.boxes import Layout, ScatteredError
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.header import TensorEntry
from rulequant.torch.checkpoint.keys import Conversion

__all__ = ["converted_layouts"]


def converted_layouts(
    entries: Sequence[TensorEntry], conversions: Sequence[Conversion], first: str, model: Any
) -> dict[str, Layout]:
    """The tensors of the model that a converter makes of source tensors, in the order of the source.

    `first` is the first of them by name, as the renamed keys have it.

    Raises:
        CheckpointError: the converter computes, or the source tensors do not fit together.
    """
    converter = copy.deepcopy(conversions[0].converter)
    for entry, conversion in zip(entries, conversions, strict=True):
        converter.add_tensor(first, entry.name, conversion.pattern, _Traced(Layout.of(entry)))
    try:
        made = converter.convert(first, model=model, config=model.config)
    except (NotImplementedError, ScatteredError) as error:
        raise CheckpointError(
            f"{_these(entries)}: transformers computes weights of the model from it while it loads "
            f"({_named(converter)}), so they are not quantized alone",
            remedy=f"skip the module of `{first}` with a reason, "
            "or apply in memory: rulequant.torch.apply(model, rules)",
        ) from error
    except Exception as error:  # whatever its operations raise for sizes that they do not expect
        raise CheckpointError(
            f"{_these(entries)}: transformers cannot convert what is there ({_named(converter)}): {error}",
            remedy="the checkpoint is incomplete, or of another model than config.json",
        ) from error
    tensors = {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
    return {name: value.places for name, value in tensors.items() if isinstance(value, _Traced)}


def _these(entries: Sequence[TensorEntry]) -> str:
    return f"`{printable(entries[0].name)}`{' and its like' if len(entries) > 1 else ''}"


def _named(converter: Any) -> str:
    return ", ".join(type(each).__name__ for each in converter.operations)


class _Traced(Tensor):
    """A tensor without values that knows where they lie."""

    places: Layout

    @staticmethod
    def __new__(cls, layout: Layout) -> _Traced:
        """Contiguous to torch, so that nothing is copied: in what order values lie is the layout's concern."""
        made: _Traced = Tensor._make_wrapper_subclass(cls, layout.shape)
        made.places = layout
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # whose own types say no more
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        follow = _FOLLOWED.get(function)
        if follow is None:
            raise NotImplementedError(f"{function} is not followed")
        found = follow(*_layouts(args), **_known(kwargs or {}))
        return _Traced(found) if isinstance(found, Layout) else [_Traced(each) for each in found]


def _layouts(args: tuple[Any, ...]) -> list[Any]:
    return [
        each.places
        if isinstance(each, _Traced)
        else [value.places if isinstance(value, _Traced) else value for value in each]
        if isinstance(each, list | tuple)
        else each
        for each in args
    ]


def _known(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that say where values go; what else there may be says how they are stored."""
    return {name: value for name, value in kwargs.items() if name in {"dim", "dim0", "dim1", "start", "end", "step"}}


def _axis(layout: Layout, dim: int, *, more: int = 0) -> int:
    return dim % (len(layout.shape) + more)


def _same(layout: Layout) -> Layout:
    return layout


def _viewed(layout: Layout, shape: Sequence[int]) -> Layout:
    known = 1
    for size in shape:
        known *= size if size != -1 else 1
    numel = torch.Size(layout.shape).numel()
    return layout.reshaped([numel // known if size == -1 else size for size in shape])


def _transposed(layout: Layout, dim0: int, dim1: int) -> Layout:
    axes = list(range(len(layout.shape)))
    one, other = _axis(layout, dim0), _axis(layout, dim1)
    axes[one], axes[other] = axes[other], axes[one]
    return layout.permuted(axes)


def _turned(layout: Layout) -> Layout:
    return layout.permuted(range(len(layout.shape))[::-1])


def _permuted(layout: Layout, dims: Sequence[int]) -> Layout:
    return layout.permuted([_axis(layout, each) for each in dims])


def _joined(layouts: Sequence[Layout], dim: int = 0) -> Layout:
    return Layout.joined(layouts, _axis(layouts[0], dim))


def _stacked(layouts: Sequence[Layout], dim: int = 0) -> Layout:
    axis = _axis(layouts[0], dim, more=1)
    return Layout.joined([_unsqueezed(each, axis) for each in layouts], axis)


def _unsqueezed(layout: Layout, dim: int) -> Layout:
    axis = _axis(layout, dim, more=1)
    return layout.reshaped((*layout.shape[:axis], 1, *layout.shape[axis:]))


def _squeezed(layout: Layout, dim: int | Sequence[int]) -> Layout:
    axes = {_axis(layout, each) for each in ([dim] if isinstance(dim, int) else dim)}
    return layout.reshaped([size for axis, size in enumerate(layout.shape) if axis not in axes or size != 1])


def _parted(layout: Layout, sizes: int | Sequence[int], dim: int = 0) -> list[Layout]:
    axis = _axis(layout, dim)
    whole, parts, at = layout.shape[axis], [], 0
    wanted = [min(sizes, whole - start) for start in range(0, whole, sizes)] if isinstance(sizes, int) else sizes
    if sum(wanted) != whole:
        raise ValueError(f"{list(wanted)} do not add up to {whole}")
    for size in wanted:
        parts.append(layout.part(axis, at, at + size))
        at += size
    return parts


def _chosen(layout: Layout, dim: int, index: int) -> Layout:
    axis = _axis(layout, dim)
    at = index % layout.shape[axis]
    return _squeezed(layout.part(axis, at, at + 1), axis)


def _unbound(layout: Layout, dim: int = 0) -> list[Layout]:
    return [_chosen(layout, dim, index) for index in range(layout.shape[_axis(layout, dim)])]


def _sliced(layout: Layout, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Layout:
    if step != 1:
        raise NotImplementedError("a slice with a step is not followed")
    axis = _axis(layout, dim)
    low, high, _ = slice(start, end).indices(layout.shape[axis])
    return layout.part(axis, low, max(low, high))


_ATEN = torch.ops.aten
_FOLLOWED: dict[Any, Callable[..., Layout | list[Layout]]] = {
    _ATEN.alias.default: _same,
    _ATEN.cat.default: _joined,
    _ATEN.clone.default: _same,
    _ATEN.detach.default: _same,
    _ATEN.permute.default: _permuted,
    _ATEN.select.int: _chosen,
    _ATEN.slice.Tensor: _sliced,
    _ATEN.split.Tensor: _parted,
    _ATEN.split_with_sizes.default: _parted,
    _ATEN.squeeze.dim: _squeezed,
    _ATEN.squeeze.dims: _squeezed,
    _ATEN.stack.default: _stacked,
    _ATEN.t.default: _turned,
    _ATEN.transpose.int: _transposed,
    _ATEN.unbind.int: _unbound,
    _ATEN.unsqueeze.default: _unsqueezed,
    _ATEN._unsafe_view.default: _viewed,
    _ATEN.view.default: _viewed,
}
"""What torch's operations come down to, as far as they only rearrange."""
