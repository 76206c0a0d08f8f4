"""The process that workers are copies of: it imports what they use once, and forks before any thread starts.

Copies share the memory of what is imported, and begin at once. The head is a process of its own, and not the run
itself, because a process with threads, such as a notebook's, cannot be forked safely, and because the run then needs no
torch.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from rulequant.torch.processes import end_with

if TYPE_CHECKING:
    from rulequant.torch.checkpoint.units import Unit

__all__ = ["Begin", "Beginning", "Errand", "Order", "Ready", "main"]

Wire = Connection
_OF_WORKERS = (
    "rulequant.torch.checkpoint.bench",
    "rulequant.torch.checkpoint.reader",
    "rulequant.torch.checkpoint.wire",
    "rulequant.torch.checkpoint.work",
)
_RARELY = 200_000
"""Objects more than before; what a large model is on meta, some times over."""
# The run hears of these itself, and ends its workers when it has cleaned up; from a terminal they come to all at once.
_LEFT_TO_THE_RUN = (signal.SIGINT, signal.SIGTERM)


class Beginning(NamedTuple):
    """What the head needs to know first."""

    guest: bool
    """Whether a call is to be made in a process that ends with it."""
    torch: bool
    """Whether the workers are known to use torch."""
    draft: int | None
    """The descriptor of the file that is written ahead, if any is to be."""


class Ready(NamedTuple):
    """What a copy of the head says when it has begun."""

    pid: int


class Begin(NamedTuple):
    """That workers are to begin; whatever else the head is told before says that they will use torch."""

    lock: bool
    """Whether a descriptor follows: the head, and all its copies, hold the lock as long as they live."""
    torch: bool


class Order(NamedTuple):
    """What workers need to know."""

    source: Path
    fingerprint: dict[str, dict[str, int]]
    folder: Path
    mean_threads: int


class Errand(NamedTuple):
    """What is to be written ahead."""

    source: Path
    fingerprint: dict[str, dict[str, int]]
    units: Sequence[Unit]


def main(arguments: Sequence[str]) -> NoReturn:
    """Serve the run at the other end of the sockets whose descriptors are given: of `Crew`, in its order."""
    _settle(os.getppid())
    control, guest, ahead, *workers = (socket.socket(fileno=int(each)) for each in arguments)
    # A thread of numpy's linear algebra, which nothing here uses, would make forking unsafe.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Imports make much and throw little away: looking for cycles would take a sixth of their time.
    gc.set_threshold(_RARELY)
    wire: Wire[Any, Any] = Connection(control.detach())
    with suppress(EOFError, OSError):
        beginning: Beginning = wire.recv()
        if beginning.guest:
            _fork(_serve_guest, guest, [wire, ahead, *workers])
        guest.close()
        for name in _OF_WORKERS:
            import_module(name)
        if beginning.draft is not None:
            _fork(partial(_write_ahead, beginning.draft), ahead, [wire, *workers])
        ahead.close()
        if beginning.torch:
            _import_torch()
        while not isinstance(begin := wire.recv(), Begin):
            _import_torch()
        if begin.torch:
            _import_torch()
        if begin.lock:
            recv_handle(wire)
        gc.collect()
        gc.freeze()  # what the collector marks is no longer shared
        for number, each in enumerate(workers):
            _fork(_work, each, [wire, *workers[number + 1 :]])
            each.close()
        wire.recv()  # which the run never answers: this is where its end is noticed, where no signal tells of it
    os._exit(0)


def _import_torch() -> None:
    # Where it cannot be imported, who uses it finds that again, and is heard.
    with suppress(ImportError, OSError):
        import_module("torch")


def _fork(work: Callable[[Wire[Any, Any]], None], end: socket.socket, others: Sequence[Any]) -> None:
    parent = os.getpid()
    if os.fork():
        return
    code = 1
    try:
        _settle(parent)
        for each in others:
            each.close()
        with Connection(end.detach()) as wire:
            work(wire)
        code = 0
    finally:
        # Nothing of the head's is to be cleaned up by its copy.
        os._exit(code)


def _settle(parent: int) -> None:
    """Leave signals to the run, and end with the parent, whatever ends that."""
    for each in _LEFT_TO_THE_RUN:
        signal.signal(each, signal.SIG_IGN)
    end_with(parent)


def _serve_guest(wire: Wire[Any, Any]) -> None:
    """Make one call, and end: what it imported goes with it."""
    with suppress(EOFError, OSError):
        call = wire.recv_bytes()
        if not _answered_sparingly(wire, call):
            wire.send(Ready(os.getpid()))
            function, arguments = pickle.loads(call)  # noqa: S301  from the run, which started this
            wire.send(_answer(function, arguments, lambda _: True))


def _answered_sparingly(wire: Wire[Any, Any], call: bytes) -> bool:
    """Make the call in a copy of this process that imports less. False if it failed, and that may be the reason."""
    parent = os.getpid()
    copy = os.fork()
    if copy:
        return os.waitpid(copy, 0)[1] == 0
    code = 1
    try:
        _settle(parent)
        from rulequant.torch.sparing import import_sparingly, lies_in_the_input

        wire.send(Ready(os.getpid()))
        import_sparingly()
        function, arguments = pickle.loads(call)  # noqa: S301
        wire.send(_answer(function, arguments, lies_in_the_input))
        code = 0
    finally:
        os._exit(code)


def _answer(function: Callable[..., Any], arguments: Sequence[Any], is_final: Callable[[BaseException], bool]) -> Any:
    """What the function returns, or a final error as it is sent; any other is raised."""
    from rulequant.torch.checkpoint.wire import failure_of

    try:
        answer = function(*arguments)
    except BaseException as error:
        if not is_final(error):
            raise
        answer = failure_of(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    return answer


def _write_ahead(draft: int, wire: Wire[Any, Any]) -> None:
    """Do what is asked until it is done or no more is wanted; what fails will fail again where it counts."""
    from rulequant.torch.checkpoint.bench import Bench
    from rulequant.torch.checkpoint.reader import CheckpointReader
    from rulequant.torch.checkpoint.work import carry_out_ahead

    errand: Errand | None = wire.recv()
    if errand is None:
        return
    wire.send(Ready(os.getpid()))
    with CheckpointReader.attach(errand.source, errand.fingerprint) as reader:
        outputs = {unit.shard: draft for unit in errand.units}
        bench = Bench(reader, errand.source, mean_threads=0, outputs=outputs)
        for unit in errand.units:
            if wire.poll():
                return
            wire.send(carry_out_ahead(bench, unit))


def _work(wire: Wire[Any, Any]) -> None:
    """Carry out units until there are no more, or one fails."""
    from rulequant.torch.checkpoint.bench import Bench
    from rulequant.torch.checkpoint.reader import CheckpointReader
    from rulequant.torch.checkpoint.wire import failure_of
    from rulequant.torch.checkpoint.work import carry_out, expect

    _leave_threads_to_the_crew()
    wire.send(Ready(os.getpid()))
    with suppress(EOFError, OSError):
        order: Order = wire.recv()
        reader = CheckpointReader.attach(order.source, order.fingerprint)
        bench = Bench(reader, order.folder, mean_threads=order.mean_threads)
        for unit in _units(wire, lambda unit: expect(bench, unit)):
            try:
                answer: Any = carry_out(bench, unit)
            except BaseException as error:
                answer = failure_of(error)
            wire.send(answer)


def _leave_threads_to_the_crew() -> None:
    """Have torch start no threads: each core has a worker of its own."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # where it is imported later


def _units(wire: Wire[Any, Any], announce: Callable[[Unit], None]) -> Iterator[Unit]:
    """The units as they come; `announce` is told of those that wait behind the next."""
    waiting: deque[Unit] = deque()
    while True:
        while not waiting or wire.poll():
            waiting.append(wire.recv())
            if len(waiting) > 1:
                announce(waiting[-1])
        yield waiting.popleft()
