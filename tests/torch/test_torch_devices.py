"""The same encoding on every device that there is: the CPU always, a GPU where the machine has one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rulequant.schemes import Bnb4bit, BnbInt8, Scheme
from rulequant.torch import apply
from rulequant.torch.factories import factory_for

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]
SCHEMES: dict[str, Scheme] = {
    "nf4": Bnb4bit(),
    "nf4-double": Bnb4bit(double_quant=True),
    "fp4-128": Bnb4bit(quant_type="fp4", blocksize=128),
    "int8": BnbInt8(),
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("device", DEVICES)
def test_decoding_is_near_and_on_the_device(device: str, scheme: Scheme) -> None:
    """What is encoded on a device stays there and stands for the weight."""
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).to(device)
    factory = factory_for(scheme.method)
    encoded = factory.encode(weight, "linear", scheme)
    assert encoded["weight"].device.type == device
    decoded = factory.decode(encoded, "linear").float()
    error = (decoded - weight.float()).norm() / weight.float().norm()
    assert error < (0.02 if scheme.method == "bnb_int8" else 0.2)


@pytest.mark.parametrize("scheme", SCHEMES, ids=SCHEMES)
@pytest.mark.parametrize("device", DEVICES)
def test_forward_on_the_device(device: str, scheme: str) -> None:
    """A model quantized where it is runs there."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)).to(device).to(torch.bfloat16)
    states = torch.randn(4, 128, device=device, dtype=torch.bfloat16)
    with torch.no_grad():
        before = model(states)
        settings = SCHEMES[scheme].model_dump()
        apply(model, {"version": 1, "schemes": {"it": settings}, "scheme": "it"})
        after = model(states)
    assert after.device.type == device
    assert (after - before).norm() / before.norm() < 0.3
