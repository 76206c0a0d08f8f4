"""Fused experts as transformers' bitsandbytes loader has them where it takes them apart: a Linear per expert matrix.

It does so for Llama 4, whose experts compute `x W` with [in, out] matrices, gate and up side by side. A plain
bitsandbytes checkpoint of such a model holds `experts.3.gate_proj.weight`, [out, in], and so on, quantized or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rulequant.inventory import ModuleInfo, TensorInfo

__all__ = ["LAYOUT", "ExpertMatrix", "expert_count", "expert_linear", "expert_linears"]


@dataclass(frozen=True, slots=True)
class ExpertMatrix:
    """Where the weight of a Linear lies in the fused parameters: some columns of an expert, transposed."""

    name: str
    """The Linear, as a child of its expert."""
    source: str
    """The fused parameter, [experts, in, parts * out]."""
    part: int
    parts: int

    def shape(self, fused: tuple[int, ...]) -> tuple[int, int]:
        """The shape of the Linear's weight, [out, in]."""
        return fused[2] // self.parts, fused[1]


LAYOUT = (
    ExpertMatrix("gate_proj", "gate_up_proj", 0, 2),
    ExpertMatrix("up_proj", "gate_up_proj", 1, 2),
    ExpertMatrix("down_proj", "down_proj", 0, 1),
)


def expert_count(info: ModuleInfo) -> int:
    """The number of experts of a module that the loader takes apart."""
    return info.tensors[0].shape[0]


def expert_linear(info: ModuleInfo, expert: int, matrix: ExpertMatrix) -> ModuleInfo:
    """One of the Linear layers that a plain bitsandbytes checkpoint has instead of the module."""
    fused = next(each for each in info.tensors if each.name == matrix.source)
    weight = TensorInfo("weight", matrix.shape(fused.shape), fused.dtype)
    return ModuleInfo(f"{info.name}.{expert}.{matrix.name}", "Linear", "linear", (weight,), layer=info.layer)


def expert_linears(info: ModuleInfo) -> Iterator[ModuleInfo]:
    """All of them, expert by expert."""
    return (expert_linear(info, expert, matrix) for expert in range(expert_count(info)) for matrix in LAYOUT)
