"""Disturbs `rulequant apply` in every way that a machine can, and says what became of the output.

    python benchmarks/faults.py                       # all of it, about an hour
    python benchmarks/faults.py kills --number 200    # SIGKILL at random moments: the run, its head, a worker, all
    python benchmarks/faults.py calls                 # each call to the system fails, or the process dies at it
    python benchmarks/faults.py space                 # disks that are full, limits on the size of files
    python benchmarks/faults.py races                 # two runs for one output

After each: the output is absent or complete, a rerun gives the bytes of an undisturbed run and leaves nothing else, no
process is left, and hashes, times and modes of the input are what they were. Any other finding is printed and makes the
exit code 1.

The checkpoint is a tiny llama of a few shards. Each run is a process of its own, forked from one that has imported
everything, with the processes that it starts; their head is forked as well, save with `--cold`, where it is started as
always, and imports torch.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import tempfile
from pathlib import Path

from faulting.calls import ACTIONS, calls
from faulting.calls import why_not as why_no_strace
from faulting.kills import kills
from faulting.place import Findings, Place, prepare
from faulting.races import races
from faulting.runs import configure
from faulting.space import space

PARTS = ("kills", "calls", "space", "races")


def main() -> int:
    """Run, print, and return the exit code."""
    options = _options()
    findings = Findings()
    print(f"{platform.platform()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory(prefix="rulequant-faults-", dir=options.folder) as name:
        place = prepare(Path(name).resolve(), planned=not options.ahead)
        configure(place, warm=not options.cold, ahead=options.ahead)
        for part in options.parts or PARTS:
            _part(part, place, findings, options)
    print(f"{len(findings.failures)} failures")
    return 1 if findings.failures else 0


def _part(part: str, place: Place, findings: Findings, options: argparse.Namespace) -> None:
    dice, workers = random.Random(options.seed), options.workers
    if part == "kills":
        kills(place, options.number, dice, findings, workers=workers)
    elif part == "races":
        races(place, options.number, dice, findings, workers=workers)
    elif part == "space":
        space(place, findings, workers=workers, steps=options.steps)
    elif reason := why_no_strace():
        print(f"no call was failed by strace: {reason} (tests/torch/checkpoint/test_faults.py does so without)")
    else:
        actions = tuple(options.actions or ACTIONS)
        calls(place, findings, workers=workers, every=options.every, actions=actions)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").replace("%", "%%"), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all of them")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes that write, even so little; 1: the run itself"
    )
    parser.add_argument("--cold", action="store_true", help="start the head as always, which takes a second or more")
    parser.add_argument(
        "--ahead", action="store_true", help="without a plan: runs make one, and begin the first file meanwhile"
    )
    parser.add_argument("--folder", type=Path, help="where it all happens; a tmpfs is faster than a disk")
    parser.add_argument("--number", type=int, default=200, help="kills, and pairs of runs")
    parser.add_argument("--seed", type=int, default=0, help="of kills and races")
    parser.add_argument("--every", type=int, default=1, help="of the calls of each kind, interfere with every Nth only")
    parser.add_argument("--actions", nargs="+", choices=ACTIONS, help="what happens at a call; default: each in turn")
    parser.add_argument("--steps", type=int, default=40, help="limits between nothing and enough")
    options = parser.parse_args()
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"unknown {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if options.folder and not options.folder.is_dir():
        parser.error(f"--folder {options.folder}: there is no such folder")
    return options


if __name__ == "__main__":
    sys.exit(main())
