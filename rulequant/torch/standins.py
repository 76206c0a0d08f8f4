"""Layers that stand in for embeddings and convolutions: `y = dequant(W) x`, the rest as their class has it.

A stand-in is the module's own state with an encoded `weight`, under a class between the module's and `nn.Embedding` or
`nn.Conv1d`. So a subclass that scales what it looks up, shifts positions or pads on one side runs its own forward, and
its `super().forward(...)` arrives here. What computes with `self.weight` itself cannot be served, and is refused; what
asks it for no more than its dtype or shape (Gemma's scaled embeddings) is answered as by the plain weight.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from rulequant.errors import UsageError
from rulequant.inventory import Kind
from rulequant.torch.class_source import class_definition, self_path, working_methods
from rulequant.torch.derived import copy_as, derived_class

__all__ = [
    "STANDS_FOR",
    "EncodedConv1d",
    "EncodedEmbedding",
    "StandIn",
    "obstacle",
    "original_of",
    "refuse_resizing",
    "stand_in",
]

_METADATA = frozenset({"device", "dtype", "is_cuda", "ndim", "requires_grad", "shape", "size"})
"""What a class may ask its own weight; its forward is answered as by the plain one."""
STANDS_FOR = (nn.Embedding, nn.Conv1d)
"""What a stand-in can be made of, subclasses included."""
T = TypeVar("T", bound="StandIn")


class StandIn(nn.Module):
    """An encoded weight in place of a plain one; a factory's classes say how it is decoded."""

    kind: ClassVar[Kind]
    original: ClassVar[type[nn.Module]]
    """The class whose forward it replaces."""
    plain_dtype: torch.dtype
    """The dtype that the weight would have if it were a plain one."""
    plain_shape: torch.Size
    compute_dtype: torch.dtype | None
    """The dtype that the weight is dequantized to; that of the input where it is None."""

    @property
    def encoded(self) -> nn.Parameter:
        """The parameter `weight` as it is, whatever `self.weight` shows to the forward of a subclass."""
        return cast(nn.Parameter, self._parameters["weight"])

    def decoded(self) -> Tensor:
        """The weight that it stands for, in the shape and dtype that it was encoded from."""
        raise NotImplementedError

    def decoded_rows(self, rows: Tensor) -> Tensor:
        """Some rows of the weight, [rows, dim], without the others; all of them exist."""
        raise NotImplementedError

    def _apply(self: T, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> T:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # An encoded weight keeps its dtype whatever the model is cast to; what comes out does not.
        self.plain_dtype = fn(torch.empty(0, dtype=self.plain_dtype, device=self.encoded.device)).dtype
        return self


class EncodedEmbedding(StandIn, nn.Embedding):
    """An embedding that dequantizes the rows that a batch looks up, each once, and never the table."""

    kind = "embedding"
    original = nn.Embedding

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as torch calls it
        """[...] of int to [..., dim] in the dtype that the table had."""
        rows, places = torch.unique(input, return_inverse=True)
        if len(rows) and (int(rows[0]) < 0 or int(rows[-1]) >= self.num_embeddings):
            raise IndexError(f"the ids are from {rows[0]} to {rows[-1]}, the embedding has {self.num_embeddings} rows")
        return nn.functional.embedding(places, self.decoded_rows(rows).to(self.plain_dtype))


class EncodedConv1d(StandIn, nn.Conv1d):
    """A convolution that dequantizes its weight for each batch."""

    kind = "convolution"
    original = nn.Conv1d

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as torch calls it
        """[..., in, length] to [..., out, length], in the dtype of the input."""
        dtype = self.compute_dtype or input.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        result = self._conv_forward(input.to(dtype), self.decoded().to(dtype), bias)
        return cast(Tensor, result).to(input.dtype)


def stand_in(module: nn.Module, base: type[StandIn], weight: nn.Parameter) -> StandIn:
    """A copy of a module with another weight and the forward of a stand-in; the original is unchanged."""
    layer = cast(StandIn, copy_as(module, _standing(cast(Any, type(module)), cast(Any, base))))
    layer.plain_dtype = cast(Tensor, module.weight).dtype
    layer.plain_shape = cast(Tensor, module.weight).shape
    layer.compute_dtype = None
    layer._parameters["weight"] = weight
    return layer


def original_of(layer: StandIn, weight: Tensor) -> nn.Module:
    """The reverse of `stand_in`: a copy of the class that it was made of, with a plain weight."""
    owner = vars(type(layer)).get("rulequant_base", layer.original)
    plain = copy_as(layer, owner)
    plain._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    for name in ("plain_dtype", "plain_shape", "compute_dtype"):
        del plain.__dict__[name]
    return plain


@cache
def _standing(owner: Any, base: Any) -> Any:
    """The class itself where the module's is the original, else one that puts it behind the module's own class."""
    if owner is base.original:
        return base
    inner = type(owner.__name__, (owner, base), {"weight": property(_plain_looking), "__module__": owner.__module__})

    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        # The same state seen as another class, since everybody else has to meet the encoded weight.
        view: Any = object.__new__(inner)
        view.__dict__ = self.__dict__
        return owner.forward(view, *arguments, **options)

    contents = {"forward": forward, "rulequant_base": owner}
    return derived_class(owner, (owner, base), contents, (_standing, owner, base))


def _plain_looking(layer: Any) -> Tensor:
    """A tensor with the dtype, shape and device of the plain weight, and none of its memory."""
    empty = torch.empty((), dtype=layer.plain_dtype, device=layer.encoded.device)
    return empty.expand(layer.plain_shape)


def refuse_resizing(model: Any) -> None:
    """Where a model's input embedding is a stand-in, let `resize_token_embeddings` say so."""
    if isinstance(_input_embedding(model), StandIn):
        model.resize_token_embeddings = MethodType(resize_token_embeddings, model)


def resize_token_embeddings(self: Any, new_num_tokens: int | None = None, *arguments: Any, **options: Any) -> Any:
    """What a model with a quantized input embedding has in place of transformers' method of this name.

    Raises:
        UsageError: another size is asked for.
    """
    embedding = _input_embedding(self)
    if not isinstance(embedding, StandIn):
        return type(self).resize_token_embeddings(self, new_num_tokens, *arguments, **options)
    if new_num_tokens in {None, embedding.num_embeddings} and not arguments and not options:
        return embedding
    raise UsageError(
        f"the input embedding ({type(embedding).__name__}) is quantized, and cannot be resized",
        remedy="resize it before the rules are applied, or skip it with a reason; dequantize() makes it a plain one",
    )


def _input_embedding(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def obstacle(module: nn.Module) -> str | None:
    """Why a stand-in cannot do what an embedding or a convolution does, or None."""
    if isinstance(module, nn.Embedding):
        if module.max_norm is not None:
            return "its max_norm rescales rows of the weight as they are looked up"
        return _own_use(cast(Any, type(module)), cast(Any, nn.Embedding))
    if isinstance(module, nn.Conv1d):
        return _own_use(cast(Any, type(module)), cast(Any, nn.Conv1d))
    if isinstance(module, nn.EmbeddingBag):
        return "an EmbeddingBag reduces the rows that it looks up, and only Embedding has a quantized layer"
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "its convolution is transposed, and only Conv1d has a quantized layer"
    return None


@cache
def _own_use(owner: Any, original: Any) -> str | None:
    """What a subclass does that needs the plain weight, found in its source."""
    for each in owner.__mro__[: owner.__mro__.index(original)]:
        definition = class_definition(each)
        if definition is None:
            return f"the source of {each.__name__} cannot be read, which may use its weight in a way of its own"
        for method in working_methods(definition):
            if problem := _problem(method):
                return f"{each.__name__}.{method.name} {problem}"
    return None


def _problem(method: ast.FunctionDef) -> str | None:
    nodes = list(ast.walk(method))
    # Other methods may be called from outside of the forward pass, as sinusoids are by `_init_weights`.
    served = _METADATA if method.name == "forward" else frozenset()
    metadata = {id(each.value) for each in nodes if isinstance(each, ast.Attribute) and each.attr in served}
    for node in nodes:
        if isinstance(node, ast.Attribute) and self_path(node) == "weight" and id(node) not in metadata:
            return "computes with its weight itself"
        if isinstance(node, ast.Call) and not _is_super(node) and any(_is_self(each) for each in node.args):
            return "hands itself on to other code, which may use its weight"
    return None


def _is_super(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == "super"


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
