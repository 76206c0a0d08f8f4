"""What rulequant says about more than 10,000 rule files with one mistake each.

Run with `python benchmarks/mutations.py [COUNT] [SEED]`. Good files are the bundled ones and tests/examples/valid. A
file counts as let pass in silence where PyYAML or pydantic refuse it and rulequant does not. A misspelt word (one
letter more, less or other, or two that changed places) counts unless it is itself a word that may stand there.
"""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from mutations import KINDS, Mutation, Tally, Verdict, judge, mutations

COUNT, SEED = 12_000, 1
SHOWN = 20
GROUPS = {
    "keys and values": ("key misspelt", "literal misspelt"),
    "names of schemes, files, types": ("scheme misspelt", "parent misspelt", "type misspelt"),
}


def main() -> None:
    """Print the figures and the cases that fail."""
    count, seed = (int(each) for each in (*sys.argv[1:], *map(str, (COUNT, SEED)[len(sys.argv) - 1 :])))
    tally, crashed, start = Tally(), [], time.perf_counter()
    for mutation in mutations(count, seed=seed):
        try:
            tally.add(judge(mutation))
        except Exception:  # noqa: PERF203  what must not happen, whatever it is
            crashed.append((mutation, traceback.format_exc()))
    print(f"python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}; seed {seed}")
    print(f"{count:,} mutations in {time.perf_counter() - start:.1f} s")
    _print_kinds(tally)
    print(f"exceptions: {len(crashed)}")
    for mutation, trace in crashed[:SHOWN]:
        print(f"  {_words(mutation)}\n{trace}")
    print(f"let pass in silence: {len(tally.silent)}")
    for verdict in tally.silent[:SHOWN]:
        print(f"  {_words(verdict.mutation)}\n{verdict.mutation.text}")
    for name, kinds in GROUPS.items():
        named, first = tally.share(tally.named, kinds), tally.share(tally.first, kinds)
        print(f"misspelt {name}: {named:.2%} get the right word, {first:.2%} as the first suggestion")
    print(f"without the right word: {len(tally.missed)}")
    for verdict in tally.missed[:SHOWN]:
        print(f"  {_words(verdict.mutation)}: {_remedies(verdict)}")


def _print_kinds(tally: Tally) -> None:
    print(f"{'':20}{'files':>8}{'invalid':>9}{'counted':>9}{'named':>8}{'first':>8}")
    for kind in KINDS:
        columns = (tally.total[kind], tally.invalid[kind], tally.counted[kind], tally.named[kind], tally.first[kind])
        print(f"{kind:20}{columns[0]:8,}{columns[1]:9,}{columns[2]:9,}{columns[3]:8,}{columns[4]:8,}")


def _words(mutation: Mutation) -> str:
    what = f", `{mutation.wrong}` for `{mutation.right}`" if mutation.right else ""
    return f"{mutation.path.name}: {mutation.kind}{what}"


def _remedies(verdict: Verdict) -> str:
    return " | ".join(f"{each.code} {each.remedy}" for each in verdict.diagnostics[:3])


if __name__ == "__main__":
    main()
