"""`rulequant apply` beside transformers' `from_pretrained` plus `save_pretrained`, whole process against whole process.

Run with `python benchmarks/apply.py`; `--help` lists the options. A llama in bfloat16 with random weights is written
into a temporary folder, in shards. Both sides read it from the page cache, write to the same disk, and use all cores.
Before each run the disk has written what earlier ones left. Memory is the sum of Pss_Anon in /proc/PID/smaps_rollup
over the process and all below it, looked at every 50 ms in a round of its own, since that takes a part of a core: pages
that are no file's, those that several share counted once. Compare ratios: the seconds are this machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from rulequant.torch.checkpoint.reader import CheckpointReader

SIZES = {
    "0.5": {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 16, "heads": (12, 4)},
    "1.1": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "heads": (32, 4)},
    "3": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "heads": (24, 8)},
}
"""By billions of parameters."""
SCHEMES = {"nf4": {"method": "bnb_4bit", "double_quant": True}, "int8": {"method": "bnb_int8"}}
MEBI = 1 << 20
INTERVAL = 0.05

MAKE = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
heads, groups = settings.pop("heads")
config = LlamaConfig(**settings, vocab_size=32000, num_attention_heads=heads, num_key_value_heads=groups)
config.dtype, config.architectures = torch.bfloat16, ["LlamaForCausalLM"]
config.save_pretrained(folder)
with torch.device("meta"):
    shapes = {name: each.shape for name, each in LlamaForCausalLM(config).state_dict().items()}
generator, shards, size = torch.Generator().manual_seed(0), [[]], 0
for name, shape in shapes.items():
    if size > 500_000_000:
        shards.append([])
        size = 0
    shards[-1].append(name)
    size += 2 * shape.numel()
names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
for file, keys in zip(names, shards):
    weights = {key: (torch.randn(shapes[key], generator=generator) * 0.02).to(torch.bfloat16) for key in keys}
    save_file(weights, folder / file, {"format": "pt"})
index = {"metadata": {}, "weight_map": {key: file for file, keys in zip(names, shards) for key in keys}}
(folder / "model.safetensors.index.json").write_text(json.dumps(index))
"""
STOCK = """
import sys
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
source, output, scheme = sys.argv[1:]
if scheme == "nf4":
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
else:
    config = BitsAndBytesConfig(load_in_8bit=True)
AutoModelForCausalLM.from_pretrained(source, quantization_config=config, device_map="cpu").save_pretrained(output)
"""


@dataclass(frozen=True)
class Run:
    """What a process took."""

    seconds: float
    mebibytes: float
    """0 where nobody looked."""


def run(command: list[str], *, watch: bool = False) -> Run:
    """Run a command to its end, and watch its memory if that is asked for."""
    os.sync()
    start, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(process.stderr.read if process.stderr else str)
        while watch and process.poll() is None:
            peak = max(peak, sum(anonymous(each) for each in family(process.pid)))
            time.sleep(INTERVAL)
        process.wait()
        seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{said.result()}")
    return Run(seconds, peak / MEBI)


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += family(int(child))
    return found


def anonymous(pid: int) -> int:
    """Bytes of memory that is no file's, shared pages in proportion."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1]) * 1024
    return 0


def same_tensors(first: Path, second: Path) -> bool:
    """Whether two outputs hold the same tensors, byte by byte."""
    with CheckpointReader.open(first) as one, CheckpointReader.open(second) as other:
        names = {name: (each.dtype, each.shape) for name, each in one.tensors.items()}
        if names != {name: (each.dtype, each.shape) for name, each in other.tensors.items()}:
            return False
        return all(one.read(name) == other.read(name) for name in names)


def limits(folder: Path) -> str:
    """What the machine can do at best: copy memory, and read and write files."""
    source, target = np.ones(256 * MEBI, np.uint8), np.zeros(256 * MEBI, np.uint8)
    copy = 2 * source.nbytes / best(lambda: np.copyto(target, source))
    path, data = folder / "limits", source[: 256 * MEBI].tobytes()

    def write() -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def read(*, cold: bool) -> None:
        with path.open("rb", buffering=0) as file:
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.read(8 * MEBI):
                pass

    written = len(data) / best(write)
    cold, warm = (len(data) / best(lambda cold=cold: read(cold=cold)) for cold in (True, False))
    path.unlink()
    return (
        f"limits: memory copy {copy / 1e9:.1f} GB/s read and written on one core; disk write with fsync "
        f"{written / 1e9:.2f} GB/s, read {cold / 1e9:.2f} GB/s cold, {warm / 1e9:.2f} GB/s from the page cache"
    )


def best(function: object, rounds: int = 3) -> float:
    """Seconds of the fastest call."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()  # type: ignore[operator]
        found.append(time.perf_counter() - start)
    return min(found)


def machine() -> str:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(": ")[2] for line in info if line.startswith("model name")), platform.processor())
    versions = ", ".join(f"{each} {metadata.version(each)}" for each in ("torch", "transformers", "bitsandbytes"))
    load = f"load {os.getloadavg()[0]:.1f}"
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {load}\npython {platform.python_version()}, {versions}"


def measure(source: Path, folder: Path, scheme: str, rounds: int, *, stock: bool) -> None:
    """One line for each way to quantize the checkpoint."""
    rules, plan = folder / f"{scheme}.yaml", folder / f"{scheme}.json"
    data = {"version": 1, "extends": "causal_lm", "schemes": {"it": SCHEMES[scheme]}, "scheme": "it"}
    rules.write_text(json.dumps(data))
    rulequant = [sys.executable, "-m", "rulequant"]
    run([*rulequant, "plan", str(source), str(rules), "-o", str(plan)])
    outputs = {name: folder / f"{scheme}-{index}" for index, name in enumerate(("apply", "apply --plan", "stock"))}
    commands = {
        "apply": [*rulequant, "apply", str(source), str(rules), "-q", "-o", str(outputs["apply"])],
        "apply --plan": [
            *rulequant, "apply", str(source), "--plan", str(plan), "-q", "-o", str(outputs["apply --plan"]),
        ],
    }  # fmt: skip
    if stock:
        commands["stock"] = [sys.executable, "-c", STOCK, str(source), str(outputs["stock"]), scheme]
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for watch in [False] * rounds + [True]:
        for name, command in commands.items():
            shutil.rmtree(outputs[name], ignore_errors=True)
            runs[name].append(run(command, watch=watch))
    reference = outputs["stock" if stock else "apply"]
    fastest = {name: min(each.seconds for each in found[:rounds]) for name, found in runs.items()}
    for name, found in runs.items():
        ratio = f"{fastest['stock'] / fastest[name]:5.1f}" if stock else "    -"
        same = "yes" if same_tensors(outputs[name], reference) else "NO"
        peak = found[-1].mebibytes
        print(f"{scheme:6} {name:14} {fastest[name]:8.1f} {ratio} {peak:12.0f}   {same}", flush=True)
    for output in outputs.values():
        shutil.rmtree(output, ignore_errors=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="1.1", help="billions of parameters")
    parser.add_argument("--rounds", type=int, default=1, help="the sides take turns; the best time of each counts")
    parser.add_argument("--scheme", choices=SCHEMES, action="append", help="default: both")
    parser.add_argument(
        "--no-stock", action="store_true", help="leave transformers out, which takes three times the weights"
    )
    parser.add_argument("--folder", help="where the temporary folder is made")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source = folder / "source"
        print(machine())
        print(limits(folder))
        run([sys.executable, "-c", MAKE, str(source), json.dumps(SIZES[options.size])])
        size = sum(each.stat().st_size for each in source.glob("*.safetensors"))
        print(f"a llama of {options.size} billion parameters, {size / 1e9:.2f} GB, best of {options.rounds}\n")
        print("scheme way             seconds ratio memory (MiB)   same bytes")
        for scheme in options.scheme or SCHEMES:
            measure(source, folder, scheme, options.rounds, stock=not options.no_stock)


if __name__ == "__main__":
    main()
