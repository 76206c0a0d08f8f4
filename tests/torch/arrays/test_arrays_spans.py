"""Cutting work into spans for threads, and the memory they work in."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from rulequant.torch.arrays.spans import CHUNK, CHUNKS_A_SPAN, in_parallel, scratch


@pytest.mark.parametrize("threads", [1, 3])
def test_spans_cover_everything_once(threads: int) -> None:
    """The spans are whole chunks, but for the last, and together all there is."""
    spans: list[tuple[int, int]] = []
    in_parallel(lambda start, stop: spans.append((start, stop)), 1000, chunk=7, threads=threads)
    assert sorted(spans) == [(at, min(at + 7 * CHUNKS_A_SPAN, 1000)) for at in range(0, 1000, 7 * CHUNKS_A_SPAN)]


def test_nothing_to_do() -> None:
    """No span, no call."""
    in_parallel(lambda _start, _stop: pytest.fail("called"), 0, chunk=7, threads=2)


def test_threads_work_at_the_same_time() -> None:
    """Two spans meet at a barrier, which one thread alone could not pass."""
    barrier = threading.Barrier(2, timeout=30)
    in_parallel(lambda _start, _stop: barrier.wait() and None, 2 * CHUNKS_A_SPAN, chunk=1, threads=2)
    assert not barrier.broken


def test_an_error_in_a_thread_is_raised() -> None:
    """It is not lost in the pool."""

    def fail(start: int, _stop: int) -> None:
        raise ValueError(f"span {start}")

    with pytest.raises(ValueError, match="span 0"):
        in_parallel(fail, 10 * CHUNKS_A_SPAN, chunk=1, threads=2)


@pytest.mark.parametrize("threads", [1, 2])
def test_arithmetic_may_overflow(threads: int) -> None:
    """Without a warning in any thread, and only inside."""

    def overflow(_start: int, _stop: int) -> None:
        assert np.isinf(np.float32(1) / np.zeros(3, np.float32)).all()

    in_parallel(overflow, 4 * CHUNKS_A_SPAN, chunk=1, threads=threads)
    with pytest.warns(RuntimeWarning, match="divide by zero"):
        overflow(0, 1)


def test_fewer_than_one_thread_is_refused() -> None:
    """The message names the number."""
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        in_parallel(lambda _start, _stop: None, 1, chunk=1, threads=0)


def test_scratch_is_kept_and_grows() -> None:
    """The same memory for the same name in any shape that fits, other memory for other names."""
    first = scratch("a test", (6, 4), np.float32)
    first[:] = 7
    again = scratch("a test", (3, 8), np.int32)
    assert (again.shape, again.dtype) == ((3, 8), np.int32)
    assert np.shares_memory(first, again)
    assert scratch("a test", (1000,), np.float64).shape == (1000,)
    assert not np.shares_memory(scratch("a test", (4,), np.int8), scratch("another test", (4,), np.int8))


def test_scratch_belongs_to_its_thread() -> None:
    """Two threads never share memory."""
    arrays = [scratch("a test", (4,), np.int8)]
    thread = threading.Thread(target=lambda: arrays.append(scratch("a test", (4,), np.int8)))
    thread.start()
    thread.join()
    assert not np.shares_memory(*arrays)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")  # noqa: PTH112
def test_torch_starts_no_threads_of_its_own() -> None:
    """`threads` is all the threads there are, whatever torch's own number."""
    code = f"""
import os, torch
torch.set_num_threads(8)
from rulequant.torch.kernels import quantize_4bit, quantize_int8
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    # torch.empty and numpy, because filling a large tensor starts threads too.
    weight = torch.empty(8, {CHUNK}, dtype=dtype)
    weight.view(torch.uint8).numpy()[:] = 1
    for quant_type in ("nf4", "fp4"):
        for blocksize in (32, 4096):
            quantize_4bit(weight, quant_type=quant_type, blocksize=blocksize)
    quantize_int8(weight)
    quantize_int8(weight.view(-1, 64))
assert count() == before, (before, count())
weight.float().add(weight.float())
assert count() > before
"""
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
