"""What a plan needs to know of a model: its modules, their tensors, and what the model declares about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal

from rulequant.errors import ModelError

__all__ = ["ITEM_SIZES", "Inventory", "Kind", "LayerIndex", "ModuleInfo", "TensorInfo"]

ITEM_SIZES = {
    "bool": 1, "uint8": 1, "int8": 1, "quint8": 1, "qint8": 1, "float4_e2m1fn_x2": 1,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "uint16": 2, "int16": 2, "float16": 2, "bfloat16": 2,
    "uint32": 4, "int32": 4, "qint32": 4, "float32": 4, "complex32": 4,
    "uint64": 8, "int64": 8, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip
"""Bytes per element by dtype name, as torch spells it."""

Kind = Literal["linear", "conv1d", "experts", "embedding", "convolution", "other"]
"""How a module uses its weight. `linear`: [out, in], `y = x W^T + b` (`nn.Linear` and its subclasses);
`conv1d`: transformers' `Conv1D`, [in, out], `y = x W + b`; `experts`: fused experts, three-dimensional parameters
[experts, rows, columns] that its forward takes one expert at a time; `embedding`: [rows, dim], of which rows are looked
up (`nn.Embedding`, `nn.EmbeddingBag` and their subclasses); `convolution`: [out, in/groups, kernel] with as many
dimensions of the kernel as there are; `other`: nothing a built-in method knows."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A parameter or persistent buffer of one module, under its local name."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    buffer: bool = False
    tied_to: str | None = None
    """The full name of the parameter that this one is the same object as, when that one comes first in the model."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in a checkpoint; 0 where it is tied, since it is stored once.

        Raises:
            ModelError: nobody knows how large an element of its dtype is.
        """
        if self.tied_to:
            return 0
        if self.dtype not in ITEM_SIZES:
            known = ", ".join(ITEM_SIZES)
            raise ModelError(f"the tensor `{self.name}` has the dtype `{self.dtype}`", remedy=f"known dtypes: {known}")
        return self.numel * ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class LayerIndex:
    """Where a module stands in a stack of layers: position `index` of `length`."""

    index: int
    length: int


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """One module of a model."""

    name: str
    type: str
    kind: Kind = "other"
    tensors: tuple[TensorInfo, ...] = ()
    aliases: tuple[str, ...] = ()
    """Other names under which the same module object is registered."""
    layer: LayerIndex | None = None
    """The position in the outermost `ModuleList` around the module."""
    output_embedding: bool = False
    """It is what `get_output_embeddings()` returns."""
    output_head: bool = False
    """It is a head on top of the base model: classifier, score, qa_outputs."""
    shares_output_embedding: bool = False
    """A parameter of it is the same object as one of the output embeddings."""
    keep_in_fp32: bool = False
    """The model declares it in `_keep_in_fp32_modules`."""
    stock_linears: bool = False
    """Fused experts for which transformers' bitsandbytes loader has a Linear per expert and matrix."""
    weight_reader: str | None = None
    """The code that reads `.weight` of this module from outside, such as `MambaMixer.slow_forward`."""
    obstacle: str | None = None
    """Why no layer with an encoded weight can stand in for an embedding or a convolution of this class, in words."""

    def tensor(self, name: str) -> TensorInfo | None:
        """The tensor of this local name."""
        return next((each for each in self.tensors if each.name == name), None)

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases."""
        return (self.name, *self.aliases)

    @property
    def parameters(self) -> int:
        """Number of parameter elements, each tied parameter counted once, at its first owner."""
        return sum(each.numel for each in self.tensors if not each.buffer and not each.tied_to)

    @property
    def nbytes(self) -> int:
        """Bytes that the module's tensors take in a checkpoint."""
        return sum(each.nbytes for each in self.tensors)


@dataclass(frozen=True)
class Inventory:
    """Every module of a model in the order of `named_modules()`, containers included."""

    model: str
    """What the user called the model: a folder, a Hub id, `package.module:callable`."""
    modules: tuple[ModuleInfo, ...]
    model_type: str | None = None
    """`config.model_type`; None for a model without a transformers config."""
    architecture: str | None = None
    """The class of the root module."""
    called: bool = False
    """A callable returned the model: its checkpoint has no config.json, and rulequant itself loads it."""
    versions: dict[str, str] = field(default_factory=dict)
    """The versions of the packages that made the inventory, for those who compare two."""

    @cached_property
    def by_name(self) -> dict[str, ModuleInfo]:
        """Every module under its name and under each of its aliases."""
        return {name: each for each in self.modules for name in each.names}

    @property
    def owners(self) -> Iterator[ModuleInfo]:
        """The modules that own a parameter or a persistent buffer."""
        return (each for each in self.modules if each.tensors)

    @property
    def parameters(self) -> int:
        """Number of parameter elements of the model."""
        return sum(each.parameters for each in self.modules)
