"""The entry point: finds the command, runs it, and turns what goes wrong into one message and an exit code."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

# pydantic looks for plugins among all installed packages when it makes its first model: a few milliseconds here, and
# many in an environment with hundreds of packages. rulequant's models want none; who does says so in the variable.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from rulequant.cli import terminal
from rulequant.diagnostics import DiagnosticsError
from rulequant.errors import RulequantError
from rulequant.report.overview import exit_code

__all__ = ["INTERNAL_ERROR", "INTERRUPTED", "OK", "TERMINATED", "main", "run"]

OK, INTERNAL_ERROR, INTERRUPTED, TERMINATED = 0, 3, 130, 143


def main() -> NoReturn:
    """Run the command line of this process, and end the process."""
    # Cycles are rare in what a command builds, and imports make the collector run often for nothing.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    code = run(sys.argv[1:])
    if "torch" not in sys.modules:
        _end_now(code)
    sys.exit(code)


def _end_now(code: int) -> None:
    """End without tearing down all modules, which takes a tenth of the time of `validate`; mypy does so too.

    Nothing here has registered anything to be done at exit; torch and what comes with it may.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run a command line; the exit code, never an exception."""
    terminal.prepare()
    try:
        code = _run(list(arguments))
        # What is still in the buffer may meet a closed pipe: better here than in Python's own shutdown.
        terminal.flush()
    except BrokenPipeError:
        terminal.discard(sys.stdout)
        return OK
    except KeyboardInterrupt as interrupt:
        return _interrupted(interrupt)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        from rulequant.cli.sparingly import AGAIN, is_worth_another_try

        if is_worth_another_try(error):
            return AGAIN
        return _refused(error) if isinstance(error, RulequantError) else _defect(error)
    return code


def _run(arguments: list[str]) -> int:
    files = _plain_files(arguments)
    if files:
        from rulequant.cli.checking import check_files

        return check_files(files)
    from rulequant.cli.app import invoke

    return invoke(arguments)


def _plain_files(arguments: list[str]) -> list[str]:
    """The files of `validate FILE...` without options, as hooks call it many times a day; it can do without click."""
    command, *files = arguments or [""]
    plain = command == "validate" and not any(each.startswith("-") for each in files)
    return files if plain and "_RULEQUANT_COMPLETE" not in os.environ else []


def _refused(error: RulequantError) -> int:
    if _wants_traceback():
        _traceback(error)
    terminal.refusal(error)
    if isinstance(error, DiagnosticsError):
        return exit_code(error.diagnostics)
    return error.exit_code


def _interrupted(interrupt: KeyboardInterrupt) -> int:
    """130 and 143 are what a shell reports for a process that SIGINT or SIGTERM ended."""
    from rulequant.cli.stopping import Terminated

    terminated = isinstance(interrupt, Terminated)
    what = "".join(f"; {each}" for each in interrupt.args)
    with contextlib.suppress(OSError):
        terminal.message(f"{'terminated' if terminated else 'interrupted'}{what}")
    return TERMINATED if terminated else INTERRUPTED


def _defect(error: Exception) -> int:
    if _wants_traceback():
        _traceback(error)
    terminal.error(
        f"this is a defect of rulequant: {type(error).__name__}: {error}",
        remedy=None
        if _wants_traceback()
        else "run it again with --debug before the command, and report what it prints",
    )
    return INTERNAL_ERROR


def _wants_traceback() -> bool:
    return os.environ.get("RULEQUANT_DEBUG", "") not in {"", "0"}


def _traceback(error: BaseException) -> None:
    import traceback

    sys.stderr.write("".join(traceback.format_exception(error)))
