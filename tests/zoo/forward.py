"""A tiny random model of an architecture that runs: how it is built, and what it is called with."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.classes import Architecture
from zoo.cuts import CUTS
from zoo.inputs import Inputs, possible_inputs
from zoo.special import entry_point
from zoo.tiny import tiny_model

__all__ = ["RUNS", "Run", "first_run", "known_runs", "prepare", "quiet"]

RUNS = Path(__file__).with_name("runs.json")
"""{model_type: [cut, number of the input]} of all architectures of which a tiny model runs."""


@dataclass(frozen=True)
class Run:
    """A model that was never called, and what it can be called with; `cut` and `number` say how that was found."""

    cut: str
    number: int
    model: nn.Module
    inputs: Inputs

    def outputs(self) -> list[Tensor]:
        """All floats that the model puts out, for a copy of the inputs: some models write into theirs."""
        return _call(self.model, self.inputs)

    def first_outputs(self) -> list[Tensor]:
        """The same of a copy of the model: some models (RWKV) change their weights when they are called first."""
        return _call(copy.deepcopy(self.model), self.inputs)


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
            run = Run(cut, number, model, inputs)
            try:
                outputs = run.first_outputs()
            except Exception:
                continue
            if outputs:
                return run
    return None


def prepare(architecture: Architecture, cut: str, number: int) -> Run:
    """The run that was found before."""
    with quiet():
        model = tiny_model(architecture, cut)
    (inputs,) = islice(possible_inputs(model), number, number + 1)
    return Run(cut, number, model, inputs)


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings of models about their own settings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _call(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    torch.manual_seed(2)
    with torch.no_grad(), quiet():
        return list(_floats(entry_point(model)(**copy.deepcopy(inputs))))


def _floats(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, dict | list | tuple):
        for each in output.values() if isinstance(output, dict) else output:
            yield from _floats(each)
