"""How the kernels cut their work: chunks that stay in the cache, spans of chunks for each thread, scratch memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK", "Cut", "cut_for", "in_parallel", "scratch"]


class Cut(NamedTuple):
    """How many values are handled at a time."""

    chunk: int
    """That go through all steps together."""
    row: int
    """That are compared with all midpoints while they are in the fastest cache."""
    rows: int
    """Compared in one call; the results take 15 bytes a value."""


_FINE = Cut(chunk=1 << 16, row=1 << 13, rows=2)
_COARSE = Cut(chunk=1 << 20, row=1 << 15, rows=4)

CHUNK = _FINE.chunk


def cut_for(threads: int) -> Cut:
    """Small pieces stay in the cache. Threads want long calls instead: between two, each needs the interpreter lock.

    When two threads want it at once, one sleeps for longer than a short call takes.
    """
    return _FINE if threads == 1 else _COARSE


CACHE_LINE = 64
"""Bytes, as many as the widest vectors."""

CHUNKS_A_SPAN = 4
"""Chunks that a thread takes at a time, so that handing out costs little."""


def in_parallel(work: Callable[[int, int], None], total: int, *, chunk: int, threads: int) -> None:
    """Call `work(start, stop)` for all of [0, total) in spans of whole chunks, on so many threads.

    Python threads suffice: numpy releases the interpreter lock in all that takes long here.

    Raises:
        ValueError: fewer than one thread.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    span = chunk * CHUNKS_A_SPAN
    starts = range(0, total, span)

    def work_on(start: int) -> None:
        # What is not finite is found by its bits, after arithmetic that may overflow. The setting is the thread's own.
        with np.errstate(all="ignore"):
            work(start, min(start + span, total))

    if threads == 1 or len(starts) < 2:
        for start in starts:
            work_on(start)
        return
    with ThreadPoolExecutor(min(threads, len(starts))) as pool:
        # Drawing the results raises what a thread raised.
        list(pool.map(work_on, starts))


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.memory: dict[str, NDArray[np.uint8]] = {}


_SCRATCH = _Scratch()


def scratch(name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """An array of the calling thread with anything in it; the next call with the name gives the same memory.

    It is allocated once per thread, because fresh pages cost more than the arithmetic on them.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = _SCRATCH.memory.get(name)
    if memory is None or len(memory) < size:
        memory = _SCRATCH.memory[name] = _aligned(size)
    return memory[:size].view(dtype).reshape(shape)


def _aligned(size: int) -> NDArray[np.uint8]:
    """Fresh memory that begins where a cache line does: numpy's is 16 bytes off, so that each vector lies in two lines.

    A multiplication of such arrays takes twice as long.
    """
    memory = np.empty(size + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + size]
