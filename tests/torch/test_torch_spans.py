"""A span of an encoded weight, decoded alone, is that span of the decoded whole."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from rulequant.inventory import Kind
from rulequant.schemes import Bnb4bit, BnbInt8, Scheme
from rulequant.torch.factories import SpanFactory, factory_for

SCHEMES: dict[str, Scheme] = {
    "nf4": Bnb4bit(),
    "double": Bnb4bit(double_quant=True, blocksize=32),
    "fp4-4096-double": Bnb4bit(quant_type="fp4", blocksize=4096, double_quant=True),
    "stored-fp32": Bnb4bit(quant_storage="float32", double_quant=True),
    "int8": BnbInt8(),
}
SHAPES = [(4096, 3), (70, 4096), (300, 96)]


class Parts:
    """Encoded tensors in memory."""

    def __init__(self, encoded: dict[str, Tensor]) -> None:
        self._encoded = encoded

    @property
    def names(self) -> Collection[str]:
        return self._encoded.keys()

    def part(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self._encoded[name].reshape(-1)[start:stop]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SCHEMES)
def test_spans_are_those_of_the_whole(name: str, shape: tuple[int, int]) -> None:
    """From multiples of 4096 on, to the end too, where blocks are short and bytes half full."""
    scheme = SCHEMES[name]
    factory: Any = factory_for(scheme.method)
    assert isinstance(factory, SpanFactory)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    encoded = factory.encode(weight, "linear", scheme)
    whole = factory.decode(encoded, "linear").reshape(-1)
    rows = 4096 // torch.tensor([4096, shape[1]]).gcd(torch.tensor(shape[1]))[0].item()
    step = int(rows) * shape[1]
    for start in range(0, weight.numel(), step):
        stop = min(start + step, weight.numel())
        part = factory.decode(factory.span(Parts(encoded), start, stop, shape[1]), "linear").reshape(-1)
        assert part.equal(whole[start:stop]), start


@pytest.mark.parametrize("name", [each for each in SCHEMES if "4096" not in each and "stored" not in each])
def test_experts_are_spans(name: str) -> None:
    """Each expert by itself, whose blocks begin anywhere in the second level of double quantization."""
    scheme, kind = SCHEMES[name], cast(Kind, "experts")
    factory: Any = factory_for(scheme.method)
    weight = torch.randn((5, 24, 64), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    encoded = factory.encode_experts(weight.unbind(), weight.shape, weight.dtype, scheme)
    whole = factory.decode(encoded, kind)
    for index, expert in enumerate(whole):
        start = index * expert.numel()
        part = factory.decode(factory.span(Parts(encoded), start, start + expert.numel(), 64), "linear")
        assert torch.allclose(part.reshape(24, 64).float(), expert.float(), rtol=1e-6, atol=0)
