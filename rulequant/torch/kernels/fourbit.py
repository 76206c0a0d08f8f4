"""nf4 and fp4: two codes a byte, in blocks that share their largest magnitude."""

from __future__ import annotations

import torch
from torch import Tensor

from rulequant.torch.arrays.fourbit import BLOCKSIZES, check_settings, encode_4bit
from rulequant.torch.kernels.sources import bits_of, check_source, float_name

__all__ = ["BLOCKSIZES", "FourBitEncoder", "quantize_4bit"]


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
        check_settings(quant_type, blocksize)
        self._quant_type = quant_type
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
        encode_4bit(
            bits_of(values),
            float_name(values.dtype),
            quant_type=self._quant_type,
            blocksize=self._blocksize,
            packed=packed.numpy(),
            absmax=absmax.numpy(),
            threads=self._threads,
            offset=self._fed,
        )
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
