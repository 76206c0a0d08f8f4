"""What the bundled rules, and transformers' own bitsandbytes quantizer, make of an architecture's default config."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import HfQuantizer

from rulequant.inventory import ModuleInfo, TensorInfo
from rulequant.library import choose
from rulequant.loader import load_rules
from rulequant.plan import Decision, Plan
from rulequant.planner import make_plan
from rulequant.tasks import CONNECTORS, TOWERS
from rulequant.torch.inspect import inspect_model
from zoo.classes import Architecture

__all__ = ["ENOUGH", "Row", "build", "survey"]

ENOUGH = 0.9
"""The share of its matrix weights that an architecture is to have quantized."""


@dataclass(frozen=True)
class Row:
    """One architecture. Weights are counted in elements of matrices: see `matrix_weights`."""

    model_type: str
    model_class: str
    rules: str
    """The bundled file that it gets."""
    is_default: bool
    """It has no file of its family."""
    errors: tuple[str, ...]
    matrix: int
    quantized: int
    aside: int
    """In towers, and in what leads from them to the language model, that the file skips with a reason."""
    stock: int
    """What transformers' own bitsandbytes quantizer would quantize."""
    bytes_before: int
    bytes_after: int
    kept: str
    """The heaviest matrices that stay, aside from towers: class, share, reason."""

    @property
    def share(self) -> float:
        """The share of the matrix weights, those set aside not counted, that is quantized; 1 where there are none."""
        counted = self.matrix - self.aside
        return self.quantized / counted if counted else 1.0


def survey(architectures: Iterable[Architecture]) -> Iterator[Row]:
    """The rows of those whose default config makes a model."""
    for each in architectures:
        model = build(each)
        if model is not None:
            yield _row(each, model)


def build(architecture: Architecture) -> nn.Module | None:
    """The model of the default config, on meta and in bfloat16; None where that config makes none.

    A default config may lack what its model needs, or need a package that is not installed.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = architecture.load_class()(architecture.config_class()())
    except Exception:  # whatever a class makes of a config that is not complete
        return None
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def _row(architecture: Architecture, model: nn.Module) -> Row:
    inventory = inspect_model(model)
    choice = choose(inventory)
    plan = make_plan(load_rules(choice.name), inventory, None)
    weights = {each.name: mass for each in inventory.owners if (mass := matrix_weights(each))}
    aside = {name for name in weights if _is_set_aside(plan.by_name[name])}
    stock = _stock_names(model)
    return Row(
        model_type=architecture.model_type,
        model_class=architecture.model_class,
        rules=choice.name,
        is_default=choice.default is not None,
        errors=tuple(each.concise() for each in plan.diagnostics if each.severity.value == "error"),
        matrix=sum(weights.values()),
        quantized=sum(mass for name, mass in weights.items() if plan.by_name[name].quantize),
        aside=sum(weights[name] for name in aside),
        stock=sum(mass for name, mass in weights.items() if stock & set(inventory.by_name[name].names)),
        bytes_before=plan.summary["bytes_before"],
        bytes_after=plan.summary["bytes_after"],
        kept=_kept(plan, {name: mass for name, mass in weights.items() if name not in aside}),
    )


def matrix_weights(info: ModuleInfo) -> int:
    """The elements of a module's matrices: of a Linear or what is like it, of fused experts, of a class's own.

    Embeddings, output heads, convolutions and what is tied to another parameter are not counted.
    """
    if info.kind in {"embedding", "convolution"} or info.output_head:
        return 0
    if info.output_embedding or info.shares_output_embedding:
        return 0
    return sum(each.numel for each in info.tensors if _is_matrix(each))


def _is_matrix(tensor: TensorInfo) -> bool:
    is_table = sum(side > 1 for side in tensor.shape) >= 2  # not a token or a position
    return is_table and not tensor.buffer and not tensor.tied_to


def _is_set_aside(decision: Decision) -> bool:
    return decision.reason == "skip" and not (TOWERS | CONNECTORS).isdisjoint(decision.name.split("."))


def _stock_names(model: nn.Module) -> set[str]:
    """The modules that transformers swaps, every name of theirs; the model is of no use afterwards."""
    stock: Any = model
    kept = HfQuantizer.get_modules_to_not_convert(stock, None, stock._keep_in_fp32_modules)
    config = BitsAndBytesConfig(load_in_4bit=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a default config may ask for a layer without inputs
        replace_with_bnb_linear(stock, modules_to_not_convert=kept, quantization_config=config)
    named = model.named_modules(remove_duplicate=False)
    return {name for name, module in named if type(module).__name__ == "Linear4bit"}


def _kept(plan: Plan, weights: dict[str, int]) -> str:
    masses: Counter[tuple[str, str]] = Counter()
    for name, mass in weights.items():
        decision = plan.by_name[name]
        if decision.reason:
            masses[decision.type, decision.reason] += mass
    total = max(1, sum(weights.values()))
    heavy = [(key, mass / total) for key, mass in masses.most_common(2) if mass / total >= 0.01]
    return ", ".join(f"{share:.0%} {name} ({reason})" for (name, reason), share in heavy)
