"""The tensors of an output against its plan: names, shapes, dtypes, and the bytes that were promised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from rulequant.containers import ContainerName, in_container
from rulequant.diagnostics import Diagnostic
from rulequant.inventory import Inventory, TensorInfo
from rulequant.plan import Plan
from rulequant.schemes import Scheme
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.header import DTYPE_NAMES, FLOATS, SPELLINGS, TensorEntry
from rulequant.torch.checkpoint.stored import Stored, StoredTensor

__all__ = ["bytes_of", "check_bytes", "check_promises", "check_tensors", "payload_bytes"]

_REMEDY = "make the output again with `rulequant apply`"


def check_tensors(stored: Stored) -> Iterator[Diagnostic]:
    """What is not encoded as its scheme says, or not plain in the dtype and shape of the model."""
    for each in stored.tensors:
        yield from _encoded(each, each.scheme) if each.scheme else _plain(each)


def _encoded(stored: StoredTensor, scheme: Scheme) -> Iterator[Diagnostic]:
    """The tensors of an encoded weight beside those that its scheme promises."""
    tensor = stored.info.tensor(stored.local)
    promised = {each.name: each for each in scheme.encoded_tensors(stored.info, tensor)} if tensor else {}
    if not promised:
        return  # a method that does not say: its bytes are compared all the same
    for name in promised.keys() | set(scheme.record_names):
        if name not in stored.entries:
            text = f"`{printable(stored.target)}` is to be encoded by {scheme.method}, and its `{name}` is in no shard"
            yield _finding(text, stored.target)
    for name, entry in stored.entries.items():
        if name in promised:
            yield from _mismatch(entry, promised[name])
        elif name not in scheme.record_names:
            text = f"`{printable(entry.name)}` in {entry.shard} is no tensor of a weight encoded by {scheme.method}"
            yield _finding(text, entry.name)


def _mismatch(entry: TensorEntry, promised: TensorInfo) -> Iterator[Diagnostic]:
    if (_dtype(entry), entry.shape) != (promised.dtype, promised.shape):
        text = (
            f"`{printable(entry.name)}` in {entry.shard} is {_dtype(entry)}{list(entry.shape)}, "
            f"the plan asks for {promised.dtype}{list(promised.shape)}"
        )
        yield _finding(text, entry.name)


def _plain(stored: StoredTensor) -> Iterator[Diagnostic]:
    """A tensor that stays, beside the model's own."""
    extra = [entry for name, entry in stored.entries.items() if name != "weight"]
    for entry in extra:
        text = (
            f"`{printable(entry.name)}` in {entry.shard} is part of an encoded weight, and the plan keeps that as it is"
        )
        yield _finding(text, entry.name)
    entry, wanted = stored.entries["weight"], stored.info.tensor(stored.local)
    if wanted is None:
        return
    # Integers and booleans stay what they are in the source, whatever the model has.
    is_cast = {entry.dtype, SPELLINGS.get(wanted.dtype)} <= FLOATS
    shape = entry.shape if stored.conversion else wanted.shape
    yield from _mismatch(entry, TensorInfo(entry.name, shape, wanted.dtype if is_cast else _dtype(entry)))


def check_promises(plan: Plan, inventory: Inventory) -> Iterator[Diagnostic]:
    """The modules for which the plan promises other bytes than their schemes come to."""
    # Experts that the container takes apart have records of their own each.
    apart = in_container(plan, inventory, cast(ContainerName, plan.container or "auto")).by_name
    for decision in plan.decisions:
        info = inventory.by_name[decision.name]
        promised = plan.schemes[decision.scheme].bytes_after(info) if decision.scheme else info.nbytes
        if info.stock_linears:
            promised = apart[decision.name].bytes_after
        if promised != decision.bytes_after:
            text = f"`{printable(decision.name)}` comes to {promised:,} bytes, the plan says {decision.bytes_after:,}"
            yield Diagnostic("RQ535", text, value=decision.name, remedy=_REMEDY)


def check_bytes(payload: int, plan: Plan, absent: int) -> Iterator[Diagnostic]:
    """Whether the shards hold the bytes that the plan promises, but for `absent` ones that the source lacked too."""
    planned = plan.summary["bytes_after"] - absent
    if payload != planned:
        text = f"the shards hold {payload:,} bytes of tensors, the plan promises {planned:,}"
        yield Diagnostic("RQ535", text, remedy=_REMEDY)


def payload_bytes(entries: Mapping[str, TensorEntry], plan: Plan) -> int:
    """Bytes of all tensors, without the records beside encoded weights: what a plan promises as `bytes_after`."""
    used = {each.scheme for each in plan.quantized if each.scheme}
    records = tuple({f".{name}" for scheme in used for name in plan.schemes[scheme].record_names})
    return sum(entry.nbytes for name, entry in entries.items() if not name.endswith(records))


def bytes_of(names: Iterable[str], inventory: Inventory) -> int:
    """Bytes of tensors of the model, by their names."""
    tensors = (inventory.by_name[name.rpartition(".")[0]].tensor(name.rpartition(".")[2]) for name in names)
    return sum(each.nbytes for each in tensors if each)


def _dtype(entry: TensorEntry) -> str:
    """The dtype as torch spells it."""
    return DTYPE_NAMES.get(entry.dtype, entry.dtype)


def _finding(text: str, name: str) -> Diagnostic:
    return Diagnostic("RQ534", text, value=name, remedy=_REMEDY)
