"""The weights of a model in memory, read like those of a checkpoint folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from rulequant.errors import ModelError
from rulequant.torch.checkpoint.files import LARGEST_INT, printable
from rulequant.torch.checkpoint.header import TensorEntry
from rulequant.torch.checkpoint.reader import CheckpointReader

__all__ = ["MemoryReader"]

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
_SHARD = "memory"
_CHUNK = 1 << 24


class MemoryReader(CheckpointReader):
    """The state dict of a model; what shares a parameter comes once, under its first name."""

    has_files = False

    def __init__(self, name: str, model: nn.Module) -> None:
        """Take the tensors as they are; nothing is copied.

        Raises:
            ModelError: a tensor has no values, or is none that safetensors holds.
        """
        super().__init__(Path(name))
        self._tensors = _own_tensors(name, model)
        self.tensors = {key: _entry(key, each) for key, each in self._tensors.items()}
        self._last: tuple[str, torch.Tensor] | None = None

    def fill(self, entry: TensorEntry, start_byte: int, buffer: bytearray | memoryview) -> None:
        """Fill a buffer with the bytes of a tensor from its byte `start_byte` on."""
        view = memoryview(buffer).cast("B")
        if start_byte < 0 or start_byte + len(view) > entry.nbytes:
            raise ValueError(f"bytes {start_byte} to {start_byte + len(view)} of a tensor of {entry.nbytes}")
        if view:
            part = self._bytes(entry.name)[start_byte : start_byte + len(view)]
            torch.frombuffer(view, dtype=torch.uint8).copy_(part)

    def fingerprint(self) -> dict[str, dict[str, int]]:
        """The bytes of all tensors, and 63 bits of a hash of them: there is no file whose time could tell."""
        digest = hashlib.sha256()
        for name, entry in self.tensors.items():
            digest.update(f"{name}\0{entry.dtype}\0{entry.shape}\0".encode())
            for start in range(0, entry.nbytes, _CHUNK):
                digest.update(self.read_slice(name, start, min(_CHUNK, entry.nbytes - start)))
        return {_SHARD: {"size": self.nbytes, "hash": int.from_bytes(digest.digest()[:8], "big") & LARGEST_INT}}

    def content_sha256(self) -> str:
        """Nothing more: the fingerprint is of all bytes."""
        return ""

    def check_unchanged(self) -> None:
        """Nothing: only the caller could have changed them."""

    def _bytes(self, name: str) -> torch.Tensor:
        """All bytes of a tensor, U8 [nbytes]; kept until another is asked for, as it may be a copy from a device."""
        last = self._last
        if last is None or last[0] != name:
            tensor = self._tensors[name].detach().cpu().contiguous()
            last = self._last = name, tensor.reshape(-1).view(torch.uint8)
        return last[1]


def _own_tensors(name: str, model: nn.Module) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for key, each in model.state_dict(keep_vars=True).items():
        if not isinstance(each, torch.Tensor):
            raise ModelError(
                f"{name}: the state dict holds a {type(each).__name__} as `{printable(key)}`, and safetensors holds "
                "tensors only",
                remedy="apply in memory instead: rulequant.torch.apply(model, rules)",
            )
        if each.device.type == "meta":
            raise ModelError(
                f"{name}: `{printable(key)}` is on meta, so there are no weights to quantize",
                remedy="let the callable return the model with its weights loaded",
            )
        if each.dtype not in _DTYPES:
            raise ModelError(f"{name}: `{printable(key)}` has the dtype {each.dtype}, which is not written here")
        if id(each) not in seen:
            seen.add(id(each))
            found[key] = each
    return found


def _entry(name: str, tensor: torch.Tensor) -> TensorEntry:
    return TensorEntry(name, _DTYPES[tensor.dtype], tuple(tensor.shape), 0, tensor.numel() * tensor.itemsize, _SHARD)
