"""Time of `GlobSet.select` on a large mixture-of-experts model, beside plain fnmatch on whole names.

Run with `python benchmarks/globs.py`. Every round is cold: patterns are parsed and the automaton built anew.
The peer does less: it finds whole names only, not what lies inside a selected one, and its `*` crosses dots.
"""

from __future__ import annotations

import fnmatch
import os
import platform
import re
import time
from collections.abc import Callable

from rulequant.globs import Glob, GlobSet

ROUNDS = 5
LAYERS, DENSE_LAYERS, EXPERTS = 61, 3, 256
ATTENTION = (
    "q_a_proj",
    "q_a_layernorm",
    "q_b_proj",
    "kv_a_proj_with_mqa",
    "kv_a_layernorm",
    "kv_b_proj",
    "o_proj",
)
PATTERNS = (
    "lm_head",
    "score",
    "model.embed_tokens",
    "model.visual",
    "model.layers.{0..2}.mlp",
    "model.layers.{58,59,60}",
    "model.layers.*.mlp.experts.*.up_proj",
    "model.layers.1?.mlp.**.down_proj",
    "model.**.25[0-5].gate_proj",
    "**.mlp.gate",
    "**.self_attn",
    "**.self_attn.{q_a,q_b,o}_proj",
    "**.self_attn.*_proj",
    "**.self_attn.kv_?_proj*",
    "**.experts.*.down_proj",
    "**.experts.{0..7}",
    "**.experts.[0-9].{gate,up}_proj",
    "**.shared_experts",
    "**.*norm",
    "**.lora_*",
)


def module_names() -> list[str]:
    """The modules of an unfused DeepSeek-V3 that own a parameter: 45,337 names."""
    names = ["model.embed_tokens"]
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        names += [f"{layer}.self_attn.{each}" for each in ATTENTION]
        names += _feed_forward(f"{layer}.mlp", dense=index < DENSE_LAYERS)
        names += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
    return [*names, "model.norm", "lm_head"]


def _feed_forward(mlp: str, *, dense: bool) -> list[str]:
    experts = [mlp] if dense else [*(f"{mlp}.experts.{each}" for each in range(EXPERTS)), f"{mlp}.shared_experts"]
    gate = [] if dense else [f"{mlp}.gate"]
    return gate + [f"{each}.{name}_proj" for each in experts for name in ("gate", "up", "down")]


def with_globs(names: list[str]) -> int:
    """How many names some pattern selects."""
    return sum(map(bool, GlobSet([Glob.parse(each) for each in PATTERNS]).select(names).values()))


def with_fnmatch(names: list[str]) -> int:
    """How many names fnmatch accepts, braces expanded beforehand and `**` read as `*`."""
    expanded = (".".join(each) for text in PATTERNS for each in Glob.parse(text).alternatives)
    patterns = [re.sub(r"\*+", "*", each) for each in expanded]
    # All patterns, not the first that matches: select reports every one.
    return sum(any([fnmatch.fnmatchcase(name, each) for each in patterns]) for name in names)  # noqa: C419


def best_seconds(function: Callable[[list[str]], int], names: list[str]) -> tuple[float, int]:
    """The shortest of the rounds, and what the function returned."""
    best, found = float("inf"), 0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        found = function(names)
        best = min(best, time.perf_counter() - start)
    return best, found


def main() -> None:
    """Print both times and their ratio."""
    names = module_names()
    print(f"python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}")
    print(f"{len(names):,} names against {len(PATTERNS)} patterns, cold, best of {ROUNDS}")
    ours, selected = best_seconds(with_globs, names)
    theirs, accepted = best_seconds(with_fnmatch, names)
    print(f"rulequant.globs   {ours * 1000:8.1f} ms  {selected:6,} names selected")
    print(f"fnmatch           {theirs * 1000:8.1f} ms  {accepted:6,} names accepted")
    print(f"ratio             {theirs / ours:8.1f}")


if __name__ == "__main__":
    main()
