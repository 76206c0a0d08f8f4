"""A run that is killed, out of space, or beside another leaves no output or all of it, and the next one makes it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from checkout import CHECKOUT


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_random_kills_limits_and_races() -> None:
    """A few of those of benchmarks/faults.py, which compares each rerun with an undisturbed run."""
    command = [sys.executable, "benchmarks/faults.py", "kills", "space", "races", "--number", "4", "--steps", "2"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600)
    assert re.search(r"^4 kills with 2 workers in ", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert re.search(r"^2 limits on the size of files in ", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^4 pairs of runs with 2 workers in ", done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.endswith("\n0 failures\n"), done.stdout
    assert done.returncode == 0
