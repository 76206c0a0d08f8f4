"""Wall time of `rulequant validate` on one small file and on 200, beside check-jsonschema and yamllint on the same.

Run with `python benchmarks/startup.py [ROUNDS]`. The peers do less: check-jsonschema compares with our JSON Schema and
knows no patterns, `extends` or lint; yamllint reads YAML and its layout only. All rounds are whole processes, one
command after the other in turn, so that a busy moment of the machine meets all of them alike. All run from bytecode, as
pip installs it: a first round, which is not counted, fills a cache of its own.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path

ROUNDS = 15
ROUNDS_OF_MANY = 3
FILES = 200
GOAL = 0.6
"""Of check-jsonschema's time, for one small file."""
GOAL_SECONDS = 1.0
"""More than one file takes, for all 200 in one call."""

RULES = """\
version: 1
name: small
models: [llama]
quantizable_types: [Linear]
skip_modules:
  - "**.mlp.gate"
  - modules: model.visual
    except: model.visual.merger
    reason: the vision tower loses OCR accuracy in 4-bit
    optional: true
output_embeddings: skip
schemes:
  nf4: {method: bnb_4bit, quant_type: nf4, double_quant: true, blocksize: 64, compute_dtype: auto}
  int8: {method: bnb_int8, threshold: 6.0}
scheme: nf4
rules:
  - modules: "**.self_attn.{q,k,v,o}_proj"
    layers: ["0:2", "-2:"]
    scheme: int8
expect:
  min_quantized: 0.95
"""


def commands() -> dict[str, list[str]]:
    """The command lines to compare, without the files; the interpreter, and with pydantic, are the floor."""
    scripts = Path(sys.executable).parent
    schema = str(resources.files("rulequant.schemas") / "ruleset.v1.schema.json")
    return {
        "python": [sys.executable, "-c", "pass"],
        "import pydantic": [sys.executable, "-c", "from pydantic import BaseModel"],
        "rulequant validate": [str(scripts / "rulequant"), "validate"],
        "check-jsonschema": [str(scripts / "check-jsonschema"), "--schemafile", schema],
        "yamllint": [str(scripts / "yamllint"), "--config-data", "relaxed"],
    }


def environment(cache: Path) -> dict[str, str]:
    """The environment of the processes: bytecode is written, and read again, in a folder of this run."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(cache)}


def seconds(command: Sequence[str], variables: Mapping[str, str]) -> float:
    """The wall time of one process.

    Raises:
        RuntimeError: it found something wrong, so what it did cannot be compared.
    """
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    taken = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} exits {done.returncode}: {done.stdout}{done.stderr}")
    return taken


def compare(files: Sequence[Path], rounds: int, variables: Mapping[str, str]) -> dict[str, list[float]]:
    """The times of every command on the files, round by round; the first, which warms the caches, is left out."""
    times: dict[str, list[float]] = {name: [] for name in commands()}
    for number in range(rounds + 1):
        for name, command in commands().items():
            taken = seconds([*command, *map(str, files)], variables)
            if number:
                times[name].append(taken)
    return times


def report(title: str, times: dict[str, list[float]]) -> None:
    """Print best and median of each command, and its best as a ratio of check-jsonschema's."""
    best = {name: min(each) for name, each in times.items()}
    print(f"\n{title}")
    for name, each in times.items():
        ratio = best[name] / best["check-jsonschema"]
        median = statistics.median(each)
        print(f"  {name:18}  best {best[name] * 1000:7.1f} ms   median {median * 1000:7.1f} ms   {ratio:5.2f}")


def main() -> None:
    """Print the tables and what the goals say of them."""
    peers = ", ".join(f"{each} {metadata.version(each)}" for each in ("check-jsonschema", "yamllint", "pydantic"))
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    print(f"python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}; {peers}")
    print("the last column is the ratio to check-jsonschema")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"rules{number:03}.yaml" for number in range(FILES)]
        for path in paths:
            path.write_text(RULES, encoding="utf-8")
        variables = environment(Path(folder) / "bytecode")
        one = compare(paths[:1], rounds, variables)
        report(f"one small file, best of {rounds}", one)
        many = compare(paths, ROUNDS_OF_MANY, variables)
        report(f"{FILES} files in one call, best of {ROUNDS_OF_MANY}", many)
    ours = {name: min(each) for name, each in one.items()}
    ratio = ours["rulequant validate"] / ours["check-jsonschema"]
    to_yamllint = ours["rulequant validate"] / ours["yamllint"]
    more = min(many["rulequant validate"]) - ours["rulequant validate"]
    print(f"\none file: {ratio:.2f} of check-jsonschema (goal: at most {GOAL}), {to_yamllint:.2f} of yamllint (aim: 1)")
    print(f"{FILES} files: {more:.2f} s more than one (goal: under {GOAL_SECONDS:.0f} s)")


if __name__ == "__main__":
    main()
