"""Commands that read a model go on in a copy that imports less: its words and exit code are the command's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rulequant.cli import sparingly

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no copy")

CONFIG = '{"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_hidden_layers": 1, '
CONFIG += '"num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}'
RUN = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which who started the tests may have had ignored
from pathlib import Path
import rulequant.cli.inputs as inputs
from rulequant.cli import sparingly
def no_more():
    raise BlockingIOError("no more processes")
{before}
def meanwhile():
    {meanwhile}
go_on = inputs.go_on_sparingly
def then():
    go_on()
    Path("notes").open("a").write(f"{{sparingly._is_copy}} {{os.getpid()}}\\n")
    meanwhile()
inputs.go_on_sparingly = then
from rulequant.cli.main import run
code = run(sys.argv[1:])
print(f"code {{code}}, torch {{'torch' in sys.modules}}, copy {{sparingly._is_copy}}", file=sys.stderr)
os._exit(code)
"""


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model to plan, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/config.json").write_text(CONFIG)
    Path("rules.yaml").write_text("version: 1\nschemes:\n  it: {method: bnb_4bit}\nscheme: it\n")


def start(*arguments: str, before: str = "", meanwhile: str = "pass") -> subprocess.Popen[str]:
    """A command in a session of its own, which does something before it forks, and in each process that goes on."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN.format(before=before, meanwhile=meanwhile), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def notes() -> list[tuple[str, int]]:
    """The processes that went on, and whether they are copies."""
    lines = Path("notes").read_text().splitlines() if Path("notes").exists() else []
    return [(line.split()[0], int(line.split()[1])) for line in lines]


def pid_of_copy() -> int:
    """Once it is there."""
    until = time.monotonic() + 60
    while not notes() and time.monotonic() < until:
        time.sleep(0.01)
    ((copied, pid),) = notes()
    assert copied == "True"
    return pid


def test_a_copy_does_it_all() -> None:
    """The plan is printed once, and this process never imports torch."""
    process = start("plan", "model", "rules.yaml")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert out.count("BertModel") == 1
    assert err.splitlines()[-1] == "code 0, torch False, copy False"
    assert [copied for copied, _ in notes()] == ["True"]


def test_mistakes_are_told_once() -> None:
    """They are no reason to try again."""
    Path("model/config.json").write_text('{"model_type": "no such type"}')
    process = start("plan", "model", "rules.yaml")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert err.count("no such type") == 1
    assert err.splitlines()[-1] == "code 2, torch False, copy False"


@pytest.mark.parametrize("what", ["AttributeError('no such name')", "SystemError('odd')"])
def test_what_may_be_for_lack_of_imports_is_done_again(what: str) -> None:
    """By this process, with all of them, and nothing is heard of it."""
    process = start("plan", "model", "rules.yaml", meanwhile=f"if sparingly._is_copy: raise {what}")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert out.count("BertModel") == 1
    assert err.splitlines()[-1] == "code 0, torch True, copy False"
    assert [copied for copied, _ in notes()] == ["True", "False"]


def test_where_there_can_be_no_copy() -> None:
    """The process does it itself."""
    process = start("plan", "model", "rules.yaml", before="os.fork = no_more")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert out.count("BertModel") == 1
    assert [copied for copied, _ in notes()] == ["False"]


def test_what_fails_again_is_told_once() -> None:
    """A defect is one, whatever is imported."""
    process = start("plan", "model", "rules.yaml", meanwhile="raise AttributeError('no such name')")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 3
    assert err.count("no such name") == 1


@pytest.mark.parametrize("group", [True, False], ids=["from a terminal", "to the process alone"])
def test_ctrl_c_is_heard(group: bool) -> None:
    """Once, and nothing is left."""
    with start("plan", "model", "rules.yaml", meanwhile="time.sleep(60)") as process:
        copy = pid_of_copy()
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.count("interrupted") == 1
    assert not Path(f"/proc/{copy}").exists()


def test_a_copy_that_is_killed_is_told_by_the_exit_code() -> None:
    """As a shell would."""
    with start("plan", "model", "rules.yaml", meanwhile="time.sleep(60)") as process:
        os.kill(pid_of_copy(), signal.SIGKILL)
        process.communicate(timeout=30)
    assert process.returncode == 137


def test_a_copy_ends_with_the_command() -> None:
    """Whatever ends that."""
    with start("plan", "model", "rules.yaml", meanwhile="time.sleep(60)") as process:
        copy = pid_of_copy()
        process.kill()
        process.wait(timeout=30)
    until = time.monotonic() + 20
    while Path(f"/proc/{copy}/stat").exists() and ") Z " not in Path(f"/proc/{copy}/stat").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_here_nothing_is_copied() -> None:
    """Torch is imported already."""
    import torch  # noqa: F401

    sparingly.go_on_sparingly()
    assert not sparingly.is_worth_another_try(AttributeError("no such name"))
