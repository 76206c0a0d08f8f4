"""What a forward sees in place of a fused parameter: encoded weights that dequantize the expert that it asks for.

They follow the dtype of the hidden states, as `Linear4bit` does: peft, for one, casts all that is not quantized to
float32. And where gradients flow through, the dequantized weights are not kept for the backward pass, which would be
the whole model in full precision, but dequantized again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["ExpertWeights", "forward_of_experts"]

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


class ExpertWeights(nn.Module):
    """The encoded weights of all experts, [experts, rows, columns]; indexing dequantizes one expert."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype) -> None:
        """`shape` and `dtype` are those of the parameter that is replaced."""
        super().__init__()
        self.shape = shape
        self.dtype = dtype
        self.working: _Work | None = None
        """The forward pass that is under way."""

    @property
    def device(self) -> torch.device:
        """Where the encoded weights are."""
        return cast(Tensor, self.weight).device

    @property
    def ndim(self) -> int:
        """Always three."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """As `Tensor.size`."""
        return self.shape if dim is None else self.shape[dim]

    def __getitem__(self, index: int | Tensor) -> Tensor:
        """The weight of one expert, [rows, columns], in the dtype of the forward pass, or else of the parameter."""
        work, expert = self.working, int(index)
        return self.expert(expert) if work is None else work.weight(self, expert)

    def expert(self, index: int) -> Tensor:
        """Dequantize one expert, in the dtype that the parameter had."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """`torch.bmm(states, weights)`, as Llama 4 computes all experts, one expert at a time."""
        del types
        if func is torch.bmm and not kwargs and len(args) == 2 and isinstance(args[1], ExpertWeights):
            states, weights = args
            count = range(weights.shape[0])
            return torch.cat([torch.bmm(states[index : index + 1], weights[index].unsqueeze(0)) for index in count])
        raise TypeError(f"quantized experts can be indexed, or be the second argument of torch.bmm, but not of {func}")

    def extra_repr(self) -> str:
        """The shape and dtype that it stands for."""
        return f"{tuple(self.shape)}, {self.dtype}"


def forward_of_experts(eager: Callable[..., Any]) -> Callable[..., Any]:
    """The eager forward of a class of experts, for modules in which `ExpertWeights` stand for the parameters."""

    @wraps(eager)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        weights = [each for each in self._modules.values() if isinstance(each, ExpertWeights)]
        with _Work(_working_dtype((*args, *kwargs.values()))).on(weights):
            return eager(self, *args, **kwargs)

    return forward


def _working_dtype(arguments: Iterable[Any]) -> torch.dtype | None:
    """That of the hidden states, which come first, or of autocast, which would make copies of its own."""
    states = next((each for each in arguments if isinstance(each, Tensor) and each.is_floating_point()), None)
    if states is None:
        return None
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


class _Recipe(NamedTuple):
    """How to make a tensor again that autograd wants in the backward pass: a view of a dequantized expert."""

    source: ExpertWeights
    expert: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> Tensor:
        weight = self.source.expert(self.expert).to(self.dtype)
        return weight.as_strided(self.size, self.stride, self.offset)


class _Work:
    """One forward pass through experts: its dtype, and which tensors are dequantized weights."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        self._made: dict[int, tuple[StorageWeakRef, ExpertWeights, int]] = {}
        self._outer = _default_hooks()

    @contextmanager
    def on(self, weights: Sequence[ExpertWeights]) -> Iterator[None]:
        before = [each.working for each in weights]
        for each in weights:
            each.working = self
        try:
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                with saved_tensors_hooks(self._pack, self._unpack):
                    yield
            else:
                yield
        finally:
            for each, work in zip(weights, before, strict=True):
                each.working = work

    def weight(self, source: ExpertWeights, expert: int) -> Tensor:
        made = source.expert(expert).to(self._dtype or source.dtype)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            reference = StorageWeakRef(made.untyped_storage())  # type: ignore[no-untyped-call]
            self._made[reference.cdata] = (reference, source, expert)
        return made

    def _pack(self, tensor: Tensor) -> Any:
        known = self._made.get(tensor.untyped_storage()._cdata)
        if known is not None and not known[0].expired():  # type: ignore[no-untyped-call]
            _, source, expert = known
            return _Recipe(source, expert, tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))
        return tensor if self._outer is None else self._outer[0](tensor)

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, _Recipe):
            return packed.tensor()
        return cast(Tensor, packed) if self._outer is None else self._outer[1](packed)


def _default_hooks() -> Hooks | None:
    """The hooks of whoever is around, such as torch.utils.checkpoint.

    torch calls the innermost ones only, so that ours have to pass on what is not theirs.
    """
    return cast("Hooks | None", torch._C._autograd._top_saved_tensors_default_hooks(False))
