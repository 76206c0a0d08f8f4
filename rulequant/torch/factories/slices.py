"""Weights encoded slice by slice: the bytes of the whole, but no more of it in memory than a slice.

What a slice makes are pieces of the encoded tensors, each with its place in one of them. What is known only when all of
a weight was seen comes from `finish`. Slices may be encoded in any order, and by several processes.

Nothing here imports torch, which takes a second: values are bit patterns, and dtypes have their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rulequant.inventory import Kind
from rulequant.schemes import NESTED_BLOCKSIZE, WORK, Bnb4bit, Scheme
from rulequant.torch import arrays
from rulequant.torch.arrays import Bits, Float
from rulequant.torch.arrays.spans import scratch
from rulequant.torch.factories.sampling import sample_4bit, sample_int8
from rulequant.torch.factories.values import Look, check_absmax, explained
from rulequant.verification import Sample

__all__ = ["FourBitSlices", "Int8Slices", "Piece", "SliceEncoder", "SliceEncoders"]

_NAMES: dict[Float, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""As the record spells them."""
_NESTED_AT_A_TIME = NESTED_BLOCKSIZE << 12
"""Blocks whose absmax is quantized at a time."""


class Piece(NamedTuple):
    """Some values of an encoded tensor."""

    name: str
    """After that of the module; or `WORK`."""
    at: int
    """Where its bytes begin in the tensor."""
    data: NDArray[Any]
    """Valid until the next piece is asked for."""


class SliceEncoder(Protocol):
    """One weight that is encoded slice by slice.

    It may have a `sample`: how far values of the slice that was encoded last are from what they became.
    """

    def encode(self, values: Bits, start: int) -> Iterator[Piece]:
        """The pieces of the values [n] from a flat index of the weight [out, in] on.

        Raises:
            NotFiniteError: with the place of a value that cannot be encoded.
        """

    def finish(self, work: NDArray[np.uint8], look: Look, *, mean_threads: int) -> Iterator[Piece]:
        """The rest, once all slices are encoded; `work` holds the pieces named `WORK`.

        Raises:
            NotFiniteError: as `encode`.
        """


class SliceEncoders(Protocol):
    """What the entry point of a method gives."""

    def __call__(self, shape: Sequence[int], dtype: Float, kind: Kind, scheme: Any) -> SliceEncoder:
        """The encoder of a weight of this shape, as the module holds it, and dtype, as safetensors spells it."""


class FourBitSlices:
    """nf4 and fp4, in slices of whole blocks. For double quantization the absmax of all blocks is needed at once."""

    def __init__(self, shape: Sequence[int], dtype: Float, kind: Kind, scheme: Bnb4bit) -> None:
        self._shape = _out_in(shape, kind)
        self._dtype, self._kind, self._settings = dtype, kind, scheme
        self.sample = Sample()

    def encode(self, values: Bits, start: int) -> Iterator[Piece]:
        """Packed codes, and absmax, which double quantization takes for work."""
        settings = self._settings
        packed = scratch("packed", ((len(values) + 1) // 2,), np.uint8)
        absmax = np.empty(-(-len(values) // settings.blocksize), np.float32)
        with explained(self._shape, self._kind, start=start):
            arrays.encode_4bit(
                values,
                self._dtype,
                quant_type=settings.quant_type,
                blocksize=settings.blocksize,
                packed=packed,
                absmax=absmax,
            )
        self.sample = sample_4bit(
            values,
            self._dtype,
            packed,
            absmax,
            quant_type=settings.quant_type,
            blocksize=settings.blocksize,
            numel=prod(self._shape),
        )
        yield Piece("weight", start // 2, packed)
        name = WORK if settings.double_quant else "weight.absmax"
        yield Piece(name, start // settings.blocksize * absmax.itemsize, absmax)

    def finish(self, work: NDArray[np.uint8], look: Look, *, mean_threads: int) -> Iterator[Piece]:
        """The code table, the second level, and the record."""
        settings = self._settings
        yield Piece("weight.quant_map", 0, arrays.quant_values(settings.quant_type))
        offset = None
        if settings.double_quant:
            absmax = work.view(np.float32)
            check_absmax(absmax, self._shape, self._kind, settings, look)
            offset = arrays.mean_absmax(absmax, threads=mean_threads)
            yield Piece("weight.nested_quant_map", 0, arrays.dynamic_values())
            for start in range(0, len(absmax), _NESTED_AT_A_TIME):
                codes, scales = arrays.nested_codes(absmax[start : start + _NESTED_AT_A_TIME], offset)
                yield Piece("weight.absmax", start, codes)
                yield Piece("weight.nested_absmax", start // NESTED_BLOCKSIZE * scales.itemsize, scales)
        record = arrays.state_record(
            quant_type=settings.quant_type,
            blocksize=settings.blocksize,
            dtype=_NAMES[self._dtype],
            shape=self._shape,
            offset=offset,
        )
        yield Piece(f"weight.quant_state.bitsandbytes__{settings.quant_type}", 0, np.frombuffer(record, np.uint8))


class Int8Slices:
    """LLM.int8(), in slices of whole rows."""

    def __init__(self, shape: Sequence[int], dtype: Float, kind: Kind, scheme: Scheme) -> None:
        del scheme  # its settings are for the forward
        self._shape = _out_in(shape, kind)
        self._dtype, self._kind = dtype, kind
        self.sample = Sample()
        # What makes up one output, of an expert too; a row of an embedding.
        self._row = self._shape[-1] if kind == "experts" else prod(self._shape[1:])

    def encode(self, values: Bits, start: int) -> Iterator[Piece]:
        """Values, and the scales of their rows."""
        with explained(self._shape, self._kind, start=start):
            rows = values.reshape(-1, self._row)
            quantized, scales = scratch("packed", rows.shape, np.int8), np.empty(len(rows), np.float32)
            arrays.encode_int8(rows, self._dtype, values=quantized, scales=scales)
        self.sample = sample_int8(rows, self._dtype, quantized, scales, numel=prod(self._shape))
        yield Piece("weight", start, quantized)
        yield Piece("SCB", start // self._row * scales.itemsize, scales)

    def finish(self, work: NDArray[np.uint8], look: Look, *, mean_threads: int) -> Iterator[Piece]:
        """The format byte of linear layers."""
        del work, look, mean_threads
        if self._kind in {"linear", "conv1d"}:
            yield Piece("weight_format", 0, np.zeros((), np.uint8))


def _out_in(shape: Sequence[int], kind: Kind) -> tuple[int, ...]:
    """The shape of the matrix [out, in] that is encoded; transformers' `Conv1D` holds [in, out]."""
    return tuple(shape[::-1]) if kind == "conv1d" else tuple(shape)
