"""Runs of apply as processes of their own, with the head and the workers that they start."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from faulting.place import SHARD_SIZES, Findings, Place, check, clear
from rulequant.cli import ahead as begun_ahead
from rulequant.cli import apply
from rulequant.cli.main import run
from rulequant.torch.checkpoint import crew, cutting, head

__all__ = ["BUSY", "PATIENCE", "Run", "children", "configure", "is_over", "kill", "rerun", "start", "stopped"]

PATIENCE = 600.0
"""Seconds after which a run counts as hanging."""
BUSY = "another rulequant apply is writing"
_STOP = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP); "
_ENDED = frozenset("ZX")
_SLICE = 1 << 14
"""Values that are encoded at a time: so few that weights of a tiny model are taken apart too."""


@dataclass(frozen=True)
class Run:
    """A run that was started: its process, which leads a group, and the file that its messages go to."""

    pid: int
    messages: Path

    def finished(self) -> tuple[int, str]:
        """Wait for its end: the exit code (negative: a signal), and what it said."""
        until = time.monotonic() + PATIENCE
        while True:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status), self.messages.read_text(errors="replace")
            if time.monotonic() > until:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise SystemExit(f"a run hangs: {self.messages.read_text()}")
            time.sleep(0.002)


class WarmHead:
    """Stands for `subprocess.Popen` of a head: a copy of this process, which has imported torch already."""

    def __init__(self, arguments: list[str], *, pass_fds: list[int], stdin: int) -> None:
        del stdin
        self.pid = os.fork()
        if self.pid == 0:
            for fd in [int(each.name) for each in Path("/proc/self/fd").iterdir()]:
                if fd > 2 and fd not in pass_fds:
                    with contextlib.suppress(OSError):  # that of the listing itself
                        os.close(fd)
            if arguments[2].startswith(_STOP):
                os.kill(os.getpid(), signal.SIGSTOP)
            head.main(arguments[3].split())

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


def configure(place: Place, *, warm: bool, ahead: bool) -> None:
    """Have all imported that runs take, so that they are copies of this process; with `warm`, their heads too.

    With `ahead` they make their plans themselves, and begin the first file meanwhile.
    """
    # The checkpoint is too small for workers otherwise.
    crew._BYTES_A_WORKER = 1
    begun_ahead.WORTHWHILE = 0
    cutting._LARGEST_SLICE = _SLICE
    if not warm:
        return
    if ahead:
        # What a run imports is no reason here to prepare in it: it is what this process has imported.
        apply._by_itself = lambda _: True  # type: ignore[assignment]
        import transformers.models.llama.modeling_llama  # noqa: F401
    import torch  # noqa: F401

    import rulequant.torch.checkpoint.work
    import rulequant.torch.factories.bitsandbytes  # noqa: F401

    crew.subprocess = SimpleNamespace(Popen=WarmHead, DEVNULL=-3)
    if run(_command(place, SHARD_SIZES[0], 2)):
        raise SystemExit("an undisturbed run failed")
    findings = Findings()
    check(place, "a run that nothing disturbs", findings)
    clear(place)
    if findings.failures:
        raise SystemExit(1)


def start(
    place: Place,
    *,
    workers: int = 2,
    size: str = SHARD_SIZES[0],
    before: Callable[[], Any] = lambda: None,
    stopped: bool = False,
    stopped_head: bool = False,
) -> Run:
    """Start one in a process group of its own; `before` is called in it.

    With `stopped` it waits for SIGCONT, with `stopped_head` the head of its workers does.
    """
    messages = place.messages / size
    messages.write_text("")
    pid = os.fork()
    if pid == 0:
        code = 99
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            os.dup2(os.open(messages, os.O_WRONLY | os.O_APPEND), 2)
            if stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            before()
            if stopped_head:
                crew._START = _STOP + crew._START
            code = run(_command(place, size, workers))
        os._exit(code)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # whoever is first
    return Run(pid, messages)


def _command(place: Place, size: str, workers: int) -> list[str]:
    options = ["--max-shard-size", size, "--workers", str(workers), "--quiet"]
    return ["apply", str(place.source), *place.made_by, "-o", str(place.output), *options]


def kill(victim: Run, pids: list[int] | None = None) -> bool:
    """SIGKILL to processes of a run, without any given to all; and whether the run itself was ended by it."""
    with contextlib.suppress(ProcessLookupError):
        if pids is None:
            os.killpg(victim.pid, signal.SIGKILL)
        for pid in pids or ():
            os.kill(pid, signal.SIGKILL)
    return victim.finished()[0] == -signal.SIGKILL


def children(pid: int) -> list[int]:
    """The processes whose parent it is, and that have not ended."""
    processes = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
    return sorted(each for each in processes if (facts := _stat(each))[1:2] == [str(pid)] and facts[0] not in _ENDED)


def _stat(pid: int) -> list[str]:
    """What the kernel tells of a process, from its state on; nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def stopped(running: Run, *, head: bool) -> int:
    """The process of a run, or the head of its workers, once it has stopped."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        for pid in children(running.pid) if head else [running.pid]:
            if _stat(pid)[:1] == ["T"]:
                return pid
        time.sleep(0.002)
    raise SystemExit(f"a run does not stop: {running.messages.read_text()}")


def is_over(victim: Run, *, seconds: float = 20.0) -> bool:
    """Whether all processes of a run are gone, after a while at most."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(victim.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.005)
    return False


def rerun(place: Place, when: str, findings: Findings, *, size: str = SHARD_SIZES[0]) -> None:
    """The same command again, undisturbed, until the output is there and nothing else; then all is cleared."""
    if not place.output.exists():
        code, text = start(place, size=size).finished()
        # The workers of a killed run may live a moment longer than it, and hold the lock until then.
        until = time.monotonic() + PATIENCE
        while code and BUSY in text and time.monotonic() < until:
            findings.counts["reruns that waited for workers of the killed run"] += 1
            time.sleep(0.01)
            code, text = start(place, size=size).finished()
        if code:
            findings.fail(f"{when}: the rerun failed: {text[-500:]}")
        elif place.staging.exists():
            findings.fail(f"{when}: the rerun left its staging folder")
        check(place, f"rerun {when}", findings, size=size)
        if not place.output.exists():
            findings.fail(f"{when}: the rerun wrote nothing")
    clear(place)
