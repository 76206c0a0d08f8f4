"""Memory for a weight that is dequantized, used by one operation and let go, on a CPU.

A large result in fresh memory costs more in page faults than its arithmetic (seen: 2.6 ns an element, of which 0.3 are
dequantizing). So the last buffer is kept, and lent again as long as it is large enough and nobody holds it.
"""

from __future__ import annotations

import sys
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["lent"]


_LINE = 64
"""Bytes of a cache line."""


class _Buffer:
    """The memory that is kept; whoever holds a tensor in it, or a view of one, holds it too."""

    def __init__(self) -> None:
        self.memory: NDArray[np.uint8] = np.empty(0, np.uint8)
        self.lock = Lock()
        self._held_by_none = self._holders()

    def is_free(self) -> bool:
        """Whether no tensor in it is left, an autograd graph's included."""
        return self._holders() == self._held_by_none

    def start(self) -> int:
        """Where the first cache line begins, as torch's own memory does: a vector in two lines is two accesses."""
        return -self.memory.ctypes.data % _LINE

    def room(self) -> int:
        """Bytes from there on."""
        return len(self.memory) - self.start()

    def _holders(self) -> int:
        return sys.getrefcount(self.memory)


_KEPT = _Buffer()


def lent(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor with anything in it, in the kept buffer if that will do, else in a new one that is kept instead."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    with _KEPT.lock:
        if _KEPT.room() < size or not _KEPT.is_free():
            _KEPT.memory = np.empty(size + _LINE, np.uint8)
        start = _KEPT.start()
        part: Any = _KEPT.memory[start : start + size]
        return torch.from_numpy(part).view(dtype).view(shape)
