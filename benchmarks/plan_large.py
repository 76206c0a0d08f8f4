"""Seconds and peak memory of `rulequant plan` on the config.json of a DeepSeek-V3 with 671 billion parameters.

Run with `python benchmarks/plan_large.py`. No weight exists: the config is transformers' default one, in bfloat16, and
the rules are the bundled ones for the family. The same plan is made from the inventory file, which needs no torch.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROUNDS = 3
CONFIG = """\
import sys
from transformers import DeepseekV3Config
DeepseekV3Config(architectures=["DeepseekV3ForCausalLM"], dtype="bfloat16").save_pretrained(sys.argv[1])
"""


@dataclass(frozen=True)
class Run:
    """What one process took, and what it printed on stdout."""

    seconds: float
    peak_bytes: int
    output: str


def run(command: Sequence[str], output: Path) -> Run:
    """Run a process to its end.

    Raises:
        RuntimeError: it failed.
    """
    start = time.perf_counter()
    with output.open("w+", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # the peak of this process alone, which Popen.wait does not tell
        taken = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        stream.seek(0)
        text = stream.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exits {process.returncode}: {text}")
    return Run(taken, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), text)


def best(command: Sequence[str], output: Path) -> Run:
    """The fastest of the rounds."""
    return min((run(command, output) for _ in range(ROUNDS)), key=lambda each: each.seconds)


def write_config(folder: Path) -> None:
    """Write the config.json of the model, and nothing else.

    In a process of its own: Linux counts what a parent held when it forked to the peak of the child, and this one is to
    stay small.
    """
    subprocess.run([sys.executable, "-c", CONFIG, str(folder)], check=True)


def main() -> None:
    """Print what both ways take, and the head of the plan."""
    rulequant = str(Path(sys.executable).parent / "rulequant")
    versions = ", ".join(f"{each} {metadata.version(each)}" for each in ("torch", "transformers"))
    print(f"python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}; {versions}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_config(folder / "deepseek_v3")
        model, inventory = str(folder / "deepseek_v3"), str(folder / "inventory.json")
        run([rulequant, "inventory", model, "-o", inventory], folder / "log")
        print(f"the inventory file has {Path(inventory).stat().st_size:,} bytes\n")
        for what, source in (("config.json", model), ("inventory", inventory)):
            measured = best([rulequant, "plan", source], folder / "log")
            peak = measured.peak_bytes / 1e6
            print(f"plan from {what:12} {measured.seconds:6.2f} s, peak {peak:5.0f} MB, best of {ROUNDS}")
        print("\n" + "\n".join(re.sub(r"^model .*", "", measured.output).strip().splitlines()[:6]))


if __name__ == "__main__":
    main()
