"""What all tests share: no network, no more threads than cores, and the same sums wherever numbers lie in memory."""

from __future__ import annotations

import gc
import os

from sums import settle_sums

# Before any test module imports huggingface_hub, which reads it once: a test that reaches for the Hub fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Before torch is imported: where its threads are more than the cores, they wait for each other most of the time. Not in
# the process that starts those which run tests: they would have it from there.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // int(workers), 1)))
settle_sums()


def pytest_collection_finish() -> None:
    """Look for garbage seldom, and not in what was imported: that is all there is for most of a run."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
