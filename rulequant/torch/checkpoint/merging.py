"""Experts that a checkpoint holds one by one, and the fused tensor that transformers merges them into while it loads.

Where the first operation of the converter stacks the experts, and the others only concatenate and transpose inside
each, the place of every source tensor in the fused one is known beforehand. Other converters are run as they are.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.header import TensorEntry
from rulequant.torch.checkpoint.keys import Conversion
from rulequant.torch.checkpoint.step import Block, Merge

if TYPE_CHECKING:
    import torch

__all__ = ["expert_blocks", "merge_of", "merge_whole"]


@dataclass(frozen=True)
class _Matrix:
    """One expert on the way through the converter."""

    rows: int
    columns: int
    blocks: tuple[Block, ...]


def expert_blocks(
    entries: Sequence[TensorEntry], conversions: Sequence[Conversion], shape: tuple[int, ...]
) -> tuple[Block, ...] | None:
    """The places of the source tensors in the fused one, [experts * rows, columns]; None for other converters.

    Raises:
        CheckpointError: the source has another number of experts, or of other sizes.
    """
    operations = conversions[0].converter.operations
    if len(shape) != 3 or any(len(each.shape) != 2 for each in entries) or not _stacks(operations[0]):
        return None
    by_pattern = _by_pattern(entries, conversions)
    counts = {len(each) for each in by_pattern.values()}
    if counts != {shape[0]}:
        raise CheckpointError(
            f"`{printable(entries[0].name)}` and its like are {sorted(counts)} tensors, "
            f"config.json asks for {shape[0]} experts",
            remedy="the checkpoint is incomplete, or of another model than config.json",
        )
    found: list[Block] = []
    for index in range(shape[0]):
        merged: list[_Matrix] | None = [_whole(each[index]) for each in by_pattern.values()]
        for operation in operations[1:]:
            merged = _applied(operation, merged, shape) if merged else None
        if merged is None or len(merged) != 1:
            return None
        (expert,) = merged
        _check_shape((shape[0], expert.rows, expert.columns), shape, entries[0])
        found += [replace(each, row=each.row + index * expert.rows) for each in expert.blocks]
    return tuple(found)


def merge_of(conversions: Sequence[Conversion]) -> Merge:
    """The converter in a form that can be handed on."""
    return Merge(pickle.dumps(conversions[0].converter), tuple(each.pattern for each in conversions))


def merge_whole(
    entries: Sequence[TensorEntry],
    merge: Merge,
    read: Callable[[TensorEntry], torch.Tensor],
    shape: tuple[int, ...],
) -> torch.Tensor:
    """The fused tensor by transformers' own converter; it exists in full precision for a moment.

    Raises:
        CheckpointError: the source does not make up the model's tensor.
    """
    # Our own bytes, from `merge_of`; unpickling them imports transformers.
    converter: Any = pickle.loads(merge.converter)  # noqa: S301
    parts: dict[str, list[torch.Tensor]] = {}
    for entry, pattern in zip(entries, merge.patterns, strict=True):
        parts.setdefault(pattern, []).append(read(entry))
    collected: Any = {pattern: parts[pattern] for pattern in _in_order(converter, parts)}
    for operation in converter.operations:
        collected = operation.convert(
            collected,
            source_patterns=converter.source_patterns,
            target_patterns=converter.target_patterns,
            model=_Target(shape),
            full_layer_name="",
        )
    values = list(collected.values())
    value = cast("torch.Tensor", values[0][0] if isinstance(values[0], list) else values[0])
    _check_shape(tuple(value.shape), shape, entries[0])
    return value


@dataclass(frozen=True)
class _Target:
    """What a converter asks a model for: the shape that comes out. By it Qwen3-VL's knows whether to transpose."""

    shape: tuple[int, ...]

    def get_parameter(self, name: str) -> _Target:
        """As `nn.Module.get_parameter`, of the one parameter that there is."""
        del name
        return self


def _by_pattern(entries: Sequence[TensorEntry], conversions: Sequence[Conversion]) -> dict[str, list[TensorEntry]]:
    found: dict[str, list[TensorEntry]] = {}
    for entry, conversion in zip(entries, conversions, strict=True):
        found.setdefault(conversion.pattern, []).append(entry)
    return {pattern: found[pattern] for pattern in _in_order(conversions[0].converter, found)}


def _in_order(converter: Any, found: Collection[str]) -> list[str]:
    """The patterns in the order of the converter, which is that of the parts in the fused tensor."""
    return [pattern for pattern in converter.source_patterns if pattern in found]


def _stacks(operation: Any) -> bool:
    return type(operation).__name__ == "MergeModulelist" and operation.dim == 0


def _whole(entry: TensorEntry) -> _Matrix:
    rows, columns = entry.shape
    return _Matrix(rows, columns, (Block(entry, rows, columns, stride=columns),))


def _applied(operation: Any, matrices: list[_Matrix], shape: tuple[int, ...]) -> list[_Matrix] | None:
    """What an operation on the stack of experts makes of one; None for what works otherwise than inside each."""
    name = type(operation).__name__
    if name == "Concatenate" and operation.dim in (1, 2):
        return [_side_by_side(matrices, down=operation.dim == 1)]
    if name != "Transpose" or {operation.dim0, operation.dim1} != {1, 2} or len(matrices) != 1:
        return None
    (only,) = matrices
    fits = (only.rows, only.columns) == shape[1:]
    return matrices if fits and getattr(operation, "check_dims", False) else [_transposed(only)]


def _side_by_side(matrices: list[_Matrix], *, down: bool) -> _Matrix:
    if len({each.columns if down else each.rows for each in matrices}) != 1:
        sizes = ", ".join(str([each.rows, each.columns]) for each in matrices)
        raise CheckpointError(
            f"`{printable(matrices[0].blocks[0].entry.name)}` and its like have the shapes {sizes}, "
            "which do not fit together",
            remedy="the weights are of another model than config.json",
        )
    rows = columns = 0
    blocks: list[Block] = []
    for each in matrices:
        blocks += [
            replace(block, row=block.row + rows * down, column=block.column + columns * (not down))
            for block in each.blocks
        ]
        rows, columns = (rows + each.rows, each.columns) if down else (each.rows, columns + each.columns)
    return _Matrix(rows, columns, tuple(blocks))


def _transposed(matrix: _Matrix) -> _Matrix:
    turned = [
        replace(block, row=block.column, column=block.row, transposed=not block.transposed) for block in matrix.blocks
    ]
    return _Matrix(matrix.columns, matrix.rows, tuple(turned))


def _check_shape(found: tuple[int, ...], shape: tuple[int, ...], entry: TensorEntry) -> None:
    if found != shape:
        raise CheckpointError(
            f"`{printable(entry.name)}` and its like merge to the shape {list(found)}, "
            f"config.json asks for {list(shape)}",
            remedy="the weights are of another model than config.json",
        )
