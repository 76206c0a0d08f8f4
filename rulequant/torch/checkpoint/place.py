"""Whether an output may be made where it is asked for: nothing there yet, and apart from the source."""

from __future__ import annotations

import os
from pathlib import Path

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import printable

__all__ = ["check_output"]


def check_output(output: Path, source: Path | None = None) -> None:
    """Refuse an output that exists, has no writable folder to be in, or overlaps with the source.

    Raises:
        CheckpointError: saying which, and what to choose instead.
    """
    _refuse_overlap(output, source)
    where = printable(output)
    if os.path.lexists(output):
        raise CheckpointError(
            f"{where}: the output already exists; nothing is ever replaced",
            remedy="choose another output, or remove this one first",
        )
    parent = output.parent
    if not parent.is_dir():
        raise CheckpointError(
            f"{where}: {printable(parent)} is not a folder, so the output cannot be made in it",
            remedy="make that folder first, or choose another output",
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"{where}: no permission to write in {printable(parent)}",
            remedy="choose a folder that you may write to, or change its permissions",
        )


def _refuse_overlap(output: Path, source: Path | None) -> None:
    if source is None or not os.path.lexists(source):
        return
    # Only what exists can be the same file; so the output is placed by its folder's real path.
    real_output = Path(os.path.realpath(output.parent)) / output.name
    real_source = Path(os.path.realpath(source))
    if _is_within(real_output, real_source):
        relation = "is the source itself" if _is_same(real_output, real_source) else "lies inside the source"
    elif _is_within(real_source, Path(os.path.realpath(output))):
        relation = "contains the source"
    else:
        return
    raise CheckpointError(
        f"{printable(output)}: the output {relation}, {printable(source)}, which is never written to",
        remedy="choose an output outside of the source",
    )


def _is_within(path: Path, folder: Path) -> bool:
    return any(_is_same(each, folder) for each in (path, *path.parents))


def _is_same(first: Path, second: Path) -> bool:
    # samefile, because one folder can have two names: bind mounts, file systems that ignore case.
    if first == second:
        return True
    try:
        return first.samefile(second)
    except OSError:
        return False
