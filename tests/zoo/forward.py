"""A tiny random model of an architecture quantized and run, in memory and from a checkpoint that was applied."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rulequant.torch
import rulequant.torch.transformers  # registers the quantizer
from rulequant.plan import Plan
from zoo.classes import Architecture
from zoo.inputs import Inputs, possible_inputs
from zoo.tiny import CUTS, tiny_model

__all__ = ["EVERYTHING", "RUNS", "Run", "first_run", "known_runs", "prepare", "quantized", "reloaded"]

RUNS = Path(__file__).with_name("runs.json")
"""{model_type: [cut, number of the input]} of all architectures of which a tiny model runs."""
EVERYTHING: dict[str, Any] = {
    "version": 1,
    "quantizable_types": ["Linear", "Conv1D", "FalconLinear", "*Experts"],
    "schemes": {"nf4": {"method": "bnb_4bit", "blocksize": 32}},
    "scheme": "nf4",
}
"""No skip at all: what may not be quantized is left to the engine to find."""


@dataclass(frozen=True)
class Run:
    """A model that runs, what it is called with and what it puts out; `cut` and `number` say how it was found."""

    cut: str
    number: int
    model: nn.Module
    inputs: Inputs
    outputs: list[Tensor]


def known_runs() -> dict[str, tuple[str, int]]:
    """The architectures of which a tiny model runs."""
    return {name: (cut, number) for name, (cut, number) in json.loads(RUNS.read_text(encoding="utf-8")).items()}


def first_run(architecture: Architecture) -> Run | None:
    """The first way of cutting and calling that works; None where none does."""
    for cut in CUTS:
        try:
            with quiet():
                model = tiny_model(architecture, cut)
        except Exception:
            continue
        for number, inputs in enumerate(possible_inputs(model)):
            try:
                outputs = call(model, inputs)
            except Exception:
                continue
            if outputs:
                return Run(cut, number, model, inputs, outputs)
    return None


def prepare(architecture: Architecture, cut: str, number: int) -> Run:
    """The run that was found before."""
    with quiet():
        model = tiny_model(architecture, cut)
    (inputs,) = islice(possible_inputs(model), number, number + 1)
    return Run(cut, number, model, inputs, call(model, inputs))


def quantized(run: Run) -> tuple[Run, Plan]:
    """The same with its model quantized, in place."""
    plan = rulequant.torch.apply(run.model, EVERYTHING)
    return replace(run, outputs=call(run.model, run.inputs)), plan


def reloaded(architecture: Architecture, run: Run, folder: Path) -> Run:
    """The same from a checkpoint: saved, applied and loaded.

    In the container `rulequant`: what plain transformers makes of the other on a CPU is up to bitsandbytes' kernels.
    """
    with quiet():
        run.model.save_pretrained(folder / "source")
        rulequant.torch.apply_checkpoint(folder / "source", EVERYTHING, folder / "output", container="rulequant")
        loaded, info = architecture.load_class().from_pretrained(
            folder / "output", output_loading_info=True, dtype=torch.float32
        )
    lost = {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys") if info[key]}
    if lost:
        raise ValueError(f"{architecture.model_type}: {lost}")
    model = loaded.eval()
    return replace(run, model=model, outputs=call(model, run.inputs))


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings of models about their own settings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def call(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All floats that a model puts out, for a copy of the inputs: some models write into theirs."""
    torch.manual_seed(2)
    with torch.no_grad(), quiet():
        return list(_floats(model(**copy.deepcopy(inputs))))


def _floats(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, dict | list | tuple):
        for each in output.values() if isinstance(output, dict) else output:
            yield from _floats(each)
