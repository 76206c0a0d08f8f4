"""Disks that are too small at every point, by bytes and by number of files, and a limit on the size of files."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from faulting.place import SHARD_SIZES, Findings, Place, check
from faulting.runs import is_over, rerun, start
from rulequant.torch.checkpoint import staging

__all__ = ["space", "why_not"]

_SPARE = 64 << 20


def why_not() -> str | None:
    """Why no file system can be mounted here; None where one can."""
    done = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True, text=True)
    return None if done.returncode == 0 and os.geteuid() == 0 else "that takes root"


def space(place: Place, findings: Findings, *, workers: int, steps: int) -> None:
    """Limits from nothing to enough, in so many steps each."""
    total = sum(each.stat().st_size for each in _undisturbed(place).rglob("*"))
    limits = _limits(_undisturbed(place))
    _size_limits(place, findings, workers, limits[:: -(-len(limits) // steps)])
    reason = why_not()
    if reason:
        print(f"no disk was full: {reason}")
        return
    with _small_disk(place) as disk:
        # The most that lies there at once: the output, and beside it the records and what is being written.
        bytes_ = range(4096, 2 * total, max(2 * total // steps, 4096))
        _full_disks(disk, findings, workers, [f"size={each}" for each in bytes_], "bytes")
        _full_disks(disk, findings, workers, [f"nr_inodes={each}" for each in range(2, 42, -(-40 // steps))], "files")


def _undisturbed(place: Place) -> Path:
    return place.folder.parent / f"undisturbed-{SHARD_SIZES[0]}"


def _limits(output: Path) -> list[int]:
    """A file of the output just fits, or just not; or the work behind its tensors, before they are complete."""
    sizes = [each.stat().st_size for each in output.rglob("*") if each.is_file()]
    messages = 1000  # which go to a file too
    return sorted(
        {messages + each for each in (0, *sizes)} | {each - 1 for each in sizes if each > messages} | {1 << 20}
    )


def _size_limits(place: Place, findings: Findings, workers: int, limits: list[int]) -> None:
    began, outcomes = time.monotonic(), Counter[str]()
    for limit in limits:

        def set_limit(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        outcomes[_one(place, f"RLIMIT_FSIZE={limit}", findings, workers, set_limit)] += 1
        rerun(place, f"after RLIMIT_FSIZE={limit}", findings)
    _tell(f"{len(limits)} limits on the size of files", outcomes, began)


def _full_disks(place: Place, findings: Findings, workers: int, options: list[str], of: str) -> None:
    began, outcomes = time.monotonic(), Counter[str]()
    for each in options:
        _remount(place.folder, each)
        outcomes[_one(place, f"a tmpfs of {each}", findings, workers, _see_no_end)] += 1
        _remount(place.folder, f"size={_SPARE},nr_inodes=10000")
        rerun(place, f"after a tmpfs of {each}", findings)
    _tell(f"{len(options)} full disks, by {of}", outcomes, began)


def _see_no_end() -> None:
    """What is asked beforehand is passed over: the disk is full when it is."""
    staging.free_bytes = lambda _: 1 << 60


def _one(place: Place, what: str, findings: Findings, workers: int, before: Callable[[], Any]) -> str:
    running = start(place, workers=workers, before=before)
    code, text = running.finished()
    if not is_over(running):
        findings.fail(f"{what}: a process outlives the run")
    if code not in (0, 2):
        findings.fail(f"{what}: exit code {code}: {text[-800:]}")
    check(place, what, findings)
    if code == 0:
        return "went well"
    said = re.search(r"(\d+) of \d+ shards are kept", text)
    there = len(list((place.staging / "shards").glob("*.json")))
    if there != (int(said[1]) if said else 0):
        findings.fail(f"{what}: {there} shards are kept, and told was: {text[-500:]}")
    return "stopped with shards kept" if said else "stopped"


def _tell(what: str, outcomes: Counter[str], began: float) -> None:
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"{what} in {time.monotonic() - began:.0f} s: {told}", flush=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@contextmanager
def _small_disk(place: Place) -> Iterator[Place]:
    folder = place.folder.parent / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SPARE}", "tmpfs", str(folder)], check=True)
    try:
        yield replace(place, folder=folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
