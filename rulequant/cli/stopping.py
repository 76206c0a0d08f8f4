"""Ctrl-C and SIGTERM during long work: the first ends it cleanly, the second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Terminated", "stops_cleanly"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, answered as Ctrl-C is, with an exit code of its own."""


@contextmanager
def stops_cleanly() -> Iterator[None]:
    """Raise KeyboardInterrupt on the first signal, and leave the next one to the system, which ends the process.

    A signal that is ignored, as by `nohup` or in the background of a script, stays so. Elsewhere than in the main
    thread nothing is done: Python hands signals to that one alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    usual = {each: before[each] for each in _SIGNALS if before[each] in {signal.SIG_DFL, signal.default_int_handler}}
    for each in usual:
        signal.signal(each, _stop)
    try:
        yield
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)


def _stop(number: int, _: FrameType | None) -> None:
    for each in _SIGNALS:
        if signal.getsignal(each) is _stop:
            signal.signal(each, signal.SIG_DFL)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
