"""Bytes in bitsandbytes' 4-bit format back to weights: a whole tensor, or some of its rows."""

from __future__ import annotations

from functools import cache
from typing import cast

import torch
from bitsandbytes import functional
from torch import Tensor

from rulequant.torch.factories.buffers import lent
from rulequant.torch.factories.compiled import compiled_kernel
from rulequant.torch.kernels.tables import quant_map

__all__ = ["absmax_of", "dequantize", "dequantize_blocks", "dequantize_int8", "dequantize_rows"]

_VALUES_AT_A_TIME = 1 << 18
"""What is decoded at a time beside the result."""
_LENT = 1 << 20
"""Bytes from which the memory for what is used once is lent."""
_INT8_AT_A_TIME = 1 << 17
"""Values for each thread of which the float32 steps between stay in the cache."""
_MOST_THREADS = 8
"""Threads with which these steps grow, since all of them wait for each other after each."""
_COMPILED_BLOCKSIZE = 2048
"""From here on bitsandbytes' operation (0.50) leaves its CPU kernel for `torch.compile`, where the CPU has AVX-512."""


def dequantize(packed: Tensor, state: functional.QuantState) -> Tensor:
    """The weight of a quant state in its shape."""
    if packed.device.type != "cpu":
        return cast(Tensor, functional.dequantize_4bit(packed, state)).reshape(state.shape)
    flat, count = packed.reshape(-1).view(torch.uint8), state.shape.numel()
    whole = count // state.blocksize
    absmax = absmax_of(state, slice(0, -(-count // state.blocksize)))
    values = dequantize_blocks(flat[: whole * state.blocksize // 2], absmax[:whole], state, state.dtype)
    if whole < len(absmax):
        last = _pair_values(state.quant_type).index_select(0, flat[whole * state.blocksize // 2 :].int()).view(-1)
        values = torch.cat((values, (last[: count - len(values)] * absmax[whole]).to(state.dtype)))
    return values.reshape(state.shape)


def dequantize_blocks(
    packed: Tensor, absmax: Tensor, state: functional.QuantState, dtype: torch.dtype, *, lend: bool = False
) -> Tensor:
    """The values of whole blocks, flat, from their packed bytes U8 and absmax F32, both flat and contiguous.

    `lend` is for what is used once and let go.
    """
    if packed.device.type != "cpu" or type(packed) is not Tensor or torch.compiler.is_compiling():
        return _by_operation(packed, absmax, state, dtype)
    count = 2 * packed.numel()
    out = lent((count,), dtype) if lend and count * dtype.itemsize >= _LENT else torch.empty(count, dtype=dtype)
    _fill(out, packed, absmax.float().contiguous(), state)
    return out


def _fill(out: Tensor, packed: Tensor, absmax: Tensor, state: functional.QuantState) -> None:
    kernel = compiled_kernel(state.quant_type, out.dtype)
    if kernel is not None:
        kernel(packed, absmax, out, state.blocksize)
        return
    decode = _by_operation if state.blocksize < _COMPILED_BLOCKSIZE else _by_table
    step = max(1, _VALUES_AT_A_TIME // state.blocksize)
    for first in range(0, len(absmax), step):
        start, stop = (block * state.blocksize for block in (first, min(first + step, len(absmax))))
        out[start:stop] = decode(packed[start // 2 : stop // 2], absmax[first : first + step], state, out.dtype)


def _by_operation(packed: Tensor, absmax: Tensor, state: functional.QuantState, dtype: torch.dtype) -> Tensor:
    # A row for each block: bitsandbytes' CPU kernel is wrong in silence where a row is not whole blocks, and shares out
    # rows among its threads.
    shape = (len(absmax), state.blocksize)
    decode = torch.ops.bitsandbytes.dequantize_4bit.default
    values = decode(packed.unsqueeze(1), absmax, state.blocksize, state.quant_type, shape, dtype)
    return cast(Tensor, values).reshape(-1)


def _by_table(packed: Tensor, absmax: Tensor, state: functional.QuantState, dtype: torch.dtype) -> Tensor:
    """The same for blocks that bitsandbytes decodes by code that it compiles anew for each shape."""
    values = _pair_values(state.quant_type).index_select(0, packed.int()).view(-1, state.blocksize)
    return (values * absmax.unsqueeze(1)).to(dtype).view(-1)


@cache
def _pair_values(quant_type: str) -> Tensor:
    """The two values of each packed byte, F32 [256, 2]."""
    code, byte = quant_map(quant_type), torch.arange(256)
    return torch.stack((code[byte >> 4], code[byte & 15]), dim=1)


def dequantize_int8(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """value * (scale / 127), computed in float32, of values I8 [rows, columns] and scales F32 [rows].

    The result is for what is used once and let go.
    """
    factors = (scales / 127.0).unsqueeze(1)
    if values.device.type != "cpu":
        return (values.float() * factors).to(dtype)
    rows, columns = values.shape
    step = max(1, _INT8_AT_A_TIME * min(torch.get_num_threads(), _MOST_THREADS) // max(1, columns))
    out, wide = lent((rows, columns), dtype), torch.empty((min(step, rows), columns), dtype=torch.float32)
    for start in range(0, rows, step):
        part = wide[: min(step, rows - start)].copy_(values[start : start + step])
        out[start : start + step] = part.mul_(factors[start : start + step])
    return out


def absmax_of(state: functional.QuantState, blocks: slice | Tensor) -> Tensor:
    """The absmax values of some blocks, float32; with double quantization decoded from the second level."""
    if not state.nested:
        return cast(Tensor, state.absmax[blocks])
    nested = state.state2
    if isinstance(blocks, Tensor):
        places = blocks // nested.blocksize
        return cast(Tensor, nested.code[state.absmax[blocks].long()] * nested.absmax[places] + state.offset)
    # From the start of a nested block on, of which bitsandbytes' kernel knows whole ones and a short last.
    first = blocks.start // nested.blocksize
    last = -(-blocks.stop // nested.blocksize)
    codes, scales = state.absmax[first * nested.blocksize : blocks.stop], nested.absmax[first:last]
    decode = torch.ops.bitsandbytes.dequantize_blockwise.default
    values = decode(codes, scales, nested.code, nested.blocksize, torch.float32)
    return cast(Tensor, values[blocks.start - first * nested.blocksize :].add_(state.offset))


def dequantize_rows(packed: Tensor, state: functional.QuantState, rows: Tensor) -> Tensor:
    """Some rows [rows, columns] of a two-dimensional weight, from the blocks that they touch; the rows exist.

    `packed` is U8. A row may begin and end inside a block that it shares with its neighbours.
    """
    columns = state.shape[1]
    if columns % state.blocksize == 0:
        count = columns // state.blocksize
        return _blocks(packed, state, _runs(rows * count, count)).reshape(-1, columns)
    out = torch.empty((len(rows), columns), dtype=state.dtype, device=packed.device)
    step = max(1, _VALUES_AT_A_TIME // columns)
    for start in range(0, len(rows), step):
        out[start : start + step] = _straddling(packed, state, rows[start : start + step], columns)
    return out


def _straddling(packed: Tensor, state: functional.QuantState, rows: Tensor, columns: int) -> Tensor:
    size = state.blocksize
    first = rows * columns // size
    count = (columns + size - 2) // size + 1  # the most blocks that a row can touch
    last = -(-state.shape.numel() // size) - 1
    wide = _blocks(packed, state, _runs(first, count).clamp(max=last)).reshape(len(rows), -1)
    return wide.gather(1, _runs(rows * columns - first * size, columns).reshape(len(rows), columns))


def _runs(starts: Tensor, count: int) -> Tensor:
    """`start, start + 1, ...` for each start, flat."""
    return (starts.unsqueeze(1) + torch.arange(count, device=starts.device)).reshape(-1)


def _blocks(packed: Tensor, state: functional.QuantState, blocks: Tensor) -> Tensor:
    """The values of some blocks, flat; behind the end of a short last block stands anything."""
    size, flat = state.blocksize // 2, packed.reshape(-1)
    whole = len(flat) // size
    taken = flat[: whole * size].view(whole, size).index_select(0, blocks.clamp(max=whole - 1)) if whole else None
    if taken is None:
        taken = flat.new_zeros(len(blocks), size)
    tail = flat[whole * size :]
    taken[blocks == whole, : len(tail)] = tail
    return dequantize_blocks(taken.reshape(-1), absmax_of(state, blocks), state, state.dtype)
