"""Sources of a few tensors, and steps over them made by hand."""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

from rulequant.inventory import Kind, ModuleInfo, TensorInfo
from rulequant.schemes import Scheme
from rulequant.torch.checkpoint.header import DTYPE_NAMES, TensorEntry
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.step import RECORD_BYTES, Block, Step

__all__ = ["encoded_step", "kept_step", "same_bytes", "source_of", "weight_of"]


def weight_of(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def source_of(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, TensorEntry]:
    """Save a checkpoint of one file; its entries by name."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with CheckpointReader.open(folder) as reader:
        return dict(reader.tensors)


def kept_step(entry: TensorEntry, dtype: str | None = None) -> Step:
    written = TensorInfo(entry.name, entry.shape, DTYPE_NAMES[dtype or entry.dtype])
    block = Block(entry, 1, entry.numel, stride=entry.numel)
    return Step(
        key=entry.name,
        target=entry.name,
        kind="other",
        shape=entry.shape,
        dtype=dtype or entry.dtype,
        blocks=(block,),
        columns=entry.numel,
        tensors=(written,),
        nbytes=written.nbytes,
    )


def encoded_step(entry: TensorEntry, scheme: Scheme, kind: Kind = "linear", dtype: str = "BF16") -> Step:
    tensor = TensorInfo("weight", entry.shape, DTYPE_NAMES[dtype])
    info = ModuleInfo("it", "It", kind, (tensor,))
    columns = entry.shape[0] if kind == "conv1d" else entry.shape[-1]
    rows = entry.shape[0] if kind == "conv1d" else prod(entry.shape[:-1])
    width = entry.shape[-1]
    prefix = entry.name.removesuffix("weight")
    written = tuple(
        TensorInfo(f"{prefix}{each.name}", each.shape, each.dtype) for each in scheme.encoded_tensors(info, tensor)
    )
    return Step(
        key=entry.name,
        target=entry.name,
        kind=kind,
        shape=entry.shape,
        dtype=dtype,
        blocks=(Block(entry, rows, width, stride=width, transposed=kind == "conv1d"),),
        columns=columns,
        tensors=written,
        nbytes=scheme.encoded_bytes(info, tensor) + (RECORD_BYTES if written else 0),
        prefix=prefix,
        scheme=scheme,
        slicing=scheme.slicing(info, tensor),
    )


def same_bytes(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equal dtypes, shapes and bytes."""
    raw = [each.contiguous().reshape(-1).view(torch.uint8) for each in (first, second)]
    return (first.dtype, first.shape) == (second.dtype, second.shape) and raw[0].equal(raw[1])
