"""The memory of several processes together, what they share counted once."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Footprint"]


class Footprint:
    """The most that some processes were seen to hold at once; nothing where the system does not tell (not Linux)."""

    interval = 0.25
    """Seconds between two looks."""

    def __init__(self, pids: Iterable[int]) -> None:
        """Measure these processes."""
        self.pids = list(pids)
        self._last = 0.0
        self.peak = 0
        """Bytes: the sum of the proportional set sizes, in which a page that several share counts for each in part."""

    def add(self, pid: int) -> None:
        """Measure a process too."""
        self.pids.append(pid)

    def measure(self) -> None:
        """Look, if the last look is long enough ago."""
        now = time.monotonic()
        if now - self._last < self.interval:
            return
        self._last = now
        self.peak = max(self.peak, sum(_proportional(pid) for pid in self.pids))


def _proportional(pid: int) -> int:
    """See proc(5), smaps_rollup."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended, or there is no such file
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
