"""What goes between a run and the processes that work for it: results, and errors with all that they say."""

from __future__ import annotations

import pickle
import socket
import traceback
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

__all__ = ["Failure", "connection_of", "failure_of", "failure_to_raise"]


class Failure(NamedTuple):
    """What was raised elsewhere."""

    error: bytes
    """Pickled."""
    text: str
    """Its traceback, for those who debug."""


class _ElsewhereError(Exception):
    """Stands for the traceback of another process, as the cause of what it raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def failure_of(error: BaseException) -> Failure:
    """An error as it is sent; one that cannot be sent as what it says."""
    text = "".join(traceback.format_exception(error))
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)  # noqa: S301  our own bytes: many an exception is pickled, and then not made again
    except Exception:
        pickled = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return Failure(pickled, text)


def failure_to_raise(failure: Failure) -> BaseException:
    """The error, with the other process's traceback as its cause."""
    error: BaseException = pickle.loads(failure.error)  # noqa: S301  from a process that we started
    error.__cause__ = _ElsewhereError(failure.text)
    return error


def connection_of(end: socket.socket) -> Connection[Any, Any]:
    """One end of a pair of sockets, to send and receive objects by; the socket is used up."""
    return Connection(end.detach())
