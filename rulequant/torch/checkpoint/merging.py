"""Experts that a checkpoint holds one by one, merged as transformers merges them while it loads.

The converters are transformers' own. Where the first operation stacks the experts along the first dimension, the whole
chain is run for one expert at a time, so that the fused tensor never exists in full precision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, cast

import torch

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.header import TensorEntry
from rulequant.torch.checkpoint.keys import Conversion

__all__ = ["merge_whole", "mergeable_by_expert", "merged_experts"]

Read = Callable[[TensorEntry], torch.Tensor]


def mergeable_by_expert(conversions: Sequence[Conversion]) -> bool:
    """Whether the converter stacks experts first, and only then works inside each."""
    operations = conversions[0].converter.operations
    first = operations[0]
    return (
        type(first).__name__ == "MergeModulelist"
        and first.dim == 0
        and all(getattr(each, "dim", 1) != 0 for each in operations[1:])
        and all(type(each).__name__ in {"Concatenate", "Transpose"} for each in operations[1:])
        and all(0 not in (each.dim0, each.dim1) for each in operations[1:] if type(each).__name__ == "Transpose")
    )


def merged_experts(
    entries: Sequence[TensorEntry], conversions: Sequence[Conversion], read: Read, shape: torch.Size
) -> Iterator[torch.Tensor]:
    """Each expert of the fused tensor, [rows, columns], from its own source tensors alone.

    Raises:
        CheckpointError: the source has another number of experts, or of other sizes.
    """
    by_pattern: dict[str, list[TensorEntry]] = {}
    for entry, conversion in zip(entries, conversions, strict=True):
        by_pattern.setdefault(conversion.pattern, []).append(entry)
    counts = {len(each) for each in by_pattern.values()}
    if counts != {shape[0]}:
        raise CheckpointError(
            f"`{printable(entries[0].name)}` and its like are {sorted(counts)} tensors, "
            f"config.json asks for {shape[0]} experts",
            remedy="the checkpoint is incomplete, or of another model than config.json",
        )
    for index in range(shape[0]):
        parts = {pattern: [read(by_pattern[pattern][index])] for pattern in _in_order(conversions, by_pattern)}
        merged = _converted(conversions[0].converter, parts)
        yield _checked(merged, torch.Size((1, *shape[1:])), entries[0])[0]


def merge_whole(
    entries: Sequence[TensorEntry], conversions: Sequence[Conversion], read: Read, shape: torch.Size
) -> torch.Tensor:
    """The fused tensor by any converter; it exists in full precision for a moment.

    Raises:
        CheckpointError: the source does not make up the model's tensor.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for entry, conversion in zip(entries, conversions, strict=True):
        parts.setdefault(conversion.pattern, []).append(read(entry))
    ordered = {pattern: parts[pattern] for pattern in _in_order(conversions, parts)}
    return _checked(_converted(conversions[0].converter, ordered), shape, entries[0])


def _in_order(conversions: Sequence[Conversion], found: Collection[str]) -> list[str]:
    """The patterns in the order of the converter, which is that of the parts in the fused tensor."""
    return [pattern for pattern in conversions[0].converter.source_patterns if pattern in found]


def _converted(converter: Any, parts: dict[str, list[torch.Tensor]]) -> torch.Tensor:
    collected: Any = parts
    for operation in converter.operations:
        collected = operation.convert(
            collected, source_patterns=converter.source_patterns, target_patterns=converter.target_patterns
        )
    values = list(collected.values())
    value = values[0][0] if isinstance(values[0], list) else values[0]
    return cast(torch.Tensor, value)


def _checked(tensor: torch.Tensor, shape: torch.Size, entry: TensorEntry) -> torch.Tensor:
    if tensor.shape != shape:
        raise CheckpointError(
            f"`{printable(entry.name)}` and its like merge to the shape {list(tensor.shape)}, "
            f"config.json asks for {list(shape)}",
            remedy="the weights are of another model than config.json",
        )
    return tensor
