"""A run that is killed at any moment leaves no output, or all of it, and the next one makes it."""

from __future__ import annotations

import re
import subprocess
import sys

from checkout import CHECKOUT


def test_random_kills() -> None:
    """Ten of the kills of benchmarks/faults.py, which compares each rerun with an undisturbed run."""
    command = [sys.executable, "benchmarks/faults.py", "--kills", "10", "--no-calls"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600)
    assert re.search(r"^10 kills in ", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert done.stdout.endswith("\n0 failures\n"), done.stdout
    assert done.returncode == 0
