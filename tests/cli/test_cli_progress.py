"""How far apply is, in a log and on a terminal."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from rulequant.cli.progress import (
    INTERVAL,
    DownloadLog,
    LogProgress,
    Silent,
    VerifyLog,
    choose_download,
    choose_progress,
    choose_verify,
)


class _Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _log() -> tuple[LogProgress, list[str], _Clock]:
    lines: list[str] = []
    clock = _Clock()
    return LogProgress(lines.append, clock), lines, clock


def test_a_log_starts_with_what_there_is_to_do() -> None:
    """The first line has the number of tensors and bytes."""
    progress, lines, _ = _log()
    progress.start(90_900_000, 103)
    assert lines == ["reading 103 tensors, 90.9 MB"]


def test_a_log_is_not_flooded() -> None:
    """However fast the tensors come, lines are seconds apart."""
    progress, lines, clock = _log()
    progress.start(1_000_000, 1000)
    for _ in range(1000):
        clock.now += 0.0625
        progress.advance("t", 1000)
    assert len(lines) == 1 + int(62.5 // INTERVAL)


def test_a_line_has_rate_and_time_left() -> None:
    """Share, tensors, bytes, rate, time left, and the tensor at hand with its name escaped."""
    progress, lines, clock = _log()
    progress.start(1_000_000_000, 4)
    clock.now = 10.0
    progress.advance("a\x1b.weight", 250_000_000)
    assert lines[-1] == " 25%  1 of 4 tensors, 250 MB, 25.0 MB/s, 30 s left, a\\x1b.weight"


def test_what_was_done_before_makes_no_rate() -> None:
    """It is done, and counts for the share; the rate is that of what comes after, and so is the time left."""
    progress, lines, clock = _log()
    progress.start(1_000_000_000, 4)
    clock.now = 0.25
    progress.advance("a", 250_000_000)
    progress.advance("b", 250_000_000)
    clock.now = 10.25
    progress.advance("c", 250_000_000)
    assert lines[-1] == " 75%  3 of 4 tensors, 750 MB, 25.0 MB/s, 10 s left, c"


def test_a_download_counts_bytes() -> None:
    """A file comes in many pieces: its lines have no number of files, and the first line has."""
    lines: list[str] = []
    clock = _Clock()
    progress = DownloadLog(lines.append, clock)
    progress.start(1_000_000_000, 4)
    for _ in range(5):
        clock.now += 2.0
        progress.advance("model-00001-of-00002.safetensors", 50_000_000)
    assert lines[0] == "downloading 4 files, 1.00 GB"
    assert lines[1:] == [" 15%  150 MB, 25.0 MB/s, 34 s left, model-00001-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        pytest.param(10, "20 s left", id="seconds"),
        pytest.param(100, "3:20 min left", id="minutes"),
        pytest.param(3600, "2:00 h left", id="hours"),
    ],
)
def test_time_left(seconds: int, text: str) -> None:
    """The unit follows the length."""
    progress, lines, clock = _log()
    progress.start(300, 3)
    clock.now = float(seconds)
    progress.advance("t", 100)
    assert text in lines[-1]


def test_nothing_to_read() -> None:
    """Neither no bytes nor no time divides by zero."""
    progress, lines, clock = _log()
    progress.start(0, 0)
    progress.advance("t", 0)
    clock.now = 2 * INTERVAL
    progress.advance("t", 0)
    assert lines[-1].startswith("100%")


class _Terminal(io.StringIO):
    """A stream that a person watches."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "quiet", "term", "expected"),
    [
        pytest.param(io.StringIO(), False, "xterm", "LogProgress", id="log"),
        pytest.param(_Terminal(), False, "xterm", "Bar", id="terminal"),
        pytest.param(_Terminal(), False, "dumb", "LogProgress", id="dumb terminal"),
        pytest.param(_Terminal(), True, "xterm", "Silent", id="quiet"),
    ],
)
def test_choice(stream: io.StringIO, quiet: bool, term: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar only where somebody watches, and nothing where nobody wants it."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", term)
    assert type(choose_progress(quiet=quiet)).__name__ == expected
    download = "DownloadLog" if expected == "LogProgress" else expected
    assert type(choose_download(quiet=quiet)).__name__ == download
    verify = "VerifyLog" if expected == "LogProgress" else expected
    assert type(choose_verify(quiet=quiet)).__name__ == verify


def test_verify_has_two_rounds() -> None:
    """The second starts anew, of tensors and not of files."""
    lines, clock = [], iter(range(0, 100, 4))
    log = VerifyLog(lines.append, lambda: next(clock))
    log.start(100, 2, "file")
    log.advance("x", 50)
    log.advance("x", 50)
    log.start(10, 1)
    log.advance("y", 5)
    log.advance("y", 5)
    assert [line for line in lines if line.startswith("comparing")] == [
        "comparing 2 files, 100 B",
        "comparing 1 tensor, 10 B",
    ]
    assert lines[-1].startswith("100%  10 B, ")


def test_terminal_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rich is missing the lines of a log do."""
    monkeypatch.setattr(sys, "stderr", _Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delitem(sys.modules, "rulequant.cli.bar", raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert type(choose_progress(quiet=False)) is LogProgress


def test_bar_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar takes names with brackets as they are, and leaves nothing behind."""
    from rulequant.cli.bar import Bar

    stream = _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with Bar(color=False) as bar:
        bar.advance("before the start", 1)
        bar.start(100, 2)
        bar.advance("layers[red].\x1b[2Kweight", 50)
        bar.advance("x" * 200, 50)
    assert "[red]" in stream.getvalue() or stream.getvalue()
    assert "\x1b[2Kweight" not in stream.getvalue()


def test_a_bar_makes_no_rate_of_what_was_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a log."""
    from rulequant.cli import bar as bar_module

    now = [0.0]
    monkeypatch.setattr(bar_module.time, "monotonic", lambda: now[0])
    bar = bar_module.Bar(color=False)
    bar._progress = Progress(get_time=lambda: now[0], console=Console(file=io.StringIO()))
    bar.start(1000, 4)
    for name in "ab":
        now[0] += 0.1
        bar.advance(name, 300)
    (task,) = bar._progress.tasks
    assert (task.completed, task.speed) == (600, None)
    for name in "cd":
        now[0] += 10
        bar.advance(name, 100)
    assert (task.completed, task.speed) == (800, pytest.approx(10))


def test_silent_says_nothing() -> None:
    """All calls are taken."""
    with Silent() as silent:
        silent.start(1, 1)
        silent.advance("t", 1)
