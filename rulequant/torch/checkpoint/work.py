"""Units carried out: values read, encoded and written; without torch, but for what only torch can do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from rulequant.errors import UsageError
from rulequant.schemes import WORK
from rulequant.torch.arrays.floats import Float, to_float32
from rulequant.torch.arrays.spans import scratch
from rulequant.torch.checkpoint.bench import Bench
from rulequant.torch.checkpoint.checksums import checksums_fd
from rulequant.torch.checkpoint.files import hash_fd, printable
from rulequant.torch.checkpoint.gathering import cast_bits, gather, raw, read_bits
from rulequant.torch.checkpoint.header import DTYPE_NAMES, SPELLINGS
from rulequant.torch.checkpoint.partfile import explained
from rulequant.torch.checkpoint.step import Step
from rulequant.torch.checkpoint.units import (
    Checked,
    Copied,
    Encoded,
    Finished,
    Gathered,
    Hashed,
    Late,
    Result,
    Unit,
    Whole,
)
from rulequant.torch.factories import NotFiniteError, slices_for
from rulequant.torch.factories.slices import Piece, SliceEncoder
from rulequant.verification import Sample

if TYPE_CHECKING:
    from rulequant.torch.checkpoint.wholes import EncodedTensor

__all__ = ["carry_out", "carry_out_ahead", "expect"]


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
        # Right after writing: the bytes are read from the memory that the system still holds them in.
        if isinstance(unit, Hashed):
            return Result(sha256=hash_fd(bench.output(unit.shard), path))
        if isinstance(unit, Checked):
            return Result(crc32=checksums_fd(bench.output(unit.shard), path))
        # By a descriptor of its own; who gives the file its name syncs again, and hears of errors.
        os.fsync(bench.output(unit.shard))
    return Result()


def carry_out_ahead(bench: Bench, unit: Unit) -> Result:
    """Do a unit of a `Draft`; a weight that is one unit is left to be finished."""
    return _encode(bench, unit) if isinstance(unit, Encoded) else carry_out(bench, unit)


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
    values = read_bits(bench.reader, unit.entry, unit.start, count)
    bench.write(unit.shard, raw(cast_bits(values, unit.entry.dtype, unit.dtype)), unit.offset)
    return Result()


def _encode(bench: Bench, unit: Encoded) -> Result:
    with _told(bench, unit.step, unit.start, unit.stop):
        encoder = _encoder(unit.step)
        for piece in encoder.encode(_values(bench, unit.step, unit.start, unit.stop), unit.start):
            bench.write(unit.shard, raw(piece.data), unit.offsets[piece.name] + piece.at)
    return Result(sample=_sample(encoder))


def _encode_all(bench: Bench, unit: Encoded) -> Result:
    step, places = unit.step, _Places(bench, unit)
    work = scratch("work", (step.slicing.work_bytes if step.slicing else 0,), np.uint8)
    with _told(bench, step, 0, step.numel):
        encoder = _encoder(step)
        for piece in encoder.encode(_values(bench, step, 0, step.numel), 0):
            if piece.name == WORK:
                work[piece.at : piece.at + piece.data.nbytes] = piece.data.reshape(-1).view(np.uint8)
            else:
                places.put_piece(piece)
        sample = _sample(encoder)
        for piece in encoder.finish(work, partial(_look, bench, step), mean_threads=bench.mean_threads):
            places.put_piece(piece)
    return Result(places.late, sample=sample)


def _sample(encoder: SliceEncoder) -> Sample:
    return getattr(encoder, "sample", None) or Sample()


def _finish(bench: Bench, unit: Finished) -> Result:
    """From the room for work, which is mapped: its pages are the system's, not this process's own."""
    step, places = unit.step, _Places(bench, unit)
    work_bytes = step.slicing.work_bytes if step.slicing else 0
    with _told(bench, step, 0, 0), bench.mapped(unit.shard, unit.offsets.get(WORK, 0), work_bytes) as work:
        pieces = _encoder(step).finish(
            work,
            partial(_look, bench, step),
            mean_threads=bench.mean_threads,
        )
        for piece in pieces:
            places.put_piece(piece)
    return Result(places.late)


def _encode_whole(bench: Bench, unit: Whole) -> Result:
    from rulequant.torch.checkpoint.wholes import encode_whole  # start-up: it imports torch, which few jobs need

    places = _Places(bench, unit)
    with _told(bench, unit.step, 0, unit.step.numel):
        encoded = encode_whole(bench.reader, unit.step, mean_threads=bench.mean_threads)
    if unit.region is not None:
        return Result(_into_region(bench, unit, encoded, unit.region))
    for name, each in encoded.items():
        places.put(name, 0, each.dtype, each.shape, each.data)
    return Result(places.late)


def _into_region(bench: Bench, unit: Whole, encoded: Mapping[str, EncodedTensor], position: int) -> tuple[Late, ...]:
    step, total = unit.step, sum(each.data.nbytes for each in encoded.values())
    if total != step.nbytes:
        method = step.scheme.method if step.scheme else ""
        raise UsageError(
            f"`{printable(step.key)}`: the method `{method}` encodes it to {total:,} bytes, "
            f"and its scheme promised {step.nbytes:,}",
            remedy="update or uninstall the package that provides the method",
        )
    found = []
    for name, each in encoded.items():
        found.append(_late(f"{step.prefix}{name}", each.dtype, each.shape, each.data))
        bench.write(unit.shard, raw(each.data), position)
        position += each.data.nbytes
    return tuple(found)


class _Places:
    """Writes pieces to their places, and keeps what has none."""

    def __init__(self, bench: Bench, unit: Encoded | Finished | Whole) -> None:
        self._bench, self._unit = bench, unit
        self.late: tuple[Late, ...] = ()

    def put_piece(self, piece: Piece) -> None:
        """Write it, or keep it."""
        self.put(piece.name, piece.at, str(piece.data.dtype), piece.data.shape, piece.data)

    def put(self, name: str, at: int, dtype: str, shape: tuple[int, ...], data: NDArray[Any]) -> None:
        """Write a piece of a tensor of this name, dtype (as torch spells it) and shape, or keep it."""
        offset = self._unit.offsets.get(name)
        if offset is not None:
            self._bench.write(self._unit.shard, raw(data), offset + at)
            return
        late = _late(f"{self._unit.step.prefix}{name}", dtype, shape, data)
        self.late += (late._replace(data=bytes(raw(data))),)


def _late(name: str, dtype: str, shape: tuple[int, ...], data: NDArray[Any]) -> Late:
    spelling = SPELLINGS.get(dtype)
    if spelling is None:
        raise UsageError(f"`{printable(name)}` is a torch.{dtype}, which safetensors does not hold")
    return Late(name, spelling, shape, data.nbytes)


def _encoder(step: Step) -> SliceEncoder:
    scheme = cast(Any, step.scheme)
    return slices_for(scheme.method)(step.shape, cast(Float, step.dtype), step.kind, scheme)


def _values(bench: Bench, step: Step, start: int, stop: int) -> NDArray[Any]:
    """Values of the step's matrix, flat, from one index to another."""
    return gather(bench.reader, step.blocks, step.columns, start, stop, step.dtype)


def _look(bench: Bench, step: Step, start: int, stop: int) -> NDArray[np.float32]:
    values = _values(bench, step, start, stop)
    return to_float32(values, cast(Float, step.dtype), np.empty(stop - start, np.float32))


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
    in_source, cast_to = (_are_finite(bench, step, start, stop, dtype) for dtype in ("F64", step.dtype))
    return sources[0] if in_source and not cast_to else None


def _are_finite(bench: Bench, step: Step, start: int, stop: int, dtype: str) -> bool:
    values = cast_bits(gather(bench.reader, step.blocks, step.columns, start, stop, dtype), dtype, "F64")
    return bool(np.isfinite(values.view(np.float64)).all())
