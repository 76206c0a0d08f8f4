"""A small checkpoint, the output of an undisturbed run, and what has to hold after any other."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SHARD_SIZES", "STAGING", "Findings", "Place", "check", "clear", "hashes", "moment", "prepare"]

SHARD_SIZES = ("40KB", "60KB")
"""The second is for a run that must not be mistaken for one of the first."""
STAGING = ".out.rulequant-staging"
_RULES = """
version: 1
schemes:
  it: {method: bnb_4bit, double_quant: true}
scheme: it
"""
_MODEL = """
import sys
from pathlib import Path
import torch, transformers
transformers.logging.disable_progress_bar()
config = transformers.LlamaConfig(
    hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=256, max_position_embeddings=64,
)
torch.manual_seed(0)
folder = Path(sys.argv[1])
transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
(folder / "README.md").write_text("---\\nlicense: mit\\n---\\n# A model\\n")
(folder / "tokenizer.json").write_text("{}")
(folder / "assets").mkdir()
(folder / "assets" / "vocabulary.txt").write_text("a\\nb\\n")
"""


@dataclass(frozen=True)
class Place:
    """Where it all happens."""

    source: Path
    made_by: tuple[str, ...]
    """The arguments of apply that say how it is made: a plan, or rules."""
    folder: Path
    """What the output is made in, again and again; nothing else is in it."""
    expected: dict[str, dict[str, str]]
    """The hashes of the files of undisturbed runs, by size of the shards."""
    before: dict[str, tuple[str, int, int]]
    """The state of the source."""

    @property
    def output(self) -> Path:
        """What is made, and unmade."""
        return self.folder / "out"

    @property
    def staging(self) -> Path:
        """Where it is made."""
        return self.folder / STAGING

    @property
    def messages(self) -> Path:
        """The folder for what runs say."""
        return self.folder.parent / "messages"


class Findings:
    """What was seen, counted; and what must never be seen, told."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def fail(self, what: str) -> None:
        """Something is wrong."""
        self.failures.append(what)
        print(f"FAILED: {what}", flush=True)


def prepare(folder: Path, *, planned: bool) -> Place:
    """A small llama and its rules or plan, by processes of their own; and the files of runs that nothing disturbs."""
    source, rules, plan = folder / "model", folder / "rules.yaml", folder / "plan.json"
    rules.write_text(_RULES)
    _python("-c", _MODEL, str(source))
    _python("-m", "rulequant", "plan", str(source), str(rules), "-o", str(plan))
    made_by = ("--plan", str(plan)) if planned else (str(rules),)
    before, expected = state(source), {}
    for size in SHARD_SIZES:
        output = folder / f"undisturbed-{size}"
        options = ("-o", str(output), "--max-shard-size", size, "--quiet")
        _python("-m", "rulequant", "apply", str(source), *made_by, *options)
        expected[size] = hashes(output)
    for name in ("work", "messages"):
        (folder / name).mkdir()
    return Place(source, made_by, folder / "work", expected, before)


def _python(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"what comes first failed: {done.stdout}{done.stderr}")


def check(place: Place, when: str, findings: Findings, *, size: str = SHARD_SIZES[0]) -> None:
    """The output is absent or complete, nothing lies beside it but the staging folder, and the input is untouched."""
    others = {each.name for each in place.folder.iterdir()} - {"out", STAGING}
    if others:
        findings.fail(f"{when}: found {sorted(others)}")
    if os.path.lexists(place.output) and hashes(place.output) != place.expected[size]:
        findings.fail(f"{when}: the output is not that of an undisturbed run: {_difference(place, size)}")
        shutil.rmtree(place.output)
    if state(place.source) != place.before:
        findings.fail(f"{when}: the input was changed")


def _difference(place: Place, size: str) -> str:
    found, expected = hashes(place.output), place.expected[size]
    return str(sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)))


def clear(place: Place) -> None:
    """Nothing is left for the next run; such as the staging folder of one that was killed after its last rename."""
    for each in (place.output, place.staging):
        shutil.rmtree(each, ignore_errors=True)


def moment(place: Place) -> str:
    """How far a run had come."""
    if place.output.exists():
        return "the output, complete"
    if not place.staging.exists():
        return "nothing"
    shards = len(list((place.staging / "shards").glob("*.json")))
    total = sum(name.endswith(".safetensors") for name in place.expected[SHARD_SIZES[0]])
    if shards == 0:
        return "a staging folder without a finished shard"
    return "a staging folder with all shards" if shards == total else "a staging folder with some of the shards"


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file."""
    return {str(each.relative_to(folder)): _hash(each) for each in sorted(folder.rglob("*")) if each.is_file()}


def state(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Hash, time of change and mode of every file and folder."""
    found = {}
    for each in sorted([folder, *folder.rglob("*")]):
        facts = each.lstat()
        found[str(each)] = _hash(each) if each.is_file() else "", facts.st_mtime_ns, facts.st_mode
    return found


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
