"""Time of the CPU kernels for nf4, fp4 and int8 beside bitsandbytes' own, in the same run, on the same weight.

Run with `python benchmarks/cpu_kernels.py`; `--help` lists the options. Rounds alternate between the two, and the best
of each counts: on a busy machine look at the ratios, best with `--threads 1 --clock cpu`. Both get the same number of
threads; with `--processes` ours gets as many processes instead, each of which encodes some of the rows, as the workers
of apply do. Results are compared, too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes
import numpy as np
import torch
from bitsandbytes import functional
from torch import Tensor

from rulequant.torch.kernels import quant_state, quantize_4bit, quantize_int8

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Encode = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """One line of the table: how each side encodes a weight."""

    name: str
    weight: Tensor
    ours: Encode
    theirs: Encode
    part: Callable[[Tensor], object]
    """What a process does with its rows, on one thread."""


def four_bit(weight: Tensor, threads: int, *, quant_type: str, blocksize: int, double_quant: bool) -> Case:
    """All the tensors that a checkpoint holds for a 4-bit weight."""

    def encoded(weight: Tensor, threads: int) -> dict[str, Tensor]:
        packed, absmax = quantize_4bit(weight, quant_type=quant_type, blocksize=blocksize, threads=threads)
        state = quant_state(
            absmax,
            quant_type=quant_type,
            blocksize=blocksize,
            dtype=weight.dtype,
            shape=weight.shape,
            double_quant=double_quant,
            mean_threads=threads,
        )
        return {"weight": packed} | state

    def theirs() -> dict[str, Tensor]:
        packed, state = functional.quantize_4bit(
            weight, blocksize=blocksize, compress_statistics=double_quant, quant_type=quant_type
        )
        tensors: dict[str, Tensor] = state.as_dict(packed=True)
        return {"weight": packed} | tensors

    name = f"{quant_type} {blocksize}{' double' if double_quant else ''}"
    return Case(name, weight, lambda: encoded(weight, threads), theirs, lambda rows: encoded(rows, 1))


def int8(weight: Tensor, threads: int) -> Case:
    """The values and the scales of the rows."""

    def ours() -> dict[str, Tensor]:
        values, scales = quantize_int8(weight, threads=threads)
        return {"weight": values, "SCB": scales}

    def theirs() -> dict[str, Tensor]:
        values, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        return {"weight": values, "SCB": scales}

    return Case("int8", weight, ours, theirs, quantize_int8)


def cases(shape: tuple[int, int], threads: int) -> Iterator[Case]:
    """Every kernel from every dtype at the usual blocksize; the other blocksizes from bfloat16."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    for dtype in DTYPES:
        source = weight.to(dtype)
        for quant_type in ("nf4", "fp4"):
            yield four_bit(source, threads, quant_type=quant_type, blocksize=64, double_quant=True)
        yield int8(source, threads)
    source = weight.to(torch.bfloat16)
    for blocksize in (32, 64, 256, 4096):
        yield four_bit(source, threads, quant_type="nf4", blocksize=blocksize, double_quant=False)


def best_seconds(
    functions: tuple[Callable[[], object], ...], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """The shortest time of each function; they take turns."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for index, function in enumerate(functions):
            # OpenMP's threads keep a core busy for some milliseconds after their work.
            time.sleep(0.05)
            start = clock()
            function()
            best[index] = min(best[index], clock() - start)
    return best


@contextmanager
def in_processes(case: Case, count: int) -> Iterator[Callable[[], object]]:
    """A call that has so many processes encode some of the rows each, and waits for all."""
    fork = multiprocessing.get_context("fork")
    begin, end = fork.Barrier(count + 1), fork.Barrier(count + 1)

    def work(rows: Tensor) -> None:
        while True:
            begin.wait()
            case.part(rows)
            end.wait()

    processes = [fork.Process(target=work, args=(rows,), daemon=True) for rows in case.weight.chunk(count)]
    for each in processes:
        each.start()
    try:
        yield lambda: (begin.wait(), end.wait())
    finally:
        for each in processes:
            each.kill()
            each.join()


def copy_bandwidth(threads: int, rounds: int) -> float:
    """Bytes read and written per second by a copy of memory that no cache holds, on so many threads."""
    parts = [(np.ones(64 << 20, np.uint8), np.zeros(64 << 20, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        (seconds,) = best_seconds(
            (lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)),), rounds * 4
        )
    return 2 * sum(source.nbytes for source, _ in parts) / seconds


def machine(threads: int) -> str:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    names = {key.strip(): value.strip() for key, value in fields.items()}
    vectors = [each for each in names.get("flags", "").split() if each.startswith(("avx", "amx", "f16c", "fma"))]
    return (
        f"{names.get('model name', platform.processor())}, {os.cpu_count()} CPUs, {threads} threads used\n"
        f"vector flags: {' '.join(vectors)}; torch uses {torch.backends.cpu.get_cpu_capability()}\n"
        f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"bitsandbytes {bitsandbytes.__version__}"
    )


def line(case: Case, bandwidth: float, rounds: int, clock: Callable[[], float], processes: int) -> str:
    """One kernel: times, ratio, share of the copy's bandwidth, and whether the bytes are the same."""
    encoded, stock = case.ours(), case.theirs()
    same = list(encoded) == list(stock) and all(torch.equal(encoded[name], stock[name]) for name in stock)
    moved = case.weight.nbytes + sum(each.nbytes for each in encoded.values())
    with in_processes(case, processes) if processes else nullcontext(case.ours) as encode:
        ours, theirs = best_seconds((encode, case.theirs), rounds, clock)
    scale = 1e9 / case.weight.numel()
    dtype = str(case.weight.dtype).removeprefix("torch.")
    return (
        f"{case.name:14} {dtype:9} {ours * scale:9.2f} {theirs * scale:12.2f} {theirs / ours:7.1f} "
        f"{moved / ours / bandwidth:9.1%}  {'yes' if same else 'NO'}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: the time of all threads together")
    parser.add_argument("--processes", action="store_true", help="processes in place of threads, for ours")
    options = parser.parse_args()
    if options.processes and options.clock == "cpu":
        parser.error("--processes is for the wall clock")
    torch.set_num_threads(options.threads)
    bandwidth = copy_bandwidth(options.threads, options.rounds)
    print(machine(options.threads))
    print(f"memory copy: {bandwidth / 1e9:.1f} GB/s read and written")
    print(f"[{options.rows}, {options.columns}], best of {options.rounds}, ns per element ({options.clock})\n")
    print("kernel         from           ours bitsandbytes   ratio  of memory  same bytes")
    for case in cases((options.rows, options.columns), options.threads):
        count = options.threads if options.processes else 0
        print(line(case, bandwidth, options.rounds, CLOCKS[options.clock], count), flush=True)


if __name__ == "__main__":
    main()
