"""The first Ctrl-C or SIGTERM ends a command cleanly, the second at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from rulequant.cli.stopping import Terminated, stops_cleanly

COMMAND = """
import signal, sys, time
from rulequant.cli import main as main_module
from rulequant.cli.stopping import stops_cleanly

def work(arguments):
    with stops_cleanly():
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("cleaning up", flush=True)
            time.sleep(float(arguments[0]))
            print("cleaned up", flush=True)

main_module._run = work
sys.exit(main_module.run(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What the signals do is afterwards as it was."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_is_an_exception(number: signal.Signals, error: type[BaseException]) -> None:
    """It passes through the work, and then both signals mean what they meant before."""
    with pytest.raises(error), stops_cleanly():
        os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_ignored_signal_stays_ignored() -> None:
    """As in the background of a script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stops_cleanly():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_another_thread_changes_nothing() -> None:
    """Python lets only the main thread say what a signal does."""
    seen: list[object] = []

    def work() -> None:
        with stops_cleanly():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def _process(seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell without job control starts background jobs, and so this test, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n")],
    ids=["SIGINT", "SIGTERM"],
)
def test_once(number: signal.Signals, code: int, line: str) -> None:
    """Everything is cleaned up, and the exit code is what a shell reports for that signal."""
    with _process(0) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == ("cleaning up\ncleaned up\n", line, code)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=["then SIGINT", "then SIGTERM"])
def test_twice(first: signal.Signals, second: signal.Signals) -> None:
    """The second does not wait for the cleaning up."""
    with _process(60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == "cleaning up\n"
        process.send_signal(second)
        out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == ("", "", -second)
