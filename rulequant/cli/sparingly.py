"""A command that reads a model goes on as a copy of this process, which imports less of what transformers does."""

from __future__ import annotations

import os
import sys

__all__ = ["AGAIN", "go_on_sparingly", "is_worth_another_try"]

AGAIN = 75
"""The exit code of a copy that failed, and may have failed for what it left out; no command has it."""
_SECONDS_TO_END = 0.5
"""Ctrl-C reaches all processes of a terminal; a signal to this one alone is handed on."""
_is_copy = False


def go_on_sparingly() -> None:
    """Return in a copy that has imported torch, and spares what no model on meta needs; in this process only without.

    That is where torch is imported already, or there can be no copy, or where that failed and its imports may be why.

    Raises:
        SystemExit: in this process, once the copy has done it all; with its exit code.
    """
    if not _may_be_copied():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    try:
        copy = os.fork()
    except OSError:  # no more processes, or no memory for one
        return
    if copy:
        code = _end_of(copy)
        if code != AGAIN:
            raise SystemExit(code)
        return
    global _is_copy  # noqa: PLW0603  it is the process that is one
    _is_copy = True
    from rulequant.torch.processes import end_with
    from rulequant.torch.sparing import import_sparingly

    end_with(parent)
    import_sparingly()


def is_worth_another_try(error: BaseException) -> bool:
    """Whether this is a copy, and the error may come of what it has left out."""
    if not _is_copy:
        return False
    from rulequant.torch.sparing import lies_in_the_input

    return not lies_in_the_input(error)


def _may_be_copied() -> bool:
    """Whether nothing is imported yet that is to be left out, and no thread stands in the way."""
    import threading
    from importlib.util import find_spec

    alone = sys.platform == "linux" and threading.active_count() == 1
    return alone and "torch" not in sys.modules and find_spec("torch") is not None


def _end_of(copy: int) -> int:
    """Wait for the exit code."""
    status = None
    while status is None:
        try:
            status = os.waitpid(copy, 0)[1]
        except KeyboardInterrupt:  # noqa: PERF203
            _hand_on_interrupt(copy)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _hand_on_interrupt(copy: int) -> None:
    """Interrupt the copy, unless it ends in a moment because it was interrupted too."""
    import signal
    import time

    until = time.monotonic() + _SECONDS_TO_END
    while time.monotonic() < until:
        if os.waitid(os.P_PID, copy, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.01)
    os.kill(copy, signal.SIGINT)
