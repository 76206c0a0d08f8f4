"""What is written, tensor by tensor: where its values lie in the source, and what becomes of them; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from rulequant.inventory import Kind, ModuleInfo, TensorInfo
from rulequant.schemes import Scheme, Slicing
from rulequant.torch.checkpoint.header import DTYPE_NAMES, TensorEntry

__all__ = ["RECORD_BYTES", "Block", "Step", "encoded_step", "kept_step", "matrix_columns"]

RECORD_BYTES = 512
"""More than the records of an encoded tensor take."""


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of a source tensor, and where it lies in the matrix that a step encodes, [rows, columns].

    All numbers count elements.
    """

    entry: TensorEntry
    rows: int
    """Of the source."""
    columns: int
    stride: int
    """From the beginning of one row of the source to that of the next."""
    first: int = 0
    """Where in the tensor the rectangle begins."""
    row: int = 0
    """Of the matrix, where it lies."""
    column: int = 0
    transposed: bool = False
    """Whether a row of the source is a column of the matrix."""

    @property
    def is_in_one_piece(self) -> bool:
        """Whether its values lie in the source as in the matrix, one behind the other."""
        return not self.transposed and (self.stride == self.columns or self.rows == 1)

    @property
    def height(self) -> int:
        """Rows of the matrix."""
        return self.columns if self.transposed else self.rows

    @property
    def width(self) -> int:
        """Columns of the matrix."""
        return self.rows if self.transposed else self.columns


@dataclass(frozen=True, slots=True)
class Step:
    """A tensor of the model, the source that it is made of, and what becomes of it."""

    key: str
    """The first source key; where several tensors are made of that, the name that this one would have unencoded."""
    target: str
    """The model's name for it."""
    kind: Kind
    shape: tuple[int, ...]
    """As the module holds it."""
    dtype: str
    """As safetensors spells it: what it is cast to; before encoding, where it is encoded."""
    blocks: tuple[Block, ...]
    """What makes up the matrix [out, in] of a weight, row by row; one row for what is not encoded, nor rearranged."""
    columns: int
    """Of that matrix."""
    tensors: tuple[TensorInfo, ...]
    """What is written, under full names, save records of unknown length; none where only encoding tells."""
    nbytes: int
    """Bytes that it takes in the output; for an encoded tensor an upper bound that counts the records."""
    prefix: str = ""
    """What the names of encoded tensors begin with."""
    scheme: Scheme | None = None
    slicing: Slicing | None = None
    """None: it is encoded as a whole."""

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def takes_mean(self) -> bool:
        """Whether it is encoded with a mean, whose last bits depend on a number of threads."""
        return self.scheme is not None and (self.slicing is None or self.slicing.work_bytes > 0)

    @property
    def takes_torch(self) -> bool:
        """Whether only torch can do it: it is encoded as a whole, or cast."""
        whole = self.scheme is not None and self.slicing is None
        return whole or any(entry.dtype != self.dtype for entry in self.entries)

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """The source tensors, each once."""
        return tuple({block.entry.name: block.entry for block in self.blocks}.values())

    @property
    def source_bytes(self) -> int:
        """Bytes that are read for it."""
        return sum(block.rows * block.columns * block.entry.item_size for block in self.blocks)


def kept_step(entry: TensorEntry, target: str, dtype: str) -> Step:
    """The step of a tensor that is copied or cast, under the source's own key."""
    written = TensorInfo(entry.name, entry.shape, DTYPE_NAMES[dtype])
    block = Block(entry, 1, entry.numel, stride=entry.numel)
    return Step(entry.name, target, "other", entry.shape, dtype, (block,), entry.numel, (written,), written.nbytes)


def matrix_columns(kind: Kind, shape: tuple[int, ...]) -> int:
    """Columns of the matrix [out, in] that a weight of this shape is encoded as."""
    return shape[0] if kind == "conv1d" else shape[-1] if kind == "experts" else prod(shape[1:])


def encoded_step(
    info: ModuleInfo,
    tensor: TensorInfo,
    scheme: Scheme,
    *,
    key: str,
    target: str,
    prefix: str,
    dtype: str,
    blocks: tuple[Block, ...],
) -> Step:
    """The step of a weight of a module that a scheme encodes, from values of a dtype."""
    written = tuple(
        TensorInfo(f"{prefix}{each.name}", each.shape, each.dtype) for each in scheme.encoded_tensors(info, tensor)
    )
    nbytes = scheme.encoded_bytes(info, tensor)
    return Step(
        key=key,
        target=target,
        kind=info.kind,
        shape=tensor.shape,
        dtype=dtype,
        blocks=blocks,
        columns=matrix_columns(info.kind, tensor.shape),
        tensors=written,
        nbytes=nbytes + RECORD_BYTES if written else nbytes,
        prefix=prefix,
        scheme=scheme,
        slicing=scheme.slicing(info, tensor) if written else None,
    )
