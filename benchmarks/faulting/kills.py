"""SIGKILL at random moments: to the run, to all of its processes, to its head, to a worker."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter

from faulting.place import Findings, Place, check, clear, moment
from faulting.runs import Run, children, is_over, kill, rerun, start

__all__ = ["kills"]

VICTIMS = ("the run", "all its processes", "its head", "a worker")
_LONGEST_CHAIN = 6
_TOLD = "ended before its time"


def kills(place: Place, number: int, dice: random.Random, findings: Findings, *, workers: int) -> None:
    """So many that hit; after half of them the run goes on undisturbed, after the rest it is killed again.

    Most moments are those at which something is being written.
    """
    began, done, chain = time.monotonic(), 0, 0
    seconds, first = _durations(place, workers)
    seen: Counter[tuple[str, str]] = Counter()
    while done < number:
        victim = VICTIMS[done % len(VICTIMS)]
        running = start(place, workers=workers)
        if dice.random() < 0.2:
            time.sleep(dice.uniform(0, first))
        else:
            _wait_for_staging(place, running)
            time.sleep(dice.uniform(0, seconds - first))
        if not _hit(running, victim, dice, findings, f"kill {done + 1} of {victim}"):
            check(place, f"a kill of {victim} that the run got over", findings)
            clear(place)
            chain = 0
            continue
        done, chain = done + 1, chain + 1
        if done % 50 == 0:
            print(f"{done} kills after {time.monotonic() - began:.0f} s", flush=True)
        check(place, f"kill {done} of {victim}", findings)
        seen[victim, moment(place)] += 1
        if place.output.exists() or chain == _LONGEST_CHAIN or dice.random() < 0.5:
            rerun(place, f"after kill {done}, of {victim}", findings)
            findings.counts[f"chains of {chain} kills"] += 1
            chain = 0
    rerun(place, "after the last kill", findings)
    print(f"{done} kills with {workers} workers in {time.monotonic() - began:.0f} s; at the time there was:")
    for (victim, what), count in sorted(seen.items()):
        print(f"  {count:4}  {victim}: {what}")
    for what, count in sorted(findings.counts.items()):
        print(f"  {count:4}  {what}")


def _durations(place: Place, workers: int) -> tuple[float, float]:
    """Seconds of an undisturbed run, and from its start until its staging folder is there."""
    began = time.monotonic()
    running = start(place, workers=workers)
    _wait_for_staging(place, running)
    first = time.monotonic() - began
    running.finished()
    seconds = time.monotonic() - began
    clear(place)
    print(f"a run with {workers} workers takes {seconds:.2f} s, {first:.2f} s of it until it writes")
    return seconds, first


def _wait_for_staging(place: Place, running: Run) -> None:
    while not place.staging.exists() and not _ended(running):
        time.sleep(0.001)


def _ended(running: Run) -> bool:
    return os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _hit(running: Run, victim: str, dice: random.Random, findings: Findings, when: str) -> bool:
    """Kill; and whether the run ended by it: in time, and not of a process that it can do without."""
    if victim == "the run":
        return kill(running, [running.pid])
    if victim == "all its processes":
        return kill(running)
    heads = children(running.pid)
    chosen = heads if victim == "its head" else children(heads[0]) if heads else []
    if not chosen:
        kill(running)
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(dice.choice(chosen), signal.SIGKILL)
    code, text = running.finished()
    if not is_over(running):
        findings.fail(f"{when}: a process outlives the run")
    if code not in (0, 2) or (code == 2 and _TOLD not in text):
        findings.fail(f"{when}: exit code {code}: {text[-500:]}")
    return code == 2
