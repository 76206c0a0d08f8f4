"""Processes that work for a run, which itself imports no torch: one that prepares, and several that encode.

Threads would share the interpreter lock, and two are hardly faster than one; processes are, and their memory is mostly
that of the one head that they are copies of.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any, TypeVar, cast

from rulequant.errors import ResumableError, UsageError
from rulequant.torch.checkpoint.ahead import Draft
from rulequant.torch.checkpoint.cutting import DEFAULT_MEMORY, SMALLEST_MEMORY, Cutting
from rulequant.torch.checkpoint.files import size_text
from rulequant.torch.checkpoint.footprint import Footprint
from rulequant.torch.checkpoint.head import Begin, Beginning, Errand, Order, Ready
from rulequant.torch.checkpoint.job import BaseJob
from rulequant.torch.checkpoint.shardfile import Begun, ShardFile
from rulequant.torch.checkpoint.shards import Executor
from rulequant.torch.checkpoint.units import Result, Unit
from rulequant.torch.checkpoint.wire import Failure, failure_to_raise

__all__ = ["Crew", "available_cores", "memory_of_each", "worthwhile_workers"]

_UNITS_AT_A_WORKER = 2
"""While it does one it has the next one read."""
_BYTES_A_WORKER = 32 << 20
"""Of the source; for less it is not worth to start another."""
_START = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from rulequant.torch.checkpoint.head import main; main(sys.argv[1].split())"
)
_SECONDS_TO_END = 5.0

T = TypeVar("T")
Ticket = tuple[ShardFile, int]


def available_cores() -> int:
    """The cores that this process may use: of its affinity, and of its control group's share of time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # "max" among them
        return cores


def memory_of_each(memory: int | None, workers: int) -> int:
    """What each of the workers may take, of so much for all.

    Raises:
        UsageError: it is too little.
    """
    if memory is None:
        return DEFAULT_MEMORY
    if memory // workers < SMALLEST_MEMORY:
        fitting = memory // SMALLEST_MEMORY
        raise UsageError(
            f"a memory of {size_text(memory)} is too little for {_counted(workers)}, "
            f"each of which takes at least {size_text(SMALLEST_MEMORY)}",
            remedy=f"give at least {SMALLEST_MEMORY * workers / 2**20:g}MiB"
            + (f", or {_counted(fitting)}" if fitting else ""),
        )
    return memory // workers


def _counted(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


def worthwhile_workers(job: BaseJob, workers: int) -> int:
    """So many of the workers as have something to do."""
    return max(1, min(workers, sum(shard.source_bytes for shard in job.shards) // _BYTES_A_WORKER))


class Crew:
    """A head and what is forked from it; they begin to import when the crew is made, and end with it."""

    def __init__(self, workers: int, *, guest: bool = False, torch: bool = True, draft: int | None = None) -> None:
        """Start the head; `guest` says whether `call` will be used, once, `torch` whether workers will use torch.

        `draft` is the descriptor of the file for `write_ahead`, if that will be used; it stays its owner's.
        """
        pairs = [socket.socketpair() for _ in range(workers + 3)]
        theirs = [end for _, end in pairs]
        control, guest_end, ahead, *ends = (Connection(end.detach()) for end, _ in pairs)
        self._control, self._guest, self._ahead, self._ends = control, guest_end, ahead, ends
        self._draft: Draft | None = None
        self._closed = False
        fds = " ".join(str(end.fileno()) for end in theirs)
        try:
            self._head = subprocess.Popen(
                [sys.executable, "-c", _START, fds, *sys.path],
                pass_fds=[*(end.fileno() for end in theirs), *([] if draft is None else [draft])],
                stdin=subprocess.DEVNULL,
            )
        finally:
            for end in theirs:
                end.close()
        if draft is None:
            ahead.close()
        self.footprint = Footprint([os.getpid(), self._head.pid])
        control.send(Beginning(guest, torch, draft))

    def __enter__(self) -> Crew:
        """The crew itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes, and wait until they are gone."""
        self.close()

    def expect_torch(self) -> None:
        """Have torch imported for the workers, while the guest is busy."""
        _send(self._control, "torch")

    def write_ahead(self, source: Path, draft: Draft) -> None:
        """Have a file written that will probably be asked for, until workers begin; they do what is left of it."""
        self._draft = draft
        _send(self._ahead, Errand(source, draft.fingerprint, draft.units))

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function of a module in a process that ends with the call; what it raises is raised here."""
        _send(self._guest, (function, arguments))
        while isinstance(answer := self._hear_guest(), Ready):
            self.footprint.add(answer.pid)
        self._guest.close()
        return cast(T, answer)

    def _hear_guest(self) -> Any:
        while True:
            heard = wait([each for each in (self._guest, self._ahead) if not each.closed], self.footprint.interval)
            if self._guest in heard:
                return _answer(self._guest)
            self._hear_ahead()
            self.footprint.measure()

    def _hear_ahead(self) -> None:
        """Take in what was written; a process that failed is not missed."""
        try:
            while self._ahead.poll():
                said = self._ahead.recv()
                if isinstance(said, Ready):
                    self.footprint.add(said.pid)
                elif self._draft is not None:
                    self._draft.take(said)
        except (EOFError, OSError):
            self._ahead.close()

    def _end_ahead(self) -> None:
        """Have nothing more written ahead, and wait until nothing is: from here on the file is the workers'."""
        if not self._ahead.closed:
            with suppress(OSError):
                self._ahead.send(None)
        while not self._ahead.closed:
            if self._ahead.poll(self.footprint.interval):
                self._hear_ahead()
            self.footprint.measure()

    @contextmanager
    def executor(self, job: BaseJob, folder: Path, *, lock: int | None = None) -> Iterator[Executor]:
        """Workers that carry out the units of a job, for files in a folder; once for a crew, which ends with it.

        They hold the `lock` on the folder too: if this process is killed, no other run gets it while one still writes.
        """
        count = worthwhile_workers(job, len(self._ends))
        for end in self._ends[count:]:
            end.close()
        ends = self._ends[:count]
        fingerprint = {file: dict(stamp) for file, stamp in job.fingerprint.items()}
        self._begin(lock, torch=job.takes_torch)
        for end in ends:
            _send(end, Order(cast(Path, job.source), fingerprint, folder, job.mean_threads))
        for end in ends:
            self.footprint.add(cast(Ready, self._receive(end)).pid)
        self._end_ahead()
        try:
            yield _Workers(ends, self.footprint, partial(self._begun, fingerprint))
        finally:
            # Before the lock is given back: what opens files by their names would find those of the next run.
            self.close()

    def _begun(self, fingerprint: Mapping[str, Mapping[str, int]], cutting: Cutting) -> Begun | None:
        """What is written of the first file that is asked for."""
        draft, self._draft = self._draft, None
        if draft is None:
            return None
        begun = draft.begun(cutting, fingerprint)
        if begun is None:
            draft.drop()
        return begun

    def _begin(self, lock: int | None, *, torch: bool) -> None:
        _send(self._control, Begin(lock is not None, torch))
        if lock is not None:
            try:
                send_handle(self._control, lock, self._head.pid)
            except OSError as error:
                raise _ended() from error

    def close(self) -> None:
        """End all processes, whatever they do, and wait until they are gone."""
        if self._closed:
            return
        self._closed = True
        self._head.kill()
        self._head.wait()
        # The head's end ends its copies. When the last holder of the other end is gone, there is nothing to receive.
        for end in self._ends:
            with suppress(EOFError, OSError):
                while not end.closed and end.poll(_SECONDS_TO_END):
                    end.recv_bytes()
        for end in (self._control, self._guest, self._ahead, *self._ends):
            end.close()

    def _receive(self, end: Connection[Any, Any]) -> Any:
        while not end.poll(self.footprint.interval):
            self.footprint.measure()
        return _answer(end)


class _Workers:
    """An `Executor` of several processes."""

    syncs = True

    def __init__(
        self, ends: list[Connection[Any, Any]], footprint: Footprint, begun: Callable[[Cutting], Begun | None]
    ) -> None:
        self._ends, self._footprint, self.begun = ends, footprint, begun
        # Each answers in the order in which it was asked.
        self._tickets: dict[Connection[Any, Any], deque[Ticket]] = {end: deque() for end in ends}

    def has_room(self) -> bool:
        return any(len(each) < _UNITS_AT_A_WORKER for each in self._tickets.values())

    def submit(self, ticket: Ticket, unit: Unit) -> None:
        end = min(self._ends, key=lambda each: len(self._tickets[each]))
        self._tickets[end].append(ticket)
        _send(end, unit)

    def wait(self) -> tuple[Ticket, Result]:
        busy = [end for end, tickets in self._tickets.items() if tickets]
        while not (ready := wait(busy, self._footprint.interval)):
            self._footprint.measure()
        self._footprint.measure()
        end = cast("Connection[Any, Any]", ready[0])
        answer = cast(Result, _answer(end))
        return self._tickets[end].popleft(), answer


def _send(end: Connection[Any, Any], message: object) -> None:
    try:
        end.send(message)
    except OSError as error:
        raise _ended() from error


def _answer(end: Connection[Any, Any]) -> Any:
    """What a process says, once it does; what it raised is raised here."""
    try:
        answer = end.recv()
    except (EOFError, OSError) as error:
        raise _ended() from error
    if isinstance(answer, Failure):
        raise failure_to_raise(answer)
    return answer


def _ended() -> ResumableError:
    return ResumableError(
        "a process that worked for this one ended before its time: it was killed, by the system if memory ran out",
        remedy="give fewer --workers or less --memory, or free some memory, and run again",
    )
