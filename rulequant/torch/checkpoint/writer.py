"""What the files of an output are called, how the tensors are shared out among them, their headers and their index."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rulequant.torch.checkpoint.header import MAX_HEADER_BYTES
from rulequant.torch.checkpoint.layout import MODEL_STEM, index_name, single_name
from rulequant.torch.checkpoint.partfile import write_file

__all__ = ["aligned", "estimate_header", "header_bytes", "plan_shards", "shard_names", "write_index"]

# What transformers writes; it refuses a file that says nothing.
_METADATA: Mapping[str, str] = {"format": "pt"}
_ALIGNMENT = 8
# Decimal digits of the largest 64-bit number, and a comma.
_NUMBER_BYTES = 20


def header_bytes(entries: Mapping[str, object], reserve: int) -> bytes:
    """What precedes the tensors of a file: the header in so many bytes, padded with spaces, and its length before it.

    Raises:
        RuntimeError: the reserve is too small (the caller's mistake).
    """
    text = _json_bytes({"__metadata__": dict(_METADATA), **entries})
    if len(text) > reserve or reserve > MAX_HEADER_BYTES:
        raise RuntimeError(
            f"the header needs {len(text):,} bytes, {reserve:,} are reserved, {MAX_HEADER_BYTES:,} are allowed"
        )
    return struct.pack("<Q", reserve) + text.ljust(reserve)


def estimate_header(entries: Iterable[tuple[str, str, Sequence[int]]]) -> int:
    """Bytes that surely hold the header of these (name, dtype, shape), whatever numbers the shapes get."""
    size = len(_json_bytes({"__metadata__": dict(_METADATA)}))
    for name, dtype, shape in entries:
        frame = _json_bytes({name: {"dtype": dtype, "shape": [], "data_offsets": []}})
        size += len(frame) + _NUMBER_BYTES * (len(shape) + 2)
    return aligned(size, _ALIGNMENT)


def plan_shards(sizes: Iterable[tuple[str, int]], max_shard_bytes: int) -> list[list[str]]:
    """Group consecutive (name, bytes) so that no group exceeds the limit, save one tensor larger than it."""
    if max_shard_bytes <= 0:
        raise ValueError(f"max_shard_bytes must be positive, got {max_shard_bytes}")
    shards: list[list[str]] = []
    filled = 0
    for name, size in sizes:
        if not shards or filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def shard_names(count: int, stem: str = MODEL_STEM) -> list[str]:
    """The file names of `count` shards, as transformers and its peers expect them."""
    if count == 1:
        return [single_name(stem)]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_index(
    folder: Path,
    weight_map: Mapping[str, str],
    *,
    total_size: int,
    total_parameters: int | None = None,
    stem: str = MODEL_STEM,
) -> None:
    """Write `model.safetensors.index.json` as transformers does; `total_size` is the bytes of all tensors."""
    metadata = {"total_size": total_size}
    if total_parameters is not None:
        metadata["total_parameters"] = total_parameters
    index = {"metadata": metadata, "weight_map": dict(weight_map)}
    write_file(folder / index_name(stem), (json.dumps(index, indent=2, sort_keys=True) + "\n").encode("ascii"))


def aligned(size: int, to: int) -> int:
    """The next multiple."""
    return -(-size // to) * to


def _json_bytes(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
