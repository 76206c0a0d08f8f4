"""The mean of absmax is torch's, bit by bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from rulequant.torch.arrays import mean
from rulequant.torch.arrays.mean import mean_absmax
from rulequant.torch.arrays.notfinite import NotFiniteValueError

by_its_own = pytest.mark.skipif(not mean.LIKE_TORCH, reason="the mean is torch's own here")


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """Leaves torch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def expected(values: np.ndarray[tuple[int], np.dtype[np.float32]], threads: int) -> float:
    """What torch makes of it."""
    torch.set_num_threads(threads)
    return torch.from_numpy(values).mean().item()


def absmax(length: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Numbers of several magnitudes: their sum changes with the order."""
    generator = np.random.default_rng([length, seed])
    return (generator.random(length) * 10.0 ** generator.integers(-4, 2, length)).astype(np.float32)


@by_its_own
def test_every_short_length() -> None:
    """Up to where a second level begins: vectors, fours of them, and what is left over."""
    for length in range(1, 1100):
        values = absmax(length, 0)
        assert mean_absmax(values, threads=1) == expected(values, 1), length


@by_its_own
@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7, 8, 16, 64])
def test_every_number_of_threads(threads: int) -> None:
    """Around where threads join, where the steps get longer, and anywhere."""
    edges = [each + off for each in (1 << 15, 1 << 16, 3 << 15, 1 << 17, 1 << 20, 1 << 21) for off in (-1, 0, 1, 9)]
    generator = np.random.default_rng(threads)
    for length in (*edges, *generator.integers(1 << 12, 1 << 18, 30), *generator.integers(1 << 18, 1 << 21, 6)):
        values = absmax(int(length), threads)
        assert mean_absmax(values, threads=threads) == expected(values, threads), length


@by_its_own
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_older_processors_add_in_the_same_order(capability: str) -> None:
    """torch's code for them; that for this one is tested above."""
    code = """
import numpy as np, torch
from rulequant.torch.arrays import mean_absmax
print(torch.backends.cpu.get_cpu_capability().lower())
for length in (*range(1, 200), 5003, 32767, 32768, 99_999, 400_000, 1_300_001):
    values = np.random.default_rng(length).random(length, np.float32) + np.float32(0.5)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert mean_absmax(values, threads=threads) == torch.from_numpy(values).mean().item(), (length, threads)
"""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    result = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, capability), result.stderr


@pytest.mark.parametrize("like_torch", [pytest.param(True, marks=by_its_own), False], ids=["own", "torch"])
def test_other_machines_ask_torch(like_torch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of threads counts there too, and is put back."""
    monkeypatch.setattr(mean, "LIKE_TORCH", like_torch)
    values = absmax(400_000, 3)
    means = {threads: expected(values, threads) for threads in (1, 2, 5)}
    assert len(set(means.values())) > 1
    torch.set_num_threads(3)
    assert {threads: mean_absmax(values, threads=threads) for threads in means} == means
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("like_torch", [True, False], ids=["own", "torch"])
def test_a_mean_that_overflows_is_refused(like_torch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the place of the largest."""
    monkeypatch.setattr(mean, "LIKE_TORCH", like_torch)
    with pytest.raises(NotFiniteValueError, match=r"flat index 2 is 3\.2e"):
        mean_absmax(np.float32([3e38, 3e38, 3.2e38]), threads=1)


def test_no_block_has_no_mean() -> None:
    """The message says what is expected."""
    with pytest.raises(ValueError, match="got no block"):
        mean_absmax(np.zeros(0, np.float32), threads=1)
