"""An output beside the checkpoint that it was made from: how far each weight is, and whether the rest is the same."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from rulequant.diagnostics import Diagnostic
from rulequant.errors import RulequantError
from rulequant.schemes import Scheme
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.gathering import gather
from rulequant.torch.checkpoint.header import TensorEntry
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.checkpoint.verify.spans import Span, StoredParts, spans
from rulequant.torch.factories import factory_for
from rulequant.verification import Comparison, WeightError, relative_error

__all__ = ["compare"]

_NOTHING = 0.99
"""The relative error of a weight that has nothing to do with the original; that of zeros is 1."""
_EXACT = 1 << 10
"""Elements whose squares are added up in their own dtype."""
_CHUNK = 1 << 20
"""Elements that are compared at a time."""
_MOST_THREADS = 16
"""Some spans for each are in memory, and no disk feeds many more."""

_REMEDY = "is MODEL what the output was made from? If so, make it again with `rulequant apply`"

Told = Callable[[str, int], None]


def compare(
    output: CheckpointReader,
    source: CheckpointReader,
    steps: Sequence[Step],
    scheme_names: Mapping[str, str],
    told: Told = lambda *_: None,
) -> tuple[Comparison, list[Diagnostic]]:
    """Compare every tensor of an output, several at a time, with what apply reads for it; and what is wrong.

    `scheme_names` are those of the plan by module; `told` is called with each source tensor and its bytes, by one
    thread at a time.

    Raises:
        CheckpointError: either checkpoint cannot be read.
    """
    lock = threading.Lock()

    def compare_one(step: Step) -> tuple[WeightError | None, Diagnostic | None]:
        if step.scheme:
            measured, finding = _measured(output, source, step, scheme_names)
        else:
            measured, finding = None, _difference(output, source, step)
        with lock:
            told(step.key, step.source_bytes)
        return measured, finding

    with _threads() as pool:
        found = list(pool.map(compare_one, steps))
    weights = sorted((each for each, _ in found if each), key=lambda each: _badness(each.relative_error), reverse=True)
    plain = [finding for step, (_, finding) in zip(steps, found, strict=True) if not step.scheme]
    equal = sum(finding is None for finding in plain)
    return Comparison(tuple(weights), equal, len(plain) - equal), [finding for _, finding in found if finding]


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads leave each other the cores: the interpreter lock is free in all that takes long here.

    Setting the number of torch's threads in one thread sets it for those that start later, too, so it is set back.
    """
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            min(os.cpu_count() or 1, _MOST_THREADS), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def _measured(
    output: CheckpointReader, source: CheckpointReader, step: Step, scheme_names: Mapping[str, str]
) -> tuple[WeightError | None, Diagnostic | None]:
    try:
        measured = _measure(output, source, step, scheme_names)
    except RulequantError:
        raise
    except Exception as error:  # what a decoder raises for a damaged record, or a stranger's for anything
        text = f"`{printable(step.target)}` cannot be decoded: {type(error).__name__}: {printable(error)}"
        return None, Diagnostic("RQ538", text, value=step.target, remedy=_REMEDY)
    return measured, _far_off(measured)


def _measure(
    output: CheckpointReader, source: CheckpointReader, step: Step, scheme_names: Mapping[str, str]
) -> WeightError:
    all_sums: list[_Sums] = []
    worst: tuple[float | None, int | None] = (None, None)
    for span in spans(source, step, StoredParts(output, _encoded_entries(output, step))):
        sums = _sums(span)
        all_sums.append(sums)
        error = relative_error(*sums)
        if span.expert is not None and (worst[0] is None or _badness(error) > _badness(worst[0])):
            worst = error, span.expert
    return WeightError(
        name=step.target if step.kind == "experts" else step.target.removesuffix(".weight"),
        scheme=_scheme_name(step, scheme_names),
        parameters=step.numel,
        squared_error=math.fsum(each.error for each in all_sums),
        squared_norm=math.fsum(each.norm for each in all_sums),
        worst_expert=worst[1],
        worst_expert_error=worst[0],
    )


def _scheme_name(step: Step, names: Mapping[str, str]) -> str:
    """The scheme of a step's module, or of the experts that it is a part of."""
    module = step.target
    while module not in names:
        module = module.rpartition(".")[0]
    return names[module]


def _encoded_entries(output: CheckpointReader, step: Step) -> dict[str, TensorEntry]:
    """The output's tensors for a weight, by the names that the factory has for them."""
    known = factory_for(cast(Scheme, step.scheme).method).tensor_names
    return {name: output.tensors[f"{step.prefix}{name}"] for name in known if f"{step.prefix}{name}" in output.tensors}


class _Sums(NamedTuple):
    """Sums of squares: of the difference, and of the original."""

    error: float
    norm: float


def _sums(span: Span) -> _Sums:
    difference = span.original - span.decoded.to(span.original.dtype)
    return _Sums(_squares(difference), _squares(span.original))


def _squares(values: Tensor) -> float:
    """The sum of the squares, to six digits: few values at a time in their own dtype, and their sums in float64.

    By numpy, which starts no threads for it: those of torch wait for each other longer than this takes.
    """
    whole = values.numel() // _EXACT * _EXACT
    rows, rest = values[:whole].view(-1, _EXACT).numpy(), values[whole:].numpy().astype(np.float64)
    with np.errstate(all="ignore"):
        total = float(np.einsum("ij,ij->i", rows, rows).sum(dtype=np.float64) + rest @ rest)
    if math.isfinite(total):
        return total
    return float(values.double().square().sum())  # what float32 cannot hold, or what is not finite itself


def _badness(error: float) -> float:
    """A key to sort by: what is no number is the worst."""
    return math.inf if math.isnan(error) else error


def _far_off(weight: WeightError) -> Diagnostic | None:
    """A finding where the output has less of the original than a weight of zeros would have."""
    if weight.relative_error < _NOTHING:
        return None
    text = (
        f"`{printable(weight.name)}`: the relative error is {weight.relative_error:.3g}, so it does not stand for the "
        "weight of the original"
    )
    return Diagnostic("RQ538", text, value=weight.name, remedy=_REMEDY)


def _difference(output: CheckpointReader, source: CheckpointReader, step: Step) -> Diagnostic | None:
    """Where a tensor that is not quantized is not that of the original, cast as apply casts it."""
    (wanted,) = step.tensors
    entry = output.entry(wanted.name)
    if (entry.dtype, entry.shape) != (step.dtype, wanted.shape):
        what = f"is {entry.dtype}{list(entry.shape)}, the original makes {step.dtype}{list(wanted.shape)}"
        return _differs(wanted.name, what)
    size = entry.item_size
    for start in range(0, step.numel, _CHUNK):
        stop = min(start + _CHUNK, step.numel)
        expected = gather(source, step.blocks, step.columns, start, stop, step.dtype).view(np.uint8)
        found = np.frombuffer(output.read_slice(entry.name, start * size, (stop - start) * size), np.uint8)
        different = expected != found
        if different.any():
            element = start + int(different.argmax()) // size
            return _differs(wanted.name, f"is not that of the original from element {element:,} on")
    return None


def _differs(name: str, what: str) -> Diagnostic:
    return Diagnostic("RQ537", f"`{printable(name)}` {what}", value=name, remedy=_REMEDY)
