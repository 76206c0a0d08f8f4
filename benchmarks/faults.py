"""Kills `rulequant apply` at random moments, and fails its system calls one by one, and says what became of the output.

    python benchmarks/faults.py                  # 200 kills, then the calls by strace where it is installed
    python benchmarks/faults.py --kills 20 --no-calls

After each: the output is absent or complete, a rerun gives the bytes of an undisturbed run, and hashes, times and modes
of the input are what they were. Any other finding is printed and makes the exit code 1. Each run is a process of its
own, forked from one that has imported everything, with the workers that it starts; every second kill hits only the
process itself, as the kernel does when memory runs out, the others all of them, as a power cut does.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rulequant.cli.main import run
from rulequant.torch.checkpoint import crew

SHARD_SIZE = "100KB"
STAGING = ".out.rulequant-staging"
PATIENCE = 120.0
"""Seconds after which a run counts as hanging."""
# By the names of the kernel on this machine; what a libc or a kernel lacks is left out.
CALLS = (
    "openat", "mkdir", "mkdirat", "write", "pwrite64", "pwritev", "copy_file_range", "sendfile", "ftruncate",
    "fallocate", "fsync", "fdatasync", "rename", "renameat", "renameat2",
)  # fmt: skip
ERRORS = ("ENOSPC", "EIO")


class Place(NamedTuple):
    """Where it all happens."""

    source: Path
    folder: Path
    expected: dict[str, str]
    before: dict[str, tuple[str, int, int]]

    @property
    def output(self) -> Path:
        """What is made, and unmade, again and again."""
        return self.folder / "out"


class Findings:
    """What was seen, counted; and what must never be seen, told."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def fail(self, what: str) -> None:
        """Something is wrong."""
        self.failures.append(what)
        print(f"FAILED: {what}", flush=True)


def main() -> int:
    """Run, print, and return the exit code."""
    options = _options()
    crew._BYTES_A_WORKER = 1  # the checkpoint is too small for workers otherwise
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="rulequant-faults-") as name:
        place = prepare(Path(name))
        seconds = duration(place)
        print(f"a run of {len(place.expected)} files takes {seconds:.2f} s")
        if options.kills:
            kills(place, options.kills, seconds, random.Random(options.seed), findings)
        if options.calls and shutil.which("strace"):
            calls(place, findings, step=options.every)
        elif options.calls:
            print("strace is not installed: no system call was failed (tests/torch/checkpoint/test_faults.py does so)")
    print(f"{len(findings.failures)} failures")
    return 1 if findings.failures else 0


def prepare(folder: Path) -> Place:
    """A small llama, and the files of an undisturbed run."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    source = folder / "model"
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(source)
    (folder / "undisturbed").mkdir()
    (folder / "work").mkdir()
    before = state(source)
    # In this process, so that those forked from it have imported everything.
    if run(command(source, folder / "undisturbed" / "out")):
        raise SystemExit("the undisturbed run failed")
    return Place(source, folder / "work", hashes(folder / "undisturbed" / "out"), before)


def duration(place: Place) -> float:
    """Seconds of an undisturbed run, once more, now that all is in memory."""
    began = time.monotonic()
    finished(start(place.source, place.output))
    seconds = time.monotonic() - began
    shutil.rmtree(place.output)
    return seconds


def kills(place: Place, number: int, seconds: float, dice: random.Random, findings: Findings) -> None:
    """So many SIGKILLs; after every other one the run goes on undisturbed, after the rest it is killed again."""
    began, done = time.monotonic(), 0
    while done < number:
        child = start(place.source, place.output)
        time.sleep(dice.uniform(0, seconds))
        everyone = bool(done % 2)
        done += kill(child, everyone=everyone)
        check(place, f"kill {done}", findings)
        findings.counts[moment(place)] += 1
        if place.output.exists() or dice.random() < 0.5:
            rerun(place, f"after kill {done}", findings)
    rerun(place, "after the last kill", findings)
    print(f"{done} kills in {time.monotonic() - began:.0f} s; at the time there was:")
    for what, count in sorted(findings.counts.items()):
        print(f"  {count:4}  {what}")


def calls(place: Place, findings: Findings, *, step: int) -> None:
    """Each call on the staging folder fails once, with either error."""
    for name in CALLS:
        ordinals = traced(place, name)
        outcomes: Counter[str] = Counter()
        for number in ordinals[::step]:
            for error in ERRORS:
                code, text = finished(
                    start(place.source, place.output, strace=[f"inject={name}:error={error}:when={number}"])
                )
                where = f"{name} {number} {error}"
                if code not in {0, 2}:
                    findings.fail(f"{where}: exit code {code}: {text[-500:]}")
                outcomes[outcome(code, text)] += 1
                check(place, where, findings)
                rerun(place, f"after {where}", findings)
        told = ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items()))
        print(f"{name}: {len(ordinals)} calls{f', {told}' if told else ''}", flush=True)


def outcome(code: int, text: str) -> str:
    """What a run with a fault came to."""
    if code == 0:
        return "went well all the same"
    return "stopped, shards kept" if "shards are kept" in text else "stopped"


def traced(place: Place, name: str) -> list[int]:
    """The numbers, counted per thread, of those calls of a run that are about the staging folder."""
    log = place.folder.parent / "trace"
    log.unlink(missing_ok=True)
    finished(start(place.source, place.output, strace=[f"trace={name}"], log=log))
    shutil.rmtree(place.output, ignore_errors=True)
    counts: Counter[str] = Counter()
    found = set()
    for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
        match = re.match(rf"(\d+) +(?:{name}\(|<\.\.\. {name} resumed)(.*)", line)
        if match is None or "resumed" in line.split("(")[0]:
            continue
        counts[match[1]] += 1
        if str(place.folder) in match[2]:
            found.add(counts[match[1]])
    return sorted(found)


def command(source: Path, output: Path) -> list[str]:
    """The arguments of every run."""
    options = ["--max-shard-size", SHARD_SIZE, "--workers", str(_options().workers), "--quiet"]
    return ["apply", str(source), "-o", str(output), *options]


def start(source: Path, output: Path, *, strace: list[str] | None = None, log: Path | None = None) -> tuple[int, Path]:
    """Start a run in a process group of its own, and return its id and where its messages go."""
    messages = output.parent.parent / "messages"
    messages.write_text("")
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.dup2(os.open(messages, os.O_WRONLY | os.O_TRUNC), 2)
        if strace:
            os.kill(os.getpid(), signal.SIGSTOP)
        code = 1
        with contextlib.suppress(BaseException):
            code = run(command(source, output))
        os._exit(code)
    if strace:
        _trace(child, strace, log)
    return child, messages


def _trace(child: int, strace: list[str], log: Path | None) -> None:
    os.waitpid(child, os.WUNTRACED)
    expressions = [part for each in strace for part in ("-e", each)]
    if strace[0].startswith("inject"):
        expressions += ["-e", "trace=" + strace[0].split("=")[1].split(":")[0]]
    tracer = subprocess.Popen(
        ["strace", "-f", "-y", "-s", "0", "-p", str(child), *expressions, "-o", str(log or os.devnull)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if "attached" not in line:
        os.kill(child, signal.SIGKILL)
        raise SystemExit(f"strace cannot be used here: {line.strip()}; say --no-calls")
    os.kill(child, signal.SIGCONT)
    tracers[child] = tracer


tracers: dict[int, subprocess.Popen[str]] = {}


def finished(started: tuple[int, Path]) -> tuple[int, str]:
    """Wait for the end of a run: its exit code, and what it said."""
    child, messages = started
    until = time.monotonic() + PATIENCE
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise SystemExit(f"a run hangs: {messages.read_text()}")
        time.sleep(0.005)
    _end_tracer(child)
    return os.waitstatus_to_exitcode(status), messages.read_text(errors="replace")


def _end_tracer(child: int) -> None:
    tracer = tracers.pop(child, None)
    if tracer is not None:
        tracer.communicate(timeout=PATIENCE)


def kill(started: tuple[int, Path], *, everyone: bool) -> int:
    """Kill a run, with all its workers or alone; 1 if it still ran."""
    child, _ = started
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL) if everyone else os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return int(os.WIFSIGNALED(status))


def check(place: Place, when: str, findings: Findings) -> None:
    """The output is absent or complete, and the input untouched."""
    others = {each.name for each in place.folder.iterdir()} - {"out", STAGING}
    if others:
        findings.fail(f"{when}: found {sorted(others)}")
    if place.output.exists() and hashes(place.output) != place.expected:
        findings.fail(f"{when}: the output is not that of an undisturbed run")
        shutil.rmtree(place.output)
    if state(place.source) != place.before:
        findings.fail(f"{when}: the input was changed")


def rerun(place: Place, when: str, findings: Findings) -> None:
    """The same command again, undisturbed; then all is cleared for the next."""
    if not place.output.exists():
        code, text = finished(start(place.source, place.output))
        # Workers of a killed run may live a moment longer than it, and hold the lock until then.
        until = time.monotonic() + PATIENCE
        while code and "another rulequant apply is writing" in text and time.monotonic() < until:
            findings.counts["(reruns that waited for workers of the killed run)"] += 1
            time.sleep(0.05)
            code, text = finished(start(place.source, place.output))
        if code:
            findings.fail(f"{when}: the rerun failed: {text[-500:]}")
        check(place, f"rerun {when}", findings)
        if not place.output.exists():
            findings.fail(f"{when}: the rerun wrote nothing")
    # What a run left when it was killed after its last rename.
    for name in ("out", STAGING):
        shutil.rmtree(place.folder / name, ignore_errors=True)


def moment(place: Place) -> str:
    """How far the run had come."""
    if place.output.exists():
        return "the output, complete"
    if not (place.folder / STAGING).exists():
        return "nothing yet"
    shards = len(list((place.folder / STAGING / "shards").glob("*.json")))
    total = sum(name.endswith(".safetensors") for name in place.expected)
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--workers", type=int, default=1, help="more than one: processes of their own, even for so little"
    )
    parser.add_argument("--every", type=int, default=1, help="fail every so manieth call only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
