"""Tied weights that a checkpoint holds more than once: one copy is written, so they have to be equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.header import FLOATS, TensorEntry
from rulequant.torch.checkpoint.reader import CheckpointReader

__all__ = ["check_copies"]

_CHUNK = 1 << 20
"""Elements that are compared at a time."""


def check_copies(reader: CheckpointReader, copies: Sequence[tuple[TensorEntry, TensorEntry]]) -> None:
    """Compare each copy with the tensor that is kept: (copy, kept).

    Where they differ transformers loads both, and does not tie them: a plan that counts them as tied is wrong.

    Raises:
        CheckpointError: naming the two tensors, and the element where they part.
    """
    for copy, kept in copies:
        difference = _difference(reader, copy, kept)
        if difference:
            raise CheckpointError(
                f"{printable(reader.folder)}: config.json ties `{printable(copy.name)}` to `{printable(kept.name)}`, "
                f"but the shards hold both, and {difference}",
                remedy='say `"tie_word_embeddings": false` in config.json if both are meant, '
                "or remove the copy from the shards",
            )


def _difference(reader: CheckpointReader, first: TensorEntry, second: TensorEntry) -> str | None:
    if first.shape != second.shape:
        return f"their shapes are {list(first.shape)} and {list(second.shape)}"
    if first.dtype != second.dtype and not {first.dtype, second.dtype} <= FLOATS:
        return f"their dtypes are {first.dtype} and {second.dtype}"
    for start in range(0, first.numel, _CHUNK):
        count = min(_CHUNK, first.numel - start)
        one, other = (_raw(reader, entry, start, count) for entry in (first, second))
        if one == other and first.dtype == second.dtype:
            continue
        if first.dtype not in FLOATS:
            return "their values differ"
        different = np.flatnonzero(_values(one, first.dtype) != _values(other, second.dtype))
        if len(different):
            return f"their values differ from element {start + int(different[0])} on"
    return None


def _raw(reader: CheckpointReader, entry: TensorEntry, start: int, count: int) -> bytearray:
    data = bytearray(count * entry.item_size)
    reader.fill(entry, start * entry.item_size, data)
    return data


def _values(data: bytearray, dtype: str) -> NDArray[Any]:
    if dtype == "BF16":  # which numpy does not have: the upper half of a float32
        return np.left_shift(np.frombuffer(data, np.uint16), 16, dtype=np.uint32).view(np.float32).astype(np.float64)
    return np.frombuffer(data, {"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]).astype(np.float64)
