"""The schemes that a rule file may name: the settings of one method, what it cannot hold, and the bytes it takes.

Nothing here imports torch. The layers and the encoding are in `rulequant.torch.factories`; a third party adds a method
with a subclass of `Scheme` under the entry point group `rulequant.schemes` and a factory under `rulequant.factories`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from math import ceil
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from rulequant.inventory import ITEM_SIZES, ModuleInfo, TensorInfo

__all__ = ["BUILTIN", "ENTRY_POINTS", "Bnb4bit", "BnbInt8", "Scheme", "methods", "scheme_class"]

ENTRY_POINTS = "rulequant.schemes"
NESTED_BLOCKSIZE = 256
"""bitsandbytes quantizes the absmax values of double quantization in blocks of 256."""


class Scheme(BaseModel):
    """The settings of one quantization method, under a name that rules refer to."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    method: str

    kinds: ClassVar[frozenset[str]] = frozenset()
    """The kinds of modules that the method can hold."""
    dtypes: ClassVar[frozenset[str]] = frozenset({"float16", "bfloat16", "float32"})
    """The weight dtypes that the method can encode."""

    def unsupported(self, info: ModuleInfo) -> str | None:
        """Why the method cannot hold this module, or None where it can."""
        if info.kind not in self.kinds:
            return f"{self.method} has no layer for {info.type}"
        weight = info.tensor("weight")
        if weight is None or len(weight.shape) != 2:
            return f"its weight is {_shape(weight)}, not a plain two-dimensional parameter"
        extra = [each.name for each in info.tensors if each.name not in {"weight", "bias"}]
        if extra:
            return f"it owns `{extra[0]}` beside weight and bias"
        if weight.dtype not in self.dtypes:
            return f"{self.method} cannot encode {weight.dtype} weights"
        if weight.numel == 0:
            return "its weight has no elements"
        return None

    def quantized_tensors(self, info: ModuleInfo) -> tuple[str, ...]:  # noqa: ARG002  # other methods depend on the module
        """The local names of the tensors that the method replaces; the others stay as they are."""
        return ("weight",)

    def encoded_bytes(self, info: ModuleInfo, tensor: TensorInfo) -> int:
        """The exact bytes of the tensors that replace this one in a checkpoint."""
        raise NotImplementedError(f"{type(self).__name__} does not say its bytes")

    def bytes_after(self, info: ModuleInfo) -> int:
        """The exact bytes of the module's tensors after quantization."""
        replaced = self.quantized_tensors(info)
        return sum(self.encoded_bytes(info, each) if each.name in replaced else each.nbytes for each in info.tensors)


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

    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv1d"})

    def encoded_bytes(self, info: ModuleInfo, tensor: TensorInfo) -> int:  # noqa: ARG002  # int8 needs the module
        """Packed weights, absmax, code table and, with double quantization, the second level.

        The JSON record `quant_state.bitsandbytes__*` (about 90 bytes a tensor) is not counted: with double
        quantization its length follows from a float's decimal text and is known only after quantizing.
        """
        packed = ceil(tensor.numel / 2)
        blocks = ceil(tensor.numel / self.blocksize)
        code = 16 * 4
        if not self.double_quant:
            return packed + blocks * 4 + code
        return packed + blocks + code + ceil(blocks / NESTED_BLOCKSIZE) * 4 + 256 * 4

    def unsupported(self, info: ModuleInfo) -> str | None:
        """Why 4-bit cannot hold this module, or None where it can."""
        reason = super().unsupported(info)
        weight = info.tensor("weight")
        if reason or weight is None:
            return reason
        packed = ceil(weight.numel / 2)
        if packed % ITEM_SIZES[self.quant_storage]:
            return f"its {packed} packed bytes do not fill whole {self.quant_storage} items; use quant_storage: uint8"
        return None


class BnbInt8(Scheme):
    """bitsandbytes LLM.int8(): one scale per output row, outlier inputs above the threshold in 16 bits."""

    method: Literal["bnb_int8"] = Field(default="bnb_int8", description="The layer factory: Linear8bitLt.")
    threshold: float = Field(
        default=6.0, ge=0, allow_inf_nan=False, description="Inputs above it are outliers; 0: none."
    )

    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv1d"})

    def encoded_bytes(self, info: ModuleInfo, tensor: TensorInfo) -> int:
        """int8 weights, one float32 scale for each output row, and the format byte."""
        rows = tensor.shape[1] if info.kind == "conv1d" else tensor.shape[0]
        return tensor.numel + rows * 4 + 1


BUILTIN: Mapping[str, type[Scheme]] = {"bnb_4bit": Bnb4bit, "bnb_int8": BnbInt8}
"""The methods of rulequant itself. They are registered as entry points too, as a third party's are; this table spares
`validate` the scan of all installed packages."""


def scheme_class(method: str) -> type[Scheme] | None:
    """The class of a method's schemes, built in or from an installed package; None where nobody provides it."""
    if method in BUILTIN:
        return BUILTIN[method]
    for entry in metadata.entry_points(group=ENTRY_POINTS, name=method):
        found: Any = entry.load()
        if isinstance(found, type) and issubclass(found, Scheme):
            return found
    return None


def methods() -> list[str]:
    """The names of all installed methods."""
    return sorted({*BUILTIN, *(entry.name for entry in metadata.entry_points(group=ENTRY_POINTS))})


def _shape(tensor: TensorInfo | None) -> str:
    return "missing" if tensor is None else f"of shape {list(tensor.shape)}"
