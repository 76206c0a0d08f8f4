"""Memory that is lent: used again when it was let go, and never while somebody holds it."""

from __future__ import annotations

import torch
from torch import nn

from rulequant.torch.factories.buffers import lent


def test_memory_is_lent_again() -> None:
    """What was let go is lent to the next, in another shape and dtype too, if it is large enough."""
    place = lent((64, 32), torch.float32).data_ptr()
    assert lent((128,), torch.bfloat16).data_ptr() == place
    assert lent((64, 32), torch.float32).data_ptr() == place


def test_memory_begins_with_a_cache_line() -> None:
    """As torch's own does."""
    assert [lent((size,), torch.uint8).data_ptr() % 64 for size in (1, 1 << 12, (1 << 22) + 1)] == [0, 0, 0]


def test_held_memory_is_not() -> None:
    """A tensor, or a view of one, that is still there keeps its values."""
    first = lent((64, 32), torch.float32).fill_(1)
    second = lent((64, 32), torch.float32).fill_(2)
    row = second[3]
    del second
    third = lent((64, 32), torch.float32).fill_(3)
    assert [float(each.unique()) for each in (first, row, third)] == [1, 2, 3]


def test_an_autograd_graph_holds_it() -> None:
    """A weight that a backward pass will need is not overwritten by the next."""
    states = torch.ones(2, 8, requires_grad=True)
    result = nn.functional.linear(states, lent((4, 8), torch.float32).fill_(5))
    lent((4, 8), torch.float32).fill_(7)
    result.sum().backward()
    assert states.grad is not None
    assert states.grad.unique().tolist() == [20]


def test_nothing_is_lent_for_nothing() -> None:
    """A tensor without elements has no memory."""
    assert lent((0, 8), torch.float16).shape == (0, 8)
