"""What no kill shows: that all bytes are on the disk before a name says so, whatever a power cut leaves of the rest."""

from __future__ import annotations

import sys
from pathlib import PurePath

from faulting.log import Seen
from faulting.place import Findings, Place

__all__ = ["check_order"]

_WRITES = frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2", "copy_file_range", "sendfile", "ftruncate"})
_SYNCS = frozenset({"fsync", "fdatasync"})
_RENAMES = frozenset({"rename", "renameat", "renameat2"})


def check_order(place: Place, seen: list[Seen], findings: Findings) -> tuple[int, int]:
    """Check the calls of a run that went well; returns how many renames of files, and how many syncs, there were."""
    seen = [each for each in seen if not each.failed]
    renames = [each for each in seen if each.name in _RENAMES]
    files, (last,) = renames[:-1], renames[-1:]
    for each in files:
        _check_file(each, seen, findings)
    built, output = last.paths
    if PurePath(output) != place.output:
        findings.fail(f"the last rename is that of {built} to {output}")
    for each in files:
        path = each.paths[1]
        if not PurePath(path).is_relative_to(built):
            continue
        for what in (path, str(PurePath(path).parent)):
            if not _synced(what, each.end, last.begin, seen):
                findings.fail(f"{what} was not synced between its last rename and that of the output")
    if not _synced(str(place.folder), last.end, sys.maxsize, seen):
        findings.fail("the folder of the output was not synced after the last rename")
    return len(files), sum(each.name in _SYNCS for each in seen)


def _check_file(rename: Seen, seen: list[Seen], findings: Findings) -> None:
    part, path = rename.paths
    # The target is the last path of a copy between files.
    writes = [each for each in seen if each.name in _WRITES and each.paths[-1:] == (part,)]
    before = [each.end for each in writes if each.begin < rename.begin]
    if not before:
        findings.fail(f"{path} got its name before anything was written")
    elif max(before) > rename.begin or not _synced(part, max(before), rename.begin, seen):
        findings.fail(f"{path} got its name before it was synced")


def _synced(path: str, after: int, before: int, seen: list[Seen]) -> bool:
    """Whether a sync began after one line of the log and ended before another."""
    return any(
        each.name in _SYNCS and each.paths[-1:] == (path,) and after < each.begin and each.end < before for each in seen
    )
