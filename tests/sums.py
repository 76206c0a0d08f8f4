"""Matrix products whose last bits do not depend on where their operands lie in memory."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["settle_sums"]


def settle_sums() -> None:
    """Have MKL take no notice of alignment, which it does on AMD's processors; to be called before torch is imported.

    On Intel's, where all tests pass without, it is left to choose its kernels.
    """
    info = Path("/proc/cpuinfo")
    if not info.exists() or "GenuineIntel" not in info.read_text():
        # Which Intel calls conditional numerical reproducibility; STRICT is what asks for no alignment.
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
