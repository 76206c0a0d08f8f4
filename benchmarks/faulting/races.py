"""Two runs for one output, which would write different files: one of them gets it, and all of it is that one's."""

from __future__ import annotations

import random
import time
from collections import Counter

from faulting.place import SHARD_SIZES, Findings, Place, check, clear, hashes
from faulting.runs import BUSY, Run, is_over, kill, rerun, start
from rulequant.torch import processes

__all__ = ["races"]

_REFUSED = (BUSY, "already exists", "exists")


def races(place: Place, number: int, dice: random.Random, findings: Findings, *, workers: int) -> None:
    """So many pairs; in every other one the first is killed just before the second begins.

    Then its workers do not end with it, as on a system that cannot see to that, but when they notice.
    """
    began = time.monotonic()
    seconds = _duration(place, workers)
    outcomes: Counter[str] = Counter()
    for turn in range(number):
        outcomes[
            _killed(place, seconds, dice, findings, workers)
            if turn % 2
            else _both(place, seconds, dice, findings, workers)
        ] += 1
        clear(place)
    told = "".join(f"\n  {count:4}  {what}" for what, count in sorted(outcomes.items()))
    print(f"{number} pairs of runs with {workers} workers in {time.monotonic() - began:.0f} s:{told}", flush=True)


def _duration(place: Place, workers: int) -> float:
    began = time.monotonic()
    start(place, workers=workers).finished()
    clear(place)
    return time.monotonic() - began


def _both(place: Place, seconds: float, dice: random.Random, findings: Findings, workers: int) -> str:
    first = start(place, workers=workers, size=SHARD_SIZES[0])
    time.sleep(dice.choice((0.0, dice.uniform(0, 0.01), dice.uniform(0, seconds))))
    second = start(place, workers=workers, size=SHARD_SIZES[1])
    ends = [each.finished() for each in (first, second)]
    codes = [code for code, _ in ends]
    if sorted(codes) != [0, 2]:
        findings.fail(f"two runs: exit codes {codes}: {ends[0][1][-300:]} {ends[1][1][-300:]}")
        return "(wrong)"
    winner = codes.index(0)
    _check_winner(place, winner, ends[1 - winner][1], findings, (first, second))
    return f"both ran: the {'first' if winner == 0 else 'second'} wrote, the other was refused"


def _check_winner(place: Place, winner: int, refusal: str, findings: Findings, runs: tuple[Run, Run]) -> None:
    if not any(each in refusal for each in _REFUSED):
        findings.fail(f"two runs: one ended with: {refusal[-500:]}")
    if not all(map(is_over, runs)):
        findings.fail("two runs: a process outlives them")
    if not place.output.exists() or hashes(place.output) != place.expected[SHARD_SIZES[winner]]:
        findings.fail("two runs: the output is not that of the one that said it wrote it")
    if place.staging.exists():
        findings.fail("two runs: a staging folder is left")


def _killed(place: Place, seconds: float, dice: random.Random, findings: Findings, workers: int) -> str:
    first = start(place, workers=workers, size=SHARD_SIZES[0], before=_outlive)
    time.sleep(dice.uniform(0.1, seconds))
    # Ready to go when the first is killed: it need only take the lock.
    if not kill(first, [first.pid]):
        rerun(place, "a run that ended before it was killed", findings)
        return "one ended before it was killed"
    refused = 0
    while True:
        code, text = start(place, workers=workers, size=SHARD_SIZES[1]).finished()
        if code == 0 or BUSY not in text or refused == 1000:
            break
        refused += 1
    if place.output.exists() and hashes(place.output) == place.expected[SHARD_SIZES[0]]:
        return "one was complete when it was killed"
    if code:
        findings.fail(f"after a kill: exit code {code}: {text[-500:]}")
    check(place, "after a kill", findings, size=SHARD_SIZES[1])
    is_over(first)
    return "one was killed: " + ("the other waited for its workers" if refused else "the other wrote at once")


def _outlive() -> None:
    processes._PR_SET_PDEATHSIG = 0  # no request that the kernel knows
