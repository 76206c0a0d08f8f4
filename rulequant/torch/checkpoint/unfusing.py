"""Fused experts of the source as the Linear layers that a plain bitsandbytes checkpoint has instead."""

from __future__ import annotations

from dataclasses import replace

from rulequant.errors import CheckpointError
from rulequant.inventory import Inventory, ModuleInfo, TensorInfo
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.header import DTYPE_NAMES
from rulequant.torch.checkpoint.step import RECORD_BYTES, Block, Step
from rulequant.unfused import LAYOUT, ExpertMatrix, expert_count, expert_linear

__all__ = ["steps_apart"]


def steps_apart(step: Step, inventory: Inventory) -> list[Step]:
    """The steps for a tensor of a plain bitsandbytes checkpoint: one for each matrix where it wants them so.

    Raises:
        CheckpointError: transformers converts the tensor as it loads.
    """
    module, _, local = step.target.rpartition(".")
    info = inventory.by_name[module]
    matrices = [each for each in LAYOUT if each.source == local] if info.stock_linears else []
    if not matrices:
        return [step]
    if len(step.blocks) != 1 or not step.blocks[0].is_in_one_piece or len(step.entries[0].shape) != 3:
        raise CheckpointError(
            f"`{printable(step.key)}` is converted by transformers as it loads, so it is not taken apart"
        )
    return [_part(step, info, expert, each) for expert in range(expert_count(info)) for each in matrices]


def _part(step: Step, info: ModuleInfo, expert: int, matrix: ExpertMatrix) -> Step:
    """The weight of one Linear, [out, in]: some columns of an expert, transposed."""
    (entry,) = step.entries
    linear = expert_linear(info, expert, matrix)
    weight = linear.tensors[0]
    rows, stride = entry.shape[1:]
    width = weight.shape[0]
    block = Block(
        entry,
        rows,
        width,
        stride=stride,
        first=expert * rows * stride + matrix.part * width,
        transposed=True,
    )
    prefix = f"{step.key.removesuffix(matrix.source)}{expert}.{matrix.name}."
    scheme = step.scheme
    encoded = scheme.encoded_tensors(linear, weight) if scheme else (TensorInfo("weight", weight.shape, _name(step)),)
    written = tuple(TensorInfo(f"{prefix}{each.name}", each.shape, each.dtype) for each in encoded)
    nbytes = scheme.encoded_bytes(linear, weight) if scheme else written[0].nbytes
    return replace(
        step,
        key=f"{prefix}weight",
        target=f"{linear.name}.weight",
        kind="linear",
        shape=weight.shape,
        blocks=(block,),
        columns=weight.shape[1],
        tensors=written,
        nbytes=nbytes + RECORD_BYTES if scheme and written else nbytes,
        prefix=prefix,
        slicing=scheme.slicing(linear, weight) if scheme and written else None,
    )


def _name(step: Step) -> str:
    return DTYPE_NAMES[step.dtype]
