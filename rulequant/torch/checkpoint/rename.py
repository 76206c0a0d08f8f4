"""A folder renamed only where nothing has the new name."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["rename_without_replacing"]

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
# What the kernel or a file system without RENAME_NOREPLACE answers.
_NO_RENAMEAT2 = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM})


def rename_without_replacing(source: Path, destination: Path) -> None:
    """Rename a folder; OSError (EEXIST, ENOTEMPTY or ENOTDIR) where the destination exists.

    Where the system cannot do both in one step, an empty folder made in that instant would be replaced.
    """
    if _renameat2(source, destination):
        return
    if os.path.lexists(destination):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination))
    source.rename(destination)


def _renameat2(source: Path, destination: Path) -> bool:
    """Whether the kernel renamed; False where it cannot do so without replacing."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    paths = os.fsencode(source), os.fsencode(destination)
    if function(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(_RENAME_NOREPLACE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_RENAMEAT2:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(destination))
