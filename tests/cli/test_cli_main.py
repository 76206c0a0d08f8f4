"""The entry point: finding commands, exit codes, and one message for whatever goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from rulequant.cli import main as main_module
from rulequant.cli.app import cli
from rulequant.cli.command import Command
from rulequant.cli.group import COMMANDS
from rulequant.cli.main import run
from rulequant.errors import UsageError

ALL = pytest.mark.parametrize("name", COMMANDS)
RULEQUANT = [sys.executable, "-m", "rulequant"]


def _command(name: str) -> Command:
    command = cli.get_command(click.Context(cli), name)
    assert isinstance(command, Command)
    return command


def test_no_arguments_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The bare command is a question, and no mistake."""
    assert run([]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Usage: rulequant")
    assert err == ""
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Both spellings work, before and after a command."""
    assert run([option]) == 0
    assert run(["schema", option]) == 0
    assert "Usage: rulequant schema" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is that of the installed package."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rulequant 0.")


@ALL
def test_every_command_is_as_the_table_says(name: str) -> None:
    """The table of the group, which imports no command, agrees with the command's own help."""
    command = _command(name)
    assert command.name == name
    assert command.help is not None
    assert COMMANDS[name].endswith(".")


@ALL
def test_every_command_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Help ends in examples of the command itself."""
    assert run([name, "--help"]) == 0
    examples = capsys.readouterr().out.rpartition("Examples:")[2]
    assert f"rulequant {name}" in examples


@ALL
def test_examples_use_options_that_exist(name: str) -> None:
    """No example names an option that the command has not."""
    options = {text for each in _command(name).params for text in each.opts}
    for example in _command(name).examples:
        for part in example.split("&&"):
            words = part.split()
            if f"rulequant {name}" in part:
                assert {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["valdate"], "no command is called `valdate`; did you mean `validate`?", id="misspelt command"),
        pytest.param(["zzz"], "no command is called `zzz`", id="unknown command"),
        pytest.param(["schema", "--frmat"], "No such option", id="unknown option"),
        pytest.param(["plan"], "Missing argument 'MODEL'", id="missing argument"),
        pytest.param(["validate", "x.yaml", "--format", "xml"], "is not one of", id="unknown format"),
        pytest.param(["why", "m", "r", "x", "y"], "one argument too many", id="too many arguments"),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong arguments exit 2, with one message and where to look."""
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert "--help`" in err


def _fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def callback() -> None:
        raise error

    command = Command("schema", callback=callback, examples=())
    monkeypatch.setattr("rulequant.cli.schema.command", command)


def test_a_defect_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What nobody foresaw exits 3, with a short message and no traceback."""
    monkeypatch.delenv("RULEQUANT_DEBUG", raising=False)
    _fail_with(ZeroDivisionError("a\x1bb"), monkeypatch)
    assert run(["schema"]) == 3
    err = capsys.readouterr().err
    assert "this is a defect of rulequant: ZeroDivisionError: a\\x1bb" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("how", ["option", "variable"])
def test_debug_prints_the_traceback(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for, the traceback is printed; the exit code stays."""
    monkeypatch.setenv("RULEQUANT_DEBUG", "1" if how == "variable" else "0")
    _fail_with(ZeroDivisionError("x"), monkeypatch)
    assert run(["--debug", "schema"] if how == "option" else ["schema"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_refusal_has_its_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What a user can mend exits with the error's own code, and says how."""
    monkeypatch.setenv("NO_COLOR", "1")
    _fail_with(UsageError("it is wrong", remedy="do it right"), monkeypatch)
    assert run(["schema"]) == 2
    assert capsys.readouterr().err == "error: it is wrong\n  do it right\n"


@pytest.mark.parametrize(
    ("interrupt", "line"),
    [
        pytest.param(KeyboardInterrupt(), "interrupted\n", id="bare"),
        pytest.param(
            KeyboardInterrupt("nothing was written to x"), "interrupted; nothing was written to x\n", id="told"
        ),
    ],
)
def test_interrupt(
    interrupt: KeyboardInterrupt, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C exits 130 with one line."""
    _fail_with(interrupt, monkeypatch)
    assert run(["schema"]) == 130
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [BrokenPipeError(), click.exceptions.Exit(0)], ids=["broken pipe", "exit"])
def test_quiet_ends(error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A reader that is gone, or an early exit, is no failure."""
    _fail_with(error, monkeypatch)
    monkeypatch.setattr(main_module.terminal, "discard", lambda _: None)
    assert run(["schema"]) == 0
    assert capfd.readouterr().err == ""


def test_pydantic_plugins_are_not_looked_for() -> None:
    """The scan of all installed packages is switched off, unless the user sets the variable."""
    code = "import os; import rulequant.cli.main; print(os.environ['PYDANTIC_DISABLE_PLUGINS'])"
    environment = {key: value for key, value in os.environ.items() if key != "PYDANTIC_DISABLE_PLUGINS"}
    for extra, expected in (({}, "__all__\n"), ({"PYDANTIC_DISABLE_PLUGINS": "mine"}, "mine\n")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | extra, capture_output=True, text=True, check=True
        )
        assert done.stdout == expected


def test_closed_streams() -> None:
    """A caller that closes stdout or stderr gets the exit code all the same."""
    for redirection in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(f"{sys.executable} -m rulequant rules {redirection}", shell=True, capture_output=True)
        assert done.returncode == 0
        assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk() -> None:
    """Output that cannot be written is the user's to mend, not a defect."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*RULEQUANT, "explain"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write to stdout: No space left on device\n"


def test_reader_that_leaves() -> None:
    """`| head` ends quietly."""
    with subprocess.Popen([*RULEQUANT, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_old_terminal() -> None:
    """What a terminal's encoding lacks is escaped."""
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    code = "from rulequant.cli import main, terminal; terminal.prepare(); terminal.data('x \\u2026 y')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout.strip() == b"x \\u2026 y"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_sigint_of_a_process(tmp_path: Path) -> None:
    """A process that waits for stdin ends with 130 and one line when it is interrupted."""
    with subprocess.Popen(
        [*RULEQUANT, "validate", "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        # A shell without job control starts background jobs, and so this test, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        _wait_until_it_sleeps(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr is not None
        assert process.stderr.read().strip() == b"interrupted"


def _wait_until_it_sleeps(pid: int) -> None:
    """Until the process reads from its pipe."""
    import time

    for _ in range(600):
        time.sleep(0.05)
        try:
            waits = "pipe" in Path(f"/proc/{pid}/wchan").read_text()
        except OSError:
            waits = False
        if waits:
            return
    time.sleep(2)
