"""How far apply, a download or verify is: a bar on a terminal, a line now and then in a log, nothing with --quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from rulequant.cli import terminal
from rulequant.escaping import printable
from rulequant.report.text import count, size

if TYPE_CHECKING:
    from rulequant.cli import bar

__all__ = [
    "DownloadLog",
    "LogProgress",
    "ProgressDisplay",
    "Silent",
    "VerifyDisplay",
    "VerifyLog",
    "choose_download",
    "choose_progress",
    "choose_verify",
]

INTERVAL = 5.0
"""Seconds between two lines of a log."""
SETTLING = 0.5
"""Seconds at the start in which what was done before is counted; a rate is of what comes after."""


class ProgressDisplay(AbstractContextManager["ProgressDisplay"], Protocol):
    """What `apply_to_folder` tells how far it is, for as long as the run lasts."""

    def start(self, total_bytes: int, tensors: int) -> None:
        """The source bytes to read in all, and the number of tensors."""

    def advance(self, tensor: str, nbytes: int) -> None:
        """A source tensor is done."""


class VerifyDisplay(AbstractContextManager["VerifyDisplay"], Protocol):
    """What `verify_folder` tells how far it is; a new start ends the round before."""

    def start(self, total_bytes: int, tensors: int, unit: str = "tensor") -> None:
        """The bytes to read in all, and the number of files or tensors."""

    def advance(self, tensor: str, nbytes: int) -> None:
        """Some bytes of a file or tensor are done."""


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def start(self, total_bytes: int, tensors: int, unit: str = "tensor") -> None:
        """Nothing."""

    def advance(self, tensor: str, nbytes: int) -> None:
        """Nothing."""


class LogProgress(Silent):
    """Writes plain lines to stderr, at most one every few seconds, and one at the end."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._total = self._tensors = self._done = self._count = 0
        self._began = self._since = self._last = clock()
        self._before = 0

    def __enter__(self) -> LogProgress:
        return self

    def start(self, total_bytes: int, tensors: int, unit: str = "tensor") -> None:  # noqa: ARG002
        """Say how much there is to do."""
        self._total, self._tensors = total_bytes, tensors
        self._begin()
        self._write(f"reading {tensors:,} tensors, {size(total_bytes)}")

    def advance(self, tensor: str, nbytes: int) -> None:
        """Say how far it is, if the last line is long enough ago."""
        self._done += nbytes
        self._count += 1
        now = self._clock()
        if now - self._began < SETTLING:
            self._since, self._before = now, self._done
        if now - self._last < INTERVAL:
            return
        self._last = now
        self._write(self._line(tensor, now))

    def _begin(self) -> None:
        """Measure from here on."""
        self._began = self._since = self._last = self._clock()
        self._before = self._done

    def _line(self, tensor: str, now: float) -> str:
        done = f"{self._count:,} of {self._tensors:,} tensors, "
        return f"{self._share():4.0%}  {done}{self._rate(now)}, {printable(tensor)}"

    def _share(self) -> float:
        return self._done / self._total if self._total else 1.0

    def _rate(self, now: float) -> str:
        """`1.5 GB, 300 MB/s, 42 s left`"""
        seconds = now - self._since
        rate = (self._done - self._before) / seconds if seconds > 0 else 0.0
        left = f", {_duration((self._total - self._done) / rate)} left" if rate else ""
        return f"{size(self._done)}, {size(int(rate))}/s{left}"


def _duration(seconds: float) -> str:
    """`42 s`, `3:20 min`, `1:05 h`"""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


class DownloadLog(LogProgress):
    """As `LogProgress`, for the files of a download, each of which comes in many pieces."""

    def start(self, total_bytes: int, tensors: int, unit: str = "tensor") -> None:  # noqa: ARG002
        """Say how much there is to do."""
        self._total, self._tensors = total_bytes, tensors
        self._begin()
        self._write(f"downloading {tensors:,} files, {size(total_bytes)}")

    def _line(self, tensor: str, now: float) -> str:
        return f"{self._share():4.0%}  {self._rate(now)}, {printable(tensor)}"


class VerifyLog(DownloadLog):
    """As `DownloadLog`, for the files of an output, and after them for tensors that are compared."""

    def start(self, total_bytes: int, tensors: int, unit: str = "tensor") -> None:
        """Say how much there is to do."""
        self._total, self._tensors, self._done = total_bytes, tensors, 0
        self._begin()
        self._write(f"comparing {count(tensors, unit)}, {size(total_bytes)}")


def choose_progress(*, quiet: bool) -> ProgressDisplay:
    """The display for stderr as it is now."""
    return _choose(LogProgress, quiet=quiet)


def choose_download(*, quiet: bool) -> ProgressDisplay:
    """As `choose_progress`, for a download."""
    return _choose(DownloadLog, quiet=quiet)


def choose_verify(*, quiet: bool) -> VerifyDisplay:
    """As `choose_progress`, for two rounds, one after the other."""
    return _choose(VerifyLog, quiet=quiet)


def _choose(log: type[LogProgress], *, quiet: bool) -> Silent | bar.Bar:
    if quiet:
        return Silent()
    if terminal.is_terminal(sys.stderr):
        try:
            from rulequant.cli.bar import Bar
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "rich":
                raise
        else:
            return Bar(color=terminal.uses_color(sys.stderr))
    return log(terminal.note)
