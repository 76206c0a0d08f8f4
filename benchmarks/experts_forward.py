"""Time of a layer of fused experts on the CPU: full precision, rulequant's layers, and bitsandbytes' parametrization.

Run with `python benchmarks/experts_forward.py`; `--help` lists the options. All variants hold the same weights in
bfloat16 and run transformers' eager forward on the same tokens and routing. Rounds take turns, and the best of each
counts: on a busy machine look at the ratios. `replace_parameter_4bit` of bitsandbytes dequantizes the fused tensor as a
whole for each forward pass, rulequant the experts that the tokens are routed to. The last ratios are those of
dequantizing these experts and nothing else: what is left is the product, and the steps of the class itself.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import transformers
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from torch import Tensor, nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

import rulequant.torch

TOKENS = (1, 4, 16, 256)
SCHEMES: dict[str, dict[str, Any]] = {
    "nf4": {"method": "bnb_4bit"},
    "nf4 double": {"method": "bnb_4bit", "double_quant": True},
    "int8": {"method": "bnb_int8"},
}
ALONE = ("nf4", "int8")
"""The schemes of which dequantizing alone is measured too."""
PARAMETERS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Layer:
    """The experts of one layer as a family has them; fewer of them, so that all variants fit into memory."""

    name: str
    experts_class: Any
    config: Any
    experts: int
    hit: int
    """Experts that a token is routed to."""


LAYERS = (
    Layer(
        "Mixtral, 8 experts [7168, 2048] and [2048, 3584]",
        MixtralExperts,
        transformers.MixtralConfig(hidden_size=2048, intermediate_size=3584, num_local_experts=8),
        8,
        2,
    ),
    Layer(
        "Qwen3-MoE, 64 experts [1536, 2048] and [2048, 768]",
        Qwen3MoeExperts,
        transformers.Qwen3MoeConfig(hidden_size=2048, moe_intermediate_size=768, num_experts=64),
        64,
        8,
    ),
    Layer(
        "gpt-oss, 8 experts [2880, 5760] and [2880, 2880], biases",
        GptOssExperts,
        transformers.GptOssConfig(hidden_size=2880, intermediate_size=2880, num_local_experts=8),
        8,
        4,
    ),
)


def full_precision(layer: Layer) -> nn.Module:
    """The experts in bfloat16 with random weights and their eager forward."""
    layer.config._experts_implementation = "eager"
    generator = torch.Generator().manual_seed(0)
    module: nn.Module = layer.experts_class(layer.config).to(torch.bfloat16).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(std=0.02, generator=generator)
    return module


def quantized(module: nn.Module, scheme: dict[str, Any]) -> nn.Module:
    """rulequant's layer for the experts."""
    model = nn.ModuleDict({"experts": module})
    rules = {"version": 1, "quantizable_types": ["*Experts"], "schemes": {"it": scheme}, "scheme": "it"}
    rulequant.torch.apply(model, rules)
    return model["experts"]


def parametrized(module: nn.Module) -> nn.Module:
    """The same experts with bitsandbytes' 4-bit parametrization."""
    changed = copy.deepcopy(module)
    for name in PARAMETERS:
        replace_parameter_4bit(changed, name, quant_type="nf4", blocksize=64)
    return changed


def batch(layer: Layer, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """(states, experts of each token, their weights), the same for all variants."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(tokens, layer.config.hidden_size, generator=generator).to(torch.bfloat16)
    chosen = torch.rand(tokens, layer.experts, generator=generator).topk(layer.hit)
    return states, chosen.indices, chosen.values.softmax(-1).to(torch.bfloat16)


def dequantize(module: nn.Module, experts: list[int]) -> None:
    """Dequantize some experts of a quantized layer, one after the other."""
    for expert in experts:
        for name in PARAMETERS:
            getattr(module, name)[expert]


def best_seconds(functions: list[Callable[[], object]], rounds: int, clock: Callable[[], float]) -> list[float]:
    """The shortest time of each function; they take turns."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for index, function in enumerate(functions):
            start = clock()
            function()
            best[index] = min(best[index], clock() - start)
    return best


def lines(layer: Layer, tokens_of: Iterable[int], rounds: int, clock: Callable[[], float]) -> Iterator[str]:
    """A line for each number of tokens: milliseconds in full precision, then the ratios."""
    plain = full_precision(layer)
    variants = [plain, *(quantized(plain, each) for each in SCHEMES.values()), parametrized(plain)]
    for tokens in tokens_of:
        arguments = batch(layer, tokens)
        reference = plain(*arguments)
        errors = [float((each(*arguments) - reference).norm() / reference.norm()) for each in variants[1:]]
        hit = arguments[1].unique().tolist()
        alone = [partial(dequantize, variants[1 + list(SCHEMES).index(each)], hit) for each in ALONE]
        times = best_seconds([*(partial(each, *arguments) for each in variants), *alone], rounds, clock)
        ratios = "".join(f"{each / times[0]:12.2f}" for each in times[1:])
        yield f"{tokens:6} {len(hit):5} {times[0] * 1e3:9.2f} ms{ratios}   {' '.join(f'{each:.3f}' for each in errors)}"


def machine() -> str:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    names = {key.strip(): value.strip() for key, value in fields.items()}
    flags = [
        each for each in names.get("flags", "").split() if each.startswith(("avx512_bf16", "amx", "avx512f", "avx2"))
    ]
    return (
        f"{names.get('model name', platform.processor())}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, "
        f"{' '.join(flags)}\n"
        f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"bitsandbytes {bitsandbytes.__version__}"
    )


def main() -> None:
    """Print a table for each layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="part of the name of the layers to run")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument(
        "--cpu-time", action="store_true", help="of the process; steadier on a busy machine, one thread"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(machine())
    print("Time in full precision, how many times as long the others take, and their relative errors.")
    for layer in LAYERS:
        if options.only.lower() not in layer.name.lower():
            continue
        print(f"\n{layer.name}, {layer.hit} for each token, best of {options.rounds}")
        names = "".join(f"{each:>12}" for each in (*SCHEMES, "bnb whole", *(f"{each} alone" for each in ALONE)))
        print(f"tokens   hit   eager bf16{names}   errors")
        with torch.no_grad():
            for each in lines(layer, options.tokens, options.rounds, clock):
                print(each, flush=True)


if __name__ == "__main__":
    main()
