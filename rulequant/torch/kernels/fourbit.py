"""nf4 and fp4: two codes a byte, in blocks that share their largest magnitude; bit by bit what bitsandbytes writes.

bitsandbytes has no compiled CPU kernel for this: it runs `quantize_4bit` of
https://github.com/bitsandbytes-foundation/bitsandbytes/blob/0.50.2/bitsandbytes/backends/default/ops.py
over the whole tensor, two thirds of the time in `torch.bucketize`. Here the same arithmetic runs on chunks that stay in
the cache, and the search is a comparison with each of the 15 decision points: many more steps, but vectorized ones.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rulequant.torch.kernels.blocks import TINY, encode_blocks, pack, ranks_of
from rulequant.torch.kernels.floats import Bits, bits_of, check_source, magnitude_maxima, to_float32
from rulequant.torch.kernels.notfinite import refuse_not_finite
from rulequant.torch.kernels.spans import CHUNK, in_parallel, scratch
from rulequant.torch.kernels.tables import QUANT_TYPES, four_bit_table

__all__ = ["BLOCKSIZES", "FourBitEncoder", "quantize_4bit"]

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""What bitsandbytes takes."""


def quantize_4bit(
    weight: Tensor, *, quant_type: str, blocksize: int, out: Tensor | None = None, threads: int = 1
) -> tuple[Tensor, Tensor]:
    """Packed codes U8 [ceil(n/2), 1] and absmax F32 [ceil(n/blocksize)] of a weight of any shape.

    The weight is contiguous, on the CPU, in bfloat16, float16 or float32. `out`, U8 [ceil(n/2)], takes the codes.

    Raises:
        NotFiniteValueError: the weight holds NaN or infinity.
        ValueError: an argument is none of the allowed ones.
    """
    check_source(weight, dimensions=weight.dim())
    encoder = FourBitEncoder(quant_type=quant_type, blocksize=blocksize, numel=weight.numel(), threads=threads)
    return encoder.feed(weight.view(-1), out=out).unsqueeze(1), encoder.absmax


class FourBitEncoder:
    """Quantizes a tensor that is fed in flat slices, each but the last a multiple of the blocksize.

    The bytes are those of the whole tensor at once; what is kept is absmax, four bytes a block. One thread at a time
    may feed it; `threads` is how many it may use itself.

    >>> encoder = FourBitEncoder(quant_type="nf4", blocksize=64, numel=192)
    >>> packed = [encoder.feed(torch.ones(each)) for each in (128, 64)]
    >>> [list(each.shape) for each in packed], encoder.absmax.tolist()
    ([[64], [32]], [1.0, 1.0, 1.0])
    """

    def __init__(self, *, quant_type: str, blocksize: int, numel: int, threads: int = 1) -> None:
        if quant_type not in QUANT_TYPES:
            raise ValueError(f"unknown quant_type {quant_type!r}; allowed: {', '.join(QUANT_TYPES)}")
        if blocksize not in BLOCKSIZES:
            raise ValueError(f"cannot use blocksize {blocksize}; allowed: {', '.join(map(str, BLOCKSIZES))}")
        self._table = four_bit_table(quant_type)
        self._blocksize = blocksize
        self._numel = numel
        self._threads = threads
        self._fed = 0
        self._absmax = torch.empty(-(-numel // blocksize), dtype=torch.float32, device="cpu")

    @property
    def absmax(self) -> Tensor:
        """The largest magnitude of each block, F32.

        Raises:
            ValueError: the tensor is not complete.
        """
        if self._fed != self._numel:
            raise ValueError(f"only {self._fed} of {self._numel} values were fed; feed the rest first")
        return self._absmax

    def feed(self, values: Tensor, out: Tensor | None = None) -> Tensor:
        """The packed codes of the next values, U8 [ceil(n/2)], in `out` if it is given.

        Raises:
            NotFiniteValueError: the values hold NaN or infinity.
            ValueError: the slice, or `out`, does not fit.
        """
        self._check(values, out)
        packed = torch.empty((len(values) + 1) // 2, dtype=torch.uint8, device="cpu") if out is None else out
        first = self._fed // self._blocksize
        absmax = self._absmax[first : first + -(-len(values) // self._blocksize)]
        self._encode(bits_of(values), values.dtype, packed.numpy(), absmax.numpy())
        refuse_not_finite(values, absmax, self._blocksize, through=values.dtype, offset=self._fed)
        self._fed += len(values)
        return packed

    def _check(self, values: Tensor, out: Tensor | None) -> None:
        check_source(values, dimensions=1)
        left = self._numel - self._fed
        if len(values) > left:
            raise ValueError(f"{len(values)} values were fed, but only {left} of {self._numel} are left")
        if len(values) < left and len(values) % self._blocksize:
            raise ValueError(
                f"{len(values)} values are no multiple of the blocksize {self._blocksize}, and {left} are left"
            )
        expected = (len(values) + 1) // 2
        if out is not None and (out.dtype != torch.uint8 or out.shape != (expected,) or not out.is_contiguous()):
            raise ValueError(f"out must be contiguous uint8 [{expected}], got {out.dtype} {list(out.shape)}")

    def _encode(self, bits: Bits, dtype: torch.dtype, packed: NDArray[np.uint8], absmax: NDArray[np.float32]) -> None:
        blocksize, table = self._blocksize, self._table
        full = len(bits) // blocksize * blocksize
        chunk = CHUNK * 2 // bits.itemsize

        def encode_span(start: int, stop: int) -> None:
            for at in range(start, stop, chunk):
                end = min(at + chunk, stop)
                maxima = absmax[at // blocksize : end // blocksize]
                encode_blocks(bits[at:end].reshape(-1, blocksize), dtype, table, maxima, packed[at // 2 : end // 2])

        in_parallel(encode_span, full, chunk=chunk, threads=self._threads)
        if full < len(bits):
            with np.errstate(all="ignore"):
                scaled = _scaled_short_block(bits[full:], dtype, absmax[-1:])
                pack(ranks_of(scaled, table.midpoints), table, packed[full // 2 :])


def _scaled_short_block(values: Bits, dtype: torch.dtype, absmax: NDArray[np.float32]) -> NDArray[np.float32]:
    """A last block that is not full, scaled: there bitsandbytes divides, and stores what it divides by.

    An odd number of values is followed by a zero, for the second half of the last byte.
    """
    absmax[:] = np.maximum(magnitude_maxima(values[None], dtype), TINY)
    scaled = np.zeros(len(values) + len(values) % 2, np.float32)
    floats = to_float32(values, dtype, scratch("scaled", values.shape, np.float32))
    np.divide(floats, absmax, out=scaled[: len(values)])
    return scaled
