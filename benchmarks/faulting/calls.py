"""Calls to the system that fail, or at which the process dies, one by one, by strace: of the run and of its workers."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from faulting.log import read_log
from faulting.order import check_order
from faulting.place import Findings, Place, check, clear
from faulting.runs import PATIENCE, Run, is_over, rerun, start, stopped

__all__ = ["ACTIONS", "CALLS", "calls", "why_not"]

# By the names of the kernel; what that of this machine lacks is left out.
CALLS = (
    "open", "openat", "creat", "mkdir", "mkdirat", "write", "pwrite64", "writev", "pwritev", "pwritev2",
    "copy_file_range", "sendfile", "splice", "truncate", "ftruncate", "fallocate", "mmap", "msync", "fsync",
    "fdatasync", "sync_file_range", "syncfs", "rename", "renameat", "renameat2", "link", "linkat", "symlink",
    "symlinkat", "flock", "unlink", "unlinkat", "rmdir", "close",
)  # fmt: skip
RUN, WORKER = "the run", "a worker"
_NOT_REACHED = "not reached"
_TRIES = 4
ACTIONS = ("ENOSPC", "EIO", "SIGKILL")
_MAY_LEAVE = frozenset({"unlink", "unlinkat", "rmdir", "open", "openat", "close", "mkdir", "mkdirat", "flock"})
"""Calls that tidying up makes too, or cannot do without: the next run may have to remove what they leave."""


class Call(NamedTuple):
    """A call on a path, of the run or of its workers, and which it is of those that a process makes of it."""

    whose: str
    name: str
    path: str
    number: int


def why_not() -> str | None:
    """Why strace cannot be used here; None where it can."""
    if shutil.which("strace") is None:
        return "it is not installed"
    done = subprocess.run(["strace", "-f", "-o", os.devnull, "true"], check=False, capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip()[-200:]


def calls(place: Place, findings: Findings, *, workers: int, every: int, actions: tuple[str, ...]) -> None:
    """Each call on what is in the folder of the output, of every process, is interfered with, in each of the ways."""
    began = time.monotonic()
    names = _known()
    wanted = _wanted(place, names, workers, findings)
    print(f"{sum(wanted.values())} calls of {len({each.name for each in wanted})} kinds on the folder of the output")
    for action in actions:
        for whose, name in sorted({each[:2] for each in wanted}):
            chosen = sorted(each for each in wanted if each[:2] == (whose, name))[::every]
            outcomes = Counter(_reach(place, each, action, findings, workers) for each in chosen)
            told = ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items()))
            print(f"{action} at {name} of {whose}: {len(chosen)} runs: {told}", flush=True)
    print(f"in {time.monotonic() - began:.0f} s")


def _known() -> list[str]:
    found = []
    for name in CALLS:
        done = subprocess.run(["strace", "-e", f"trace={name}", "true"], check=False, capture_output=True, text=True)
        if done.returncode == 0:
            found.append(name)
    return found


def _wanted(place: Place, names: list[str], workers: int, findings: Findings) -> Counter[Call]:
    """The calls to interfere with, and how many processes made them in one run.

    Which worker does what differs from run to run: several are watched, and the most that any made counts.
    """
    most: Counter[Call] = Counter()
    for _ in range(3):
        log = place.folder.parent / "trace"
        with _traced(place, RUN, ["-f", "-y", "-e", f"trace={','.join(names)}"], log, workers) as running:
            code, text = running.finished()
        if code:
            raise SystemExit(f"a run that is only watched failed: {text}")
        found: Counter[Call] = Counter()
        numbers: Counter[tuple[int, str, str]] = Counter()
        seen = list(read_log(log, place.folder))
        for each in seen:
            if each.paths:
                # Of two paths what is written to; but of those of `rename` strace goes by the first.
                key = each.pid, each.name, each.paths[0 if each.name == "rename" else -1]
                numbers[key] += 1
                found[Call(RUN if each.pid == running.pid else WORKER, *key[1:], numbers[key])] += 1
        most |= found
        renames, syncs = check_order(place, seen, findings)
        clear(place)
    print(f"{renames} files were renamed, each after it was synced, and their folder after all; {syncs} syncs")
    return most


def _reach(place: Place, call: Call, action: str, findings: Findings, workers: int) -> str:
    """Interfere with a call; again where it was not made, as which worker does what differs."""
    outcomes = (_interfere(place, call, action, findings, workers) for _ in range(_TRIES))
    return next((each for each in outcomes if each != _NOT_REACHED), _NOT_REACHED)


def _interfere(place: Place, call: Call, action: str, findings: Findings, workers: int) -> str:
    """One run with one fault, and all that has to hold after it; what it came to."""
    where = f"{action} at {call.name} {call.number} of {call.whose} on {call.path.removeprefix(str(place.folder))}"
    what = f"signal={action}" if action.startswith("SIG") else f"error={action}"
    log = place.folder.parent / "trace"
    # Counted by process: the workers are followed without the run, and the run without them.
    follow = ["-f"] if call.whose == WORKER else []
    inject = f"inject={call.name}:{what}:when={call.number}"
    options = [*follow, "-P", call.path, "-e", f"trace={call.name}", "-e", inject]
    with _traced(place, call.whose, options, log, workers) as running:
        code, text = running.finished()
    if not is_over(running):
        findings.fail(f"{where}: a process outlives the run")
    hit = code != 0 if action == "SIGKILL" else "(INJECTED)" in log.read_text(errors="replace")
    killed = action == "SIGKILL" and code == -signal.SIGKILL
    if code not in (0, 2) and not killed:
        findings.fail(f"{where}: exit code {code}: {text[-800:]}")
    if code == 2 and call.name not in _MAY_LEAVE:
        _check_told(place, text, where, findings)
    check(place, where, findings)
    rerun(place, f"after {where}", findings)
    return _outcome(code, text) if hit else _NOT_REACHED


def _check_told(place: Place, text: str, where: str, findings: Findings) -> None:
    """What is kept is said, and what is said is kept."""
    said = re.search(r"(\d+) of \d+ shards are kept", text)
    there = len(list((place.staging / "shards").glob("*.json")))
    if there != (int(said[1]) if said else 0) and not place.output.exists():
        findings.fail(f"{where}: {there} shards are kept, and told was: {text[-500:]}")
    if not said and place.staging.exists() and not place.output.exists():
        findings.fail(f"{where}: a staging folder is left, and told was: {text[-500:]}")


def _outcome(code: int, text: str) -> str:
    if code == 0:
        return "went well all the same"
    if code < 0:
        return "died"
    return "stopped with shards kept" if "shards are kept" in text else "stopped"


@contextmanager
def _traced(place: Place, whose: str, options: list[str], log: Path, workers: int) -> Iterator[Run]:
    """A run, or the head of its workers, that strace watches from its start."""
    running = start(place, workers=workers, stopped=whose == RUN, stopped_head=whose == WORKER)
    pid = stopped(running, head=whose == WORKER)
    tracer = subprocess.Popen(
        ["strace", "-s", "0", "-p", str(pid), *options, "-o", str(log)], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    try:
        line = tracer.stderr.readline()
        if "attached" not in line:
            os.killpg(running.pid, signal.SIGKILL)
            raise SystemExit(f"strace cannot be used here: {line.strip()}")
        os.kill(pid, signal.SIGCONT)
        yield running
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            tracer.communicate(timeout=PATIENCE)
        tracer.kill()
        tracer.wait()
