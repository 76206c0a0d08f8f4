"""Units carried out: values read, encoded and written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rulequant.errors import UsageError
from rulequant.schemes import WORK
from rulequant.torch.arrays.spans import scratch
from rulequant.torch.checkpoint.bench import Bench
from rulequant.torch.checkpoint.checksums import digest_fd
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.gathering import TORCH_DTYPES, gather, raw, read_values
from rulequant.torch.checkpoint.header import DTYPE_NAMES, SPELLINGS
from rulequant.torch.checkpoint.partfile import explained
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.checkpoint.units import Copied, Encoded, Finished, Gathered, Hashed, Late, Result, Unit, Whole
from rulequant.torch.factories import ExpertsFactory, NotFiniteError, SliceFactory, factory_for
from rulequant.torch.factories.slices import Piece, SliceEncoder
from rulequant.verification import Sample

__all__ = ["carry_out", "expect"]


def carry_out(bench: Bench, unit: Unit) -> Result:
    """Do a unit.

    Raises:
        NotFiniteError: a weight holds a value that its method cannot encode.
        CheckpointError: the source or the disk failed.
    """
    if isinstance(unit, Copied):
        return _copy(bench, unit)
    if isinstance(unit, Gathered):
        bench.write(unit.shard, raw(_values(bench, unit.step, unit.start, unit.stop)), unit.offset)
        return Result()
    if isinstance(unit, Encoded):
        return _encode(bench, unit) if unit.stop - unit.start < unit.step.numel else _encode_all(bench, unit)
    if isinstance(unit, Finished):
        return _finish(bench, unit)
    if isinstance(unit, Whole):
        return _encode_whole(bench, unit)
    path = bench.folder / unit.shard
    with explained(path):
        if isinstance(unit, Hashed):
            # Right after writing: the bytes are read from the memory that the system still holds them in.
            return Result(digest=digest_fd(bench.output(unit.shard), path))
        # By a descriptor of its own; who gives the file its name syncs again, and hears of errors.
        os.fsync(bench.output(unit.shard))
    return Result()


def expect(bench: Bench, unit: Unit) -> None:
    """Have the system read what a unit will need, while something else is done."""
    if isinstance(unit, Copied):
        size = unit.entry.item_size
        bench.reader.expect(unit.entry, unit.start * size, (unit.stop - unit.start) * size)
    elif isinstance(unit, Encoded) and len(unit.step.blocks) == 1 and unit.step.blocks[0].is_in_one_piece:
        (block,) = unit.step.blocks
        size = block.entry.item_size
        bench.reader.expect(block.entry, (block.first + unit.start) * size, (unit.stop - unit.start) * size)


def _copy(bench: Bench, unit: Copied) -> Result:
    """By the kernel where the bytes stay what they are."""
    count, size = unit.stop - unit.start, unit.entry.item_size
    if unit.entry.dtype == unit.dtype:
        bench.copy(unit.entry, unit.start * size, count * size, unit.shard, unit.offset)
        return Result()
    values = read_values(bench.reader, unit.entry, unit.start, count)
    bench.write(unit.shard, raw(values.to(TORCH_DTYPES[unit.dtype])), unit.offset)
    return Result()


def _encode(bench: Bench, unit: Encoded) -> Result:
    step = unit.step
    with _told(bench, step, unit.start, unit.stop):
        encoder = _encoder(step)
        for piece in encoder.encode(_values(bench, step, unit.start, unit.stop), unit.start):
            bench.write(unit.shard, raw(piece.data), unit.offsets[piece.name] + piece.at)
    return Result(sample=_sample(encoder))


def _encode_all(bench: Bench, unit: Encoded) -> Result:
    step, places = unit.step, _Places(bench, unit)
    work = torch.from_numpy(scratch("work", (step.slicing.work_bytes if step.slicing else 0,), np.uint8))
    with _told(bench, step, 0, step.numel):
        encoder, values = _encoder(step), _values(bench, step, 0, step.numel)
        for piece in encoder.encode(values, 0):
            if piece.name == WORK:
                data = piece.data.reshape(-1).view(torch.uint8)
                work[piece.at : piece.at + len(data)] = data
            else:
                places.put(piece)
        for piece in encoder.finish(work, lambda start, stop: values[start:stop], mean_threads=bench.mean_threads):
            places.put(piece)
    return Result(places.late, sample=_sample(encoder))


def _sample(encoder: SliceEncoder) -> Sample:
    return getattr(encoder, "sample", None) or Sample()


def _finish(bench: Bench, unit: Finished) -> Result:
    """From the room for work, which is mapped: its pages are the system's, not this process's own."""
    step, places = unit.step, _Places(bench, unit)
    work_bytes = step.slicing.work_bytes if step.slicing else 0
    with _told(bench, step, 0, 0), bench.mapped(unit.shard, unit.offsets.get(WORK, 0), work_bytes) as work:
        pieces = _encoder(step).finish(
            work, lambda start, stop: _values(bench, step, start, stop), mean_threads=bench.mean_threads
        )
        for piece in pieces:
            places.put(piece)
    return Result(places.late)


def _encode_whole(bench: Bench, unit: Whole) -> Result:
    places = _Places(bench, unit)
    with _told(bench, unit.step, 0, unit.step.numel):
        encoded = _encoded(bench, unit.step)
    if unit.region is not None:
        return Result(_into_region(bench, unit, encoded, unit.region))
    for name, tensor in encoded.items():
        places.put(Piece(name, 0, tensor))
    return Result(places.late)


def _into_region(bench: Bench, unit: Whole, encoded: Mapping[str, Tensor], position: int) -> tuple[Late, ...]:
    step, total = unit.step, sum(each.nbytes for each in encoded.values())
    if total != step.nbytes:
        method = step.scheme.method if step.scheme else ""
        raise UsageError(
            f"`{printable(step.key)}`: the method `{method}` encodes it to {total:,} bytes, "
            f"and its scheme promised {step.nbytes:,}",
            remedy="update or uninstall the package that provides the method",
        )
    found = []
    for name, tensor in encoded.items():
        found.append(_late(f"{step.prefix}{name}", tensor))
        bench.write(unit.shard, raw(tensor), position)
        position += tensor.nbytes
    return tuple(found)


class _Places:
    """Writes pieces to their places, and keeps what has none."""

    def __init__(self, bench: Bench, unit: Encoded | Finished | Whole) -> None:
        self._bench, self._unit = bench, unit
        self.late: tuple[Late, ...] = ()

    def put(self, piece: Piece) -> None:
        """Write it, or keep it."""
        offset = self._unit.offsets.get(piece.name)
        if offset is not None:
            self._bench.write(self._unit.shard, raw(piece.data), offset + piece.at)
            return
        late = _late(f"{self._unit.step.prefix}{piece.name}", piece.data)
        self.late += (late._replace(data=bytes(raw(piece.data))),)


def _late(name: str, tensor: Tensor) -> Late:
    dtype = SPELLINGS.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise UsageError(f"`{printable(name)}` is a {tensor.dtype}, which safetensors does not hold")
    return Late(name, dtype, tuple(tensor.shape), tensor.nbytes)


def _encoder(step: Step) -> SliceEncoder:
    scheme = cast(Any, step.scheme)
    factory: object = factory_for(scheme.method)
    if not isinstance(factory, SliceFactory):
        raise UsageError(
            f"the scheme of `{scheme.method}` says how to encode slices, and its layer factory lacks `slices`",
            remedy="update or uninstall the package that provides it",
        )
    return factory.slices(step.shape, TORCH_DTYPES[step.dtype], step.kind, scheme)


def _encoded(bench: Bench, step: Step) -> dict[str, Tensor]:
    scheme, dtype = cast(Any, step.scheme), TORCH_DTYPES[step.dtype]
    factory = factory_for(scheme.method)
    weight = _values(bench, step, 0, step.numel)
    weight = weight.view(step.shape[::-1]).T if step.kind == "conv1d" else weight.view(step.shape)
    if step.kind != "experts":
        return factory.encode(weight, step.kind, scheme)
    return cast(ExpertsFactory, factory).encode_experts(weight.unbind(), weight.shape, dtype, scheme)


def _values(bench: Bench, step: Step, start: int, stop: int) -> Tensor:
    """Values of the step's matrix, flat, from one index to another."""
    return gather(bench.reader, step.blocks, step.columns, start, stop, TORCH_DTYPES[step.dtype])


@contextmanager
def _told(bench: Bench, step: Step, start: int, stop: int) -> Iterator[None]:
    """Name the tensor in what is raised about its values; and say whether they are so in the source."""
    try:
        yield
    except NotFiniteError as error:
        message = f"`{printable(step.key)}`: {error.message}"
        origin = _cast_from(bench, step, start, stop)
        if origin is None:
            raise NotFiniteError(message, remedy=error.remedy) from error
        raise NotFiniteError(
            f"{message}, cast from {origin} to {DTYPE_NAMES[step.dtype]}, the dtype of config.json",
            remedy='say `"dtype": "bfloat16"` or `"float32"` in config.json',
        ) from error


def _cast_from(bench: Bench, step: Step, start: int, stop: int) -> str | None:
    """The dtype of the source, if values are finite there and not in the dtype that they are cast to."""
    sources = sorted({block.entry.dtype for block in step.blocks} - {step.dtype})
    if not sources:
        return None
    in_source, cast_to = (
        gather(bench.reader, step.blocks, step.columns, start, stop, dtype).isfinite().all()
        for dtype in (torch.float64, TORCH_DTYPES[step.dtype])
    )
    return sources[0] if in_source and not cast_to else None
