"""Tied weights that a checkpoint holds more than once: one copy is written, so they have to be equal."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.header import ITEM_SIZES
from rulequant.torch.checkpoint.reader import CheckpointReader

__all__ = ["check_copies"]

_CHUNK = 1 << 20
"""Elements that are compared at a time."""
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def check_copies(reader: CheckpointReader, copies: Mapping[str, str]) -> None:
    """Compare each copy with the tensor that is kept.

    Where they differ transformers loads both, and does not tie them: a plan that counts them as tied is wrong.

    Raises:
        CheckpointError: naming the two tensors, and the element where they part.
    """
    for copy, kept in copies.items():
        difference = _difference(reader, copy, kept)
        if difference:
            raise CheckpointError(
                f"{printable(reader.folder)}: config.json ties `{printable(copy)}` to `{printable(kept)}`, "
                f"but the shards hold both, and {difference}",
                remedy='say `"tie_word_embeddings": false` in config.json if both are meant, '
                "or remove the copy from the shards",
            )


def _difference(reader: CheckpointReader, copy: str, kept: str) -> str | None:
    first, second = reader.entry(copy), reader.entry(kept)
    if first.shape != second.shape:
        return f"their shapes are {list(first.shape)} and {list(second.shape)}"
    if first.dtype != second.dtype and not {first.dtype, second.dtype} <= set(_FLOATS):
        return f"their dtypes are {first.dtype} and {second.dtype}"
    for start in range(0, first.numel, _CHUNK):
        count = min(_CHUNK, first.numel - start)
        one, other = (_raw(reader, name, start, count) for name in (copy, kept))
        if one == other and first.dtype == second.dtype:
            continue
        if first.dtype not in _FLOATS:
            return "their values differ"
        different = _values(one, first.dtype).ne(_values(other, second.dtype)).nonzero()
        if len(different):
            return f"their values differ from element {start + int(different[0])} on"
    return None


def _raw(reader: CheckpointReader, name: str, start: int, count: int) -> bytearray:
    size = ITEM_SIZES[reader.entry(name).dtype]
    return reader.read_slice(name, start * size, count * size)


def _values(data: bytearray, dtype: str) -> torch.Tensor:
    return torch.frombuffer(data, dtype=_FLOATS[dtype]).to(torch.float64)
