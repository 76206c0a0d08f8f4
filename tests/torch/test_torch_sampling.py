"""What is measured while a weight is encoded is near the error of the whole, and adds up over slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rulequant.schemes import Bnb4bit, BnbInt8, Scheme
from rulequant.torch.factories import factory_for, slices_for
from rulequant.torch.factories.sampling import SAMPLED_VALUES
from rulequant.torch.kernels.sources import bits_of, float_name
from rulequant.verification import Sample

SCHEMES: dict[str, Scheme] = {
    "nf4": Bnb4bit(),
    "double": Bnb4bit(double_quant=True, blocksize=128),
    "fp4-4096": Bnb4bit(quant_type="fp4", blocksize=4096),
    "stored-bf16": Bnb4bit(quant_storage="bfloat16"),
    "int8": BnbInt8(),
}


def weight_of(*shape: int) -> torch.Tensor:
    """Rows of very different sizes, so that a row beside its neighbour's scale would be far off."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return (weight * torch.logspace(-2, 0, shape[0]).unsqueeze(1)).to(torch.bfloat16)


def sampled(weight: torch.Tensor, scheme: Scheme, slice_: int) -> Sample:
    found, flat = Sample(), bits_of(weight.reshape(-1))
    for start in range(0, len(flat), slice_):
        encoder: Any = slices_for(scheme.method)(tuple(weight.shape), float_name(weight.dtype), "linear", scheme)
        for _ in encoder.encode(flat[start : start + slice_], start):
            pass
        found = found.plus(encoder.sample)
    return found


def whole_error(weight: torch.Tensor, scheme: Scheme) -> float:
    factory = factory_for(scheme.method)
    decoded = factory.decode(factory.encode(weight, "linear", scheme), "linear")
    return float((decoded.double() - weight.double()).norm() / weight.double().norm())


@pytest.mark.parametrize("slices", [1, 4], ids=["at once", "in slices"])
@pytest.mark.parametrize("shape", [(2048, 512), (64, 4096), (4096, 1024)], ids=str)
@pytest.mark.parametrize("name", SCHEMES)
def test_sample_is_near_the_whole(name: str, shape: tuple[int, int], slices: int) -> None:
    """On at most 64K values, and a block or row of each slice."""
    weight, scheme = weight_of(*shape), SCHEMES[name]
    found = sampled(weight, scheme, weight.numel() // slices)
    assert 0 < found.values <= SAMPLED_VALUES + slices * 4096
    assert found.values < weight.numel() / 8
    assert found.relative_error == pytest.approx(whole_error(weight, scheme), rel=0.15)


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_sample_of_everything_is_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all values are looked at, the error is that of the decoded weight."""
    from rulequant.torch.factories import sampling

    monkeypatch.setattr(sampling, "_AT_LEAST", 1 << 30)
    monkeypatch.setattr(sampling, "SAMPLED_VALUES", 1 << 30)
    weight, scheme = weight_of(48, 256).float(), SCHEMES[name]
    found = sampled(weight, scheme, weight.numel() // 2)
    assert found.values == weight.numel()
    assert found.relative_error == pytest.approx(whole_error(weight, scheme), rel=1e-4)


def test_less_than_a_block_is_not_sampled() -> None:
    """Nothing to say is no error."""
    assert sampled(weight_of(3, 5), Bnb4bit(), 15) == Sample()
    assert Sample().relative_error == 0
