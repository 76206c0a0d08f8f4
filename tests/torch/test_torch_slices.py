"""Weights encoded slice by slice have the bytes of the whole; bitsandbytes is not needed for it."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rulequant.inventory import ITEM_SIZES, Kind, ModuleInfo, TensorInfo
from rulequant.schemes import WORK, Bnb4bit, BnbInt8, Scheme
from rulequant.torch.arrays.floats import to_float32
from rulequant.torch.factories import NotFiniteError, factory_for, slices_for
from rulequant.torch.kernels.sources import bits_of

SCHEMES: dict[str, Scheme] = {
    "nf4": Bnb4bit(),
    "double": Bnb4bit(double_quant=True),
    "fp4-128": Bnb4bit(quant_type="fp4", blocksize=128, double_quant=True),
    "stored-bf16": Bnb4bit(quant_storage="bfloat16"),
    "int8": BnbInt8(),
}


def weight_of(*shape: int) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)


def in_slices(weight: torch.Tensor, kind: Kind, scheme: Scheme, seed: int = 0) -> dict[str, NDArray[np.uint8]]:
    """The encoded tensors, put together from slices that are encoded in any order."""
    info = ModuleInfo("it", "It", kind, (TensorInfo("weight", tuple(weight.shape), "bfloat16"),))
    slicing = scheme.slicing(info, info.tensors[0])
    assert slicing is not None
    encoder = slices_for(scheme.method)(tuple(weight.shape), "BF16", kind, scheme)
    found = {each.name: np.zeros(each.nbytes, np.uint8) for each in scheme.encoded_tensors(info, info.tensors[0])}
    work = np.zeros(slicing.work_bytes, np.uint8)
    flat = bits_of((weight.T if kind == "conv1d" else weight).contiguous().reshape(-1))
    shuffled = random.Random(seed)
    starts, start = [], 0
    while start < len(flat):
        starts.append((start, min(start + slicing.multiple * shuffled.randint(1, 9), len(flat))))
        start = starts[-1][1]
    shuffled.shuffle(starts)

    def put(name: str, at: int, data: NDArray[Any]) -> None:
        raw = data.reshape(-1).view(np.uint8)
        target = work if name == WORK else found.setdefault(name, np.zeros_like(raw))
        target[at : at + len(raw)] = raw

    def look(start: int, stop: int) -> NDArray[np.float32]:
        return to_float32(flat[start:stop], "BF16", np.empty(stop - start, np.float32))

    for start, stop in starts:
        for piece in encoder.encode(flat[start:stop], start):
            put(*piece)
    for piece in encoder.finish(work, look, mean_threads=torch.get_num_threads()):
        put(*piece)
    return found


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        pytest.param((96, 128), "linear", id="linear"),
        pytest.param((7, 33), "linear", id="short last block"),
        pytest.param((128, 96), "conv1d", id="conv1d"),
        pytest.param((3, 64, 128), "experts", id="experts"),
        pytest.param((99, 20), "embedding", id="embedding"),
        pytest.param((64, 8, 3), "convolution", id="convolution"),
        pytest.param((600, 8192), "linear", id="more nested blocks than at a time"),
    ],
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_slices_make_up_the_whole(scheme: str, shape: tuple[int, ...], kind: Kind) -> None:
    """In any slices and any order, the bytes are those of the weight encoded at once."""
    if scheme == "stored-bf16" and shape == (7, 33):
        shape = (8, 33)  # packed bytes that do not fill whole items are what the scheme refuses
    weight, settings = weight_of(*shape), SCHEMES[scheme]
    factory: Any = factory_for(settings.method)
    if kind == "experts":
        expected = factory.encode_experts(weight.unbind(), weight.shape, weight.dtype, settings)
    else:
        expected = factory.encode(weight, kind, settings)
    found = in_slices(weight, kind, settings)
    assert sorted(found) == sorted(expected)
    for name, each in expected.items():
        assert bytes(found[name]) == bytes(each.contiguous().reshape(-1).view(torch.uint8).numpy()), name


@pytest.mark.parametrize("name", ["nf4", "double", "int8"])
@pytest.mark.parametrize(("kind", "place"), [("linear", [65, 3]), ("conv1d", [3, 65])])
def test_a_bad_value_is_placed_in_the_weight(name: str, kind: Kind, place: list[int]) -> None:
    """The place is that in the weight as the module holds it, whatever slice it is found in."""
    weight = weight_of(96, 128) if kind == "linear" else weight_of(128, 96)
    weight[tuple(place)] = float("nan")
    with pytest.raises(NotFiniteError, match=rf"the value at \[{place[0]}, {place[1]}\] is nan"):
        in_slices(weight, kind, SCHEMES[name])


def test_values_too_large_to_average_are_placed() -> None:
    """Double quantization finds them only at the end, and looks for the place in the block."""
    weight = weight_of(96, 128)
    weight[65, 3] = -3e38
    with pytest.raises(NotFiniteError, match=r"the value -3\.00\S+ at \[65, 3\] is beyond what double quantization"):
        in_slices(weight, "linear", SCHEMES["double"])


def test_encoding_on_the_cpu_does_without_bitsandbytes() -> None:
    """Neither the factories nor what they encode with import it, nor transformers."""
    code = (
        "import sys, torch; from rulequant.schemes import Bnb4bit, BnbInt8;"
        "from rulequant.torch.factories import factory_for;"
        "w = torch.randn(64, 64);"
        "factory_for('bnb_4bit').encode(w, 'linear', Bnb4bit(double_quant=True));"
        "factory_for('bnb_int8').encode(w, 'linear', BnbInt8());"
        "print(sorted({'bitsandbytes', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_sizes_are_known_without_torch() -> None:
    """The sizes of pieces follow from the scheme alone."""
    info = ModuleInfo("it", "It", "linear", (TensorInfo("weight", (96, 128), "bfloat16"),))
    tensor = info.tensors[0]
    assert Bnb4bit().slicing(info, tensor) == (64, 0)
    assert Bnb4bit(double_quant=True).slicing(info, tensor) == (64, 96 * 128 // 64 * ITEM_SIZES["float32"])
    assert BnbInt8().slicing(info, tensor) == (128, 0)
    assert Scheme(method="foreign").slicing(info, tensor) is None
