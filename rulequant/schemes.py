"""The schemes that a rule file may name: the settings of one method, what it cannot hold, and the bytes it takes.

Nothing here imports torch. The layers and the encoding are in `rulequant.torch.factories`; a third party adds a method
with a subclass of `Scheme` under the entry point group `rulequant.schemes` and a factory under `rulequant.factories`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from rulequant.errors import UsageError

if TYPE_CHECKING:  # start-up: the model's side is not needed to read a rule file
    from rulequant.inventory import ModuleInfo, TensorInfo

__all__ = ["BUILTIN", "ENTRY_POINTS", "WORK", "Bnb4bit", "BnbInt8", "Scheme", "Slicing", "methods", "scheme_class"]

ENTRY_POINTS = "rulequant.schemes"
_DIMENSIONS = {"embedding": 2, "convolution": 3}
"""Of the weights of classes whose own forward runs on what their encoded weight stands for: `Embedding`, `Conv1d`."""
_PACKED_ROWS = 32
"""bitsandbytes interleaves so many rows for CPUs with AVX512-BF16."""
NESTED_BLOCKSIZE = 256
"""bitsandbytes quantizes the absmax values of double quantization in blocks of 256."""


class Slicing(NamedTuple):
    """Into which slices a tensor may be cut, and what has to be kept of all of them until the last is encoded."""

    multiple: int
    """Values that every slice but the last is a multiple of."""
    work_bytes: int = 0


WORK = ""
"""The name of what is kept of all slices, among the names of the tensors that they make."""


class Scheme(BaseModel):
    """The settings of one quantization method, under a name that rules refer to."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    method: str

    kinds: ClassVar[frozenset[str]] = frozenset()
    """The kinds of modules that the method can hold."""
    dtypes: ClassVar[frozenset[str]] = frozenset({"float16", "bfloat16", "float32"})
    """The weight dtypes that the method can encode."""
    shares: ClassVar[bool] = False
    """Whether several layers can share an encoded weight: the factory has `share`."""

    def unsupported(self, info: ModuleInfo) -> str | None:
        """Why the method cannot hold this module, or None where it can."""
        if info.kind not in self.kinds:
            return f"{self.method} has no layer for {info.type}"
        if info.kind in _DIMENSIONS:
            return _stand_in_problem(self, info)
        return _experts_problem(self, info) if info.kind == "experts" else _matrix_problem(self, info)

    def quantized_tensors(self, info: ModuleInfo) -> tuple[str, ...]:
        """The local names of the tensors that the method replaces; the others stay as they are."""
        if info.kind != "experts":
            return ("weight",)
        return tuple(each.name for each in info.tensors if len(each.shape) == 3 and not each.buffer)

    def encoded_tensors(self, info: ModuleInfo, tensor: TensorInfo) -> tuple[TensorInfo, ...]:  # noqa: ARG002
        """The tensors that replace this one in a checkpoint, `weight` first, with names after that of the module.

        Records whose length is known only after encoding are left out. None at all: the method does not say.
        """
        return ()

    @property
    def record_names(self) -> tuple[str, ...]:
        """The names of the records beside the encoded tensors, whose length is known only after encoding."""
        return ()

    def slicing(self, info: ModuleInfo, tensor: TensorInfo) -> Slicing | None:  # noqa: ARG002
        """How the tensor can be encoded slice by slice; None where it has to be in memory as a whole."""
        return None

    def encoded_bytes(self, info: ModuleInfo, tensor: TensorInfo) -> int:
        """The exact bytes of the tensors that replace this one in a checkpoint, without records of unknown length."""
        encoded = self.encoded_tensors(info, tensor)
        if not encoded:
            raise NotImplementedError(f"{type(self).__name__} does not say its bytes")
        return sum(each.nbytes for each in encoded)

    def caution(self, info: ModuleInfo) -> str | None:  # noqa: ARG002  # most methods have nothing to say
        """What the layers that load a plain checkpoint may get wrong about this module; None where there is nothing."""
        return None

    def confined(self, info: ModuleInfo) -> str | None:  # noqa: ARG002  # the same
        """Where the layers that load a plain checkpoint raise for this module; None where they run everywhere."""
        return None

    def bytes_after(self, info: ModuleInfo) -> int:
        """The exact bytes of the module's tensors after quantization; what is tied is stored with its first owner."""
        replaced = self.quantized_tensors(info)
        return sum(
            self.encoded_bytes(info, each) if each.name in replaced and not each.tied_to else each.nbytes
            for each in info.tensors
        )


class Bnb4bit(Scheme):
    """bitsandbytes 4-bit weights, as in QLoRA: blocks of values scaled by their absolute maximum."""

    method: Literal["bnb_4bit"] = Field(default="bnb_4bit", description="The layer factory: Linear4bit.")
    quant_type: Literal["nf4", "fp4"] = Field(default="nf4", description="The 4-bit code: NormalFloat or float.")
    double_quant: bool = Field(default=False, description="Quantize the absmax values too (about 0.4 bits per weight).")
    blocksize: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = Field(
        default=64, description="Values that share one absmax."
    )
    compute_dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        default="auto", description="The dtype that weights are dequantized to; auto: the model's own."
    )
    quant_storage: Literal["uint8", "float16", "bfloat16", "float32"] = Field(
        default="uint8",
        description="The dtype that holds the packed bytes (FSDP wants it equal to the model's).",
    )

    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv1d", "experts", "embedding", "convolution"})
    shares: ClassVar[bool] = True

    def encoded_tensors(self, info: ModuleInfo, tensor: TensorInfo) -> tuple[TensorInfo, ...]:  # noqa: ARG002
        """Packed weights, absmax, code table and, with double quantization, the second level.

        The JSON record `quant_state.bitsandbytes__*` (about 90 bytes a tensor) is not among them: with double
        quantization its length follows from a float's decimal text and is known only after quantizing.
        """
        from rulequant.inventory import ITEM_SIZES, TensorInfo

        items = ceil(tensor.numel / 2) // ITEM_SIZES[self.quant_storage]
        blocks = ceil(tensor.numel / self.blocksize)
        encoded = (
            TensorInfo("weight", (items, 1), self.quant_storage),
            TensorInfo("weight.absmax", (blocks,), "uint8" if self.double_quant else "float32"),
            TensorInfo("weight.quant_map", (16,), "float32"),
        )
        if not self.double_quant:
            return encoded
        nested = ceil(blocks / NESTED_BLOCKSIZE)
        return (
            *encoded,
            TensorInfo("weight.nested_absmax", (nested,), "float32"),
            TensorInfo("weight.nested_quant_map", (256,), "float32"),
        )

    @property
    def record_names(self) -> tuple[str, ...]:
        """The JSON record of the quant state."""
        return (f"weight.quant_state.bitsandbytes__{self.quant_type}",)

    def slicing(self, info: ModuleInfo, tensor: TensorInfo) -> Slicing:  # noqa: ARG002
        """In whole blocks; for double quantization the absmax of all blocks is needed at once."""
        return Slicing(self.blocksize, ceil(tensor.numel / self.blocksize) * 4 if self.double_quant else 0)

    def unsupported(self, info: ModuleInfo) -> str | None:
        """Why 4-bit cannot hold this module, or None where it can."""
        reason = super().unsupported(info)
        if reason:
            return reason
        if info.kind == "experts":
            return self._misaligned_experts(info)
        if info.kind in _DIMENSIONS:
            return self._stored_otherwise(f"{info.kind}s")
        weight = info.tensor("weight")
        packed = ceil(weight.numel / 2) if weight else 0
        from rulequant.inventory import ITEM_SIZES

        if packed % ITEM_SIZES[self.quant_storage]:
            return f"its {packed} packed bytes do not fill whole {self.quant_storage} items; use quant_storage: uint8"
        return None

    def caution(self, info: ModuleInfo) -> str | None:
        """Rows that are not whole blocks, which bitsandbytes' CPU kernels (seen in 0.50) dequantize wrongly.

        On a GPU, and in rulequant's own layers, they work.
        """
        shape = _rows_and_columns(info)
        if shape is None or shape[1] % self.blocksize == 0:
            return None
        what = f"in_features {shape[1]} is no multiple of the blocksize {self.blocksize}"
        return f"{what}: on a CPU, bitsandbytes may compute it wrongly, or, with AVX512-BF16, fail"

    def confined(self, info: ModuleInfo) -> str | None:
        """Shapes that `bitsandbytes.functional._convert_weight_packed_for_cpu` (seen in 0.50) raises for."""
        shape = _rows_and_columns(info)
        if shape is None or shape[0] % _PACKED_ROWS == 0:
            return None
        return (
            f"out_features {shape[0]} is no multiple of {_PACKED_ROWS}: on a CPU with AVX512-BF16, bitsandbytes fails"
        )

    def _stored_otherwise(self, what: str) -> str | None:
        """Only bitsandbytes' own linear layers read packed bytes of another dtype."""
        if self.quant_storage == "uint8":
            return None
        return f"{what} are stored as uint8, not as {self.quant_storage}; use quant_storage: uint8"

    def _misaligned_experts(self, info: ModuleInfo) -> str | None:
        """Each expert has to be whole blocks, so that one can be dequantized without its neighbours."""
        if reason := self._stored_otherwise("fused experts"):
            return reason
        for name in self.quantized_tensors(info):
            tensor = info.tensor(name)
            if tensor and (tensor.numel // tensor.shape[0]) % self.blocksize:
                size = tensor.numel // tensor.shape[0]
                return f"an expert of `{name}` has {size} values, not a multiple of the blocksize {self.blocksize}"
        return None


class BnbInt8(Scheme):
    """bitsandbytes LLM.int8(): one scale per output row, outlier inputs above the threshold in 16 bits."""

    method: Literal["bnb_int8"] = Field(default="bnb_int8", description="The layer factory: Linear8bitLt.")
    threshold: float = Field(
        default=6.0, ge=0, allow_inf_nan=False, description="Inputs above it are outliers; 0: none."
    )

    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv1d", "experts", "embedding", "convolution"})
    shares: ClassVar[bool] = True

    def encoded_tensors(self, info: ModuleInfo, tensor: TensorInfo) -> tuple[TensorInfo, ...]:
        """int8 weights in their shape, one float32 scale for each row, and for a linear layer the format byte.

        A row is what makes up one output, of an expert too, or one row of an embedding.
        """
        from rulequant.inventory import TensorInfo

        shape = tensor.shape[::-1] if info.kind == "conv1d" else tensor.shape
        rows = shape[:-1] if info.kind == "experts" else shape[:1]
        encoded = (TensorInfo("weight", shape, "int8"), TensorInfo("SCB", rows, "float32"))
        is_linear = info.kind in {"linear", "conv1d"}
        return (*encoded, TensorInfo("weight_format", (), "uint8")) if is_linear else encoded

    def slicing(self, info: ModuleInfo, tensor: TensorInfo) -> Slicing:
        """In whole rows, each with a scale of its own."""
        values, scales, *_ = self.encoded_tensors(info, tensor)
        return Slicing(values.numel // scales.numel)


def _stand_in_problem(scheme: Scheme, info: ModuleInfo) -> str | None:
    """Why an embedding or a convolution cannot run on an encoded weight; what it owns beside the weight stays."""
    weight = info.tensor("weight")
    if info.obstacle:
        return info.obstacle
    if weight is None:
        return "its weight is missing, not a plain parameter"
    if len(weight.shape) != _DIMENSIONS[info.kind]:
        return f"{scheme.method} has no layer for {info.type}"
    return _values_problem(scheme, weight)


def _rows_and_columns(info: ModuleInfo) -> tuple[int, int] | None:
    """out_features and in_features of a layer with one matrix."""
    weight = info.tensor("weight")
    if info.kind not in {"linear", "conv1d"} or weight is None or len(weight.shape) != 2:
        return None
    first, second = weight.shape
    return (second, first) if info.kind == "conv1d" else (first, second)


def _matrix_problem(scheme: Scheme, info: ModuleInfo) -> str | None:
    """Why a layer with one matrix is not as the method wants it."""
    weight = info.tensor("weight")
    if weight is None or len(weight.shape) != 2:
        return f"its weight is {_shape(weight)}, not a plain two-dimensional parameter"
    extra = [each.name for each in info.tensors if each.name not in {"weight", "bias"}]
    if extra:
        return f"it owns `{extra[0]}` beside weight and bias"
    return _values_problem(scheme, weight)


def _experts_problem(scheme: Scheme, info: ModuleInfo) -> str | None:
    """Why fused experts are not as the method wants them."""
    for name in scheme.quantized_tensors(info):
        tensor = info.tensor(name)
        reason = _values_problem(scheme, tensor) if tensor else f"its `{name}` is missing"
        if reason:
            return reason
    return None


def _values_problem(scheme: Scheme, tensor: TensorInfo) -> str | None:
    if tensor.dtype not in scheme.dtypes:
        return f"{scheme.method} cannot encode {tensor.dtype} weights"
    return "its weight has no elements" if tensor.numel == 0 else None


BUILTIN: Mapping[str, type[Scheme]] = {"bnb_4bit": Bnb4bit, "bnb_int8": BnbInt8}
"""The methods of rulequant itself. They are registered as entry points too, as a third party's are; this table spares
`validate` the scan of all installed packages."""


def scheme_class(method: str) -> type[Scheme] | None:
    """The class of a method's schemes, built in or from an installed package; None where nobody provides it.

    Raises:
        UsageError: a package provides it, and what it provides cannot be loaded or is no `Scheme`.
    """
    if method in BUILTIN:
        return BUILTIN[method]
    entry = _provided(metadata.entry_points, tuple(sys.path)).get(method)
    return _load(entry) if entry else None


def _load(entry: metadata.EntryPoint) -> type[Scheme]:
    remedy = "update or uninstall the package that provides it"
    try:
        found: Any = entry.load()
    except Exception as error:  # a stranger's code: whatever it raises while it is imported
        message = f"the method `{entry.name}` ({entry.value}) cannot be loaded: {type(error).__name__}: {error}"
        raise UsageError(message, remedy=remedy) from error
    if not (isinstance(found, type) and issubclass(found, Scheme)):
        raise UsageError(f"the method `{entry.name}` ({entry.value}) is no subclass of Scheme", remedy=remedy)
    return found


def methods() -> list[str]:
    """The names of all installed methods."""
    return sorted({*BUILTIN, *_provided(metadata.entry_points, tuple(sys.path))})


@cache
def _provided(
    scan: Callable[..., metadata.EntryPoints],
    path: tuple[str, ...],  # noqa: ARG001  what the scan reads: a part of the cache's key
) -> dict[str, metadata.EntryPoint]:
    """The installed methods by name. A scan takes milliseconds, and a rule file may hold thousands of unknown names."""
    return {entry.name: entry for entry in reversed(tuple(scan(group=ENTRY_POINTS)))}


def _shape(tensor: TensorInfo | None) -> str:
    return "missing" if tensor is None else f"of shape {list(tensor.shape)}"
