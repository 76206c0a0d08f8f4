"""Values that a method of bitsandbytes cannot encode: found in a weight, and told with their place in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite, prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rulequant.inventory import Kind
from rulequant.schemes import Bnb4bit
from rulequant.torch.arrays import NotFiniteValueError
from rulequant.torch.factories import NotFiniteError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FP16_MAX", "Look", "check_4bit", "check_absmax", "check_int8", "explained"]

FP16_MAX = 65504.0
"""LLM.int8() goes through float16: a larger value would make the scale infinite and its row zero."""
FP32_MAX = float(np.finfo(np.float32).max)

Look = Callable[[int, int], NDArray[np.float32]]
"""The values of a weight [out, in] from one flat index to another."""

_FLOAT16 = "float16, through which int8 goes"
_MEAN = "what double quantization can average"


def check_4bit(weight: Tensor, settings: Bnb4bit) -> None:
    """Refuse NaN and infinite values, and with double quantization those whose mean over all blocks overflows.

    Raises:
        NotFiniteError: with the place of the worst.
    """
    _check_values(weight, limit=_largest(-(-weight.numel() // settings.blocksize), settings), beyond=_MEAN)


def check_int8(weight: Tensor) -> None:
    """Refuse NaN, and values that float16 cannot hold.

    Raises:
        NotFiniteError: with the place of the worst.
    """
    _check_values(weight, limit=FP16_MAX, beyond=_FLOAT16)


def check_absmax(
    absmax: NDArray[np.float32], shape: Sequence[int], kind: Kind, settings: Bnb4bit, look: Look | None
) -> None:
    """What `check_4bit` says of large values, from the largest of each block alone.

    `shape` is that of the weight [out, in]; without `look` the place is that of the block.

    Raises:
        NotFiniteError: double quantization cannot average them.
    """
    if not settings.double_quant or not len(absmax):
        return
    limit, block = _largest(len(absmax), settings), int(absmax.argmax())
    if absmax[block] <= limit:
        return
    start = block * settings.blocksize
    values = look(start, min(start + settings.blocksize, prod(shape))) if look else absmax[block : block + 1]
    first = int(np.abs(values).argmax())
    raise _refusal(float(values[first]), _place(start + first, shape, kind), limit, _MEAN)


@contextmanager
def explained(shape: Sequence[int], kind: Kind, *, start: int = 0) -> Iterator[None]:
    """What the kernels find in values from the flat index `start` on, told with the place in a weight [out, in].

    Raises:
        NotFiniteError: in place of NotFiniteValueError.
    """
    try:
        yield
    except NotFiniteValueError as error:
        raise _refusal(error.value, _place(start + error.index, shape, kind), FP16_MAX, _FLOAT16) from error


def _largest(blocks: int, settings: Bnb4bit) -> float:
    """The largest absmax of which so many have a finite sum."""
    return FP32_MAX / max(blocks, 1) if settings.double_quant else FP32_MAX


def _place(index: int, shape: Sequence[int], kind: Kind) -> list[int]:
    """A flat index of a weight [out, in] as indices of the weight that the module holds."""
    place = [int(each) for each in np.unravel_index(index, tuple(shape))]
    return place[::-1] if kind == "conv1d" else place


def _check_values(weight: Tensor, *, limit: float, beyond: str) -> None:
    if weight.numel() == 0:
        return
    values = weight.detach()
    low, high = (each.item() for each in values.aminmax())
    if -limit <= low and high <= limit:  # NaN compares false with everything, so the test is for what is fine
        return
    worst = int(values.abs().argmax())  # NaN counts as the largest
    place = [int(each) for each in np.unravel_index(worst, tuple(values.shape))]
    raise _refusal(float(values[tuple(place)]), place, limit, beyond)


def _refusal(value: float, place: list[int], limit: float, beyond: str) -> NotFiniteError:
    if isfinite(value):
        return NotFiniteError(
            f"the value {value:g} at {place} is beyond {beyond} (largest: {limit:g})",
            remedy="skip the module with a reason, or give it another scheme",
        )
    return NotFiniteError(f"the value at {place} is {value}", remedy="the source weights are damaged; fetch them again")
