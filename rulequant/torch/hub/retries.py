"""Requests that are made again after a while, where the Hub is busy or the line broke."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from rulequant.torch.hub.answers import TransportError, status_of

__all__ = ["retried"]

T = TypeVar("T")

_WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt."""
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_MAX_WAIT = 60.0


def retried(call: Callable[[], T], *, also: frozenset[int] = frozenset(), stopped: Callable[[], bool] = bool) -> T:
    """What the call returns; made again after answers that pass, and after those whose status is in `also`.

    `stopped` ends the attempts. What the last of them raises is raised.
    """
    for wait in _WAITS:
        try:
            return call()
        except Exception as error:  # noqa: PERF203  each attempt may fail
            if stopped() or not _passes(error, _BUSY | also):
                raise
            time.sleep(min(_asked_wait(error) or wait, _MAX_WAIT))
    return call()


def _passes(error: Exception, statuses: frozenset[int]) -> bool:
    """Whether the same request may be answered another time."""
    status = status_of(error)
    return isinstance(error, TransportError) and (status is None or status in statuses)


def _asked_wait(error: BaseException) -> float | None:
    """The seconds that the Hub asks to wait; None where it does not say."""
    text = str(getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", ""))
    return float(text) if text.isdecimal() else None
