"""What the bitsandbytes factories encode: the bytes of bitsandbytes itself, as many as planned, or a refusal."""

from __future__ import annotations

import math
from typing import cast

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes import functional
from encoded import BLOCKSIZES, built, by_hand, conv1d, differing, linear, relative_error, same_bytes, uneven, weight_of
from torch import Tensor, nn

from rulequant import schemes
from rulequant.inventory import Kind, ModuleInfo, TensorInfo
from rulequant.schemes import Bnb4bit, BnbInt8
from rulequant.torch.factories import ExpertsFactory, NotFiniteError, factory_for
from rulequant.torch.inspect import inspect_model


def reference(weight: Tensor, scheme: Bnb4bit) -> dict[str, Tensor]:
    """What bitsandbytes' own parameter class makes of a weight."""
    parameter = bnb.nn.Params4bit(
        weight.clone(),
        requires_grad=False,
        blocksize=scheme.blocksize,
        compress_statistics=scheme.double_quant,
        quant_type=scheme.quant_type,
        quant_storage=getattr(torch, scheme.quant_storage),
    ).to("cpu")
    state = parameter.quant_state.as_dict(packed=True)
    return {"weight": parameter.data, **{f"weight.{key}": value for key, value in state.items()}}


@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_4bit_encodes_as_params4bit_does(blocksize: int, quant_type: str, double_quant: bool) -> None:
    """Every setting gives the bytes of bitsandbytes' own `Params4bit`."""
    scheme = Bnb4bit(quant_type=quant_type, double_quant=double_quant, blocksize=blocksize)
    weight = weight_of((48, 176))  # 8,448 elements: no multiple of any block size from 256 on
    encoded = factory_for("bnb_4bit").encode(weight, "linear", scheme)
    assert not differing(encoded, reference(weight, scheme))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("storage", ["uint8", "bfloat16", "float16", "float32"])
def test_4bit_storage_and_weight_dtypes(storage: str, dtype: torch.dtype) -> None:
    """Weights of each float dtype, packed into each storage dtype, give the same bytes as `Params4bit`."""
    scheme = Bnb4bit(double_quant=True, quant_storage=storage)
    weight = weight_of((32, 64), dtype)
    encoded = factory_for("bnb_4bit").encode(weight, "linear", scheme)
    assert encoded["weight"].dtype == getattr(torch, storage)
    assert not differing(encoded, reference(weight, scheme))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_int8_encodes_as_int8params_does(dtype: torch.dtype) -> None:
    """int8 values and scales are those of `Int8Params`."""
    weight = weight_of((24, 40), dtype)
    stock = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False).to("cpu")
    encoded = factory_for("bnb_int8").encode(weight, "linear", BnbInt8())
    assert same_bytes(encoded["weight"], stock.data)
    assert same_bytes(encoded["SCB"], stock.SCB)
    assert same_bytes(encoded["weight_format"], torch.tensor(0, dtype=torch.uint8))


@pytest.mark.parametrize("scheme", [Bnb4bit(double_quant=True), BnbInt8()], ids=["nf4", "int8"])
def test_conv1d_is_transposed(scheme: schemes.Scheme) -> None:
    """A `Conv1D` weight, [in, out], is encoded as [out, in], and decoded to [in, out] again."""
    weight = weight_of((24, 64))
    factory = factory_for(scheme.method)
    encoded = factory.encode(weight, "conv1d", scheme)
    assert not differing(encoded, factory.encode(weight.T.contiguous(), "linear", scheme))
    assert factory.decode(encoded, "conv1d").shape == (24, 64)
    layer, _ = built(conv1d(weight), scheme, "conv1d")
    assert (layer.in_features, layer.out_features) == (24, 64)
    inputs = torch.randn(5, 24)
    expected = inputs @ factory.decode(encoded, "conv1d").float()
    assert relative_error(layer(inputs), expected) < 0.03


ODD_SHAPES = ((64, 128), (48, 96), (11, 48), (40, 100), (7, 6), (9, 33), (8, 33), (5, 520))
"""Rows of whole blocks, rows that end inside a block, rows that end inside a byte."""


@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_4bit_decodes_what_the_format_says(blocksize: int, double_quant: bool) -> None:
    """For every block size and odd shapes; bitsandbytes' own CPU kernel is wrong for (48, 96) in blocks of 64."""
    scheme, factory = Bnb4bit(blocksize=blocksize, double_quant=double_quant), factory_for("bnb_4bit")
    for shape in ODD_SHAPES:
        encoded = factory.encode(uneven(shape), "linear", scheme)
        assert relative_error(factory.decode(encoded, "linear"), by_hand(encoded)) < 1e-6, shape


@pytest.mark.parametrize(
    "scheme",
    [Bnb4bit(blocksize=32), Bnb4bit(blocksize=4096, double_quant=True), Bnb4bit(quant_type="fp4", double_quant=True)],
    ids=["32", "4096-double", "fp4-double"],
)
def test_4bit_decode_is_bitsandbytes_dequantize(scheme: Bnb4bit) -> None:
    """Where bitsandbytes is right, decoding gives the same bits, close to the weight."""
    weight = weight_of((17, 4096), torch.bfloat16)[1:]
    factory = factory_for("bnb_4bit")
    encoded = factory.encode(weight, "linear", scheme)
    packed, state = functional.quantize_4bit(
        weight.contiguous(),
        blocksize=scheme.blocksize,
        compress_statistics=scheme.double_quant,
        quant_type=scheme.quant_type,
    )
    assert torch.equal(factory.decode(encoded, "linear"), functional.dequantize_4bit(packed, state))
    assert relative_error(factory.decode(encoded, "linear"), weight) < 0.2


def test_int8_decode_is_within_half_a_step() -> None:
    """Each decoded value is at most half a step of its row away."""
    weight = weight_of((16, 100), torch.float16)
    factory = factory_for("bnb_int8")
    encoded = factory.encode(weight, "linear", BnbInt8())
    decoded = factory.decode(encoded, "linear")
    step = weight.abs().amax(dim=1, keepdim=True).float() / 127
    assert torch.all((decoded - weight.float()).abs() <= step * 0.51)


SHAPES = [(64, 128), (1, 1), (1, 2), (3, 5), (7, 64), (48, 96), (33, 40), (96, 33), (2, 4097), (257, 258)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", [
    Bnb4bit(),
    Bnb4bit(blocksize=32, double_quant=True),
    Bnb4bit(quant_type="fp4", blocksize=4096, double_quant=True),
    Bnb4bit(blocksize=128, quant_storage="float32"),
    BnbInt8(),
], ids=["nf4", "nf4-32-double", "fp4-4096-double", "nf4-128-fp32", "int8"])  # fmt: skip
def test_bytes_after_are_exact(scheme: schemes.Scheme, shape: tuple[int, int]) -> None:
    """The plan's `bytes_after` are the bytes that are encoded, without the JSON record; bias included."""
    module = nn.Linear(shape[1], shape[0], bias=True)
    info = inspect_model(nn.Sequential(module)).by_name["0"]
    reason = scheme.unsupported(info)
    if reason:
        assert "do not fill whole float32 items" in reason
        assert math.ceil(module.weight.numel() / 2) % 4
        return
    encoded = factory_for(scheme.method).encode(module.weight.detach(), "linear", scheme)
    actual = sum(each.nbytes for name, each in encoded.items() if ".quant_state." not in name)
    assert scheme.bytes_after(info) == actual + module.bias.nbytes


def stored(encoded: dict[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of the encoded tensors, without the JSON record."""
    found = {name: (str(each.dtype).removeprefix("torch."), tuple(each.shape)) for name, each in encoded.items()}
    return {name: each for name, each in found.items() if ".quant_state." not in name}


@pytest.mark.parametrize("kind", ["linear", "conv1d", "experts"])
@pytest.mark.parametrize("scheme", [
    Bnb4bit(),
    Bnb4bit(quant_type="fp4", blocksize=32, double_quant=True),
    Bnb4bit(blocksize=128, quant_storage="bfloat16"),
    BnbInt8(),
], ids=["nf4", "fp4-32-double", "nf4-128-bf16", "int8"])  # fmt: skip
def test_encoded_tensors_are_those_that_the_scheme_promises(scheme: schemes.Scheme, kind: Kind) -> None:
    """Names, dtypes and shapes, `weight` first."""
    factory, weight = factory_for(scheme.method), torch.randn(4, 24, 64) if kind == "experts" else weight_of((24, 64))
    tensor = TensorInfo("gate_up_proj" if kind == "experts" else "weight", tuple(weight.shape), "float32")
    info = ModuleInfo("it", "It", kind, (tensor,))
    if scheme.unsupported(info):
        assert (kind, getattr(scheme, "quant_storage", "")) == ("experts", "bfloat16")
        return
    if kind == "experts":
        encoded = cast(ExpertsFactory, factory).encode_experts(weight.unbind(), weight.shape, weight.dtype, scheme)
    else:
        encoded = factory.encode(weight, kind, scheme)
    promised = scheme.encoded_tensors(info, tensor)
    assert {each.name: (each.dtype, each.shape) for each in promised} == stored(encoded)
    assert promised[0].name == factory.tensor_names[0] == "weight"
    assert sorted([*(each.name for each in promised), *scheme.record_names]) == sorted(encoded)


@pytest.mark.parametrize(
    ("scheme", "value", "message"),
    [
        (Bnb4bit(), math.nan, r"the value at \[2, 5\] is nan"),
        (Bnb4bit(double_quant=True), math.inf, r"the value at \[2, 5\] is inf"),
        (Bnb4bit(quant_type="fp4"), -math.inf, r"the value at \[2, 5\] is -inf"),
        (Bnb4bit(double_quant=True, blocksize=32), 3e38, r"3e\+38 at \[2, 5\] is beyond what double quantization"),
        (BnbInt8(), math.nan, r"the value at \[2, 5\] is nan"),
        (BnbInt8(), math.inf, r"the value at \[2, 5\] is inf"),
        (BnbInt8(), 65536.0, r"65536 at \[2, 5\] is beyond float16, through which int8 goes \(largest: 65504\)"),
        (BnbInt8(), -1e9, r"-1e\+09 at \[2, 5\] is beyond float16"),
    ],
    ids=["nf4-nan", "double-inf", "fp4-minus-inf", "double-3e38", "int8-nan", "int8-inf", "int8-65536", "int8-1e9"],
)  # fmt: skip
def test_values_that_cannot_be_encoded_are_refused(scheme: schemes.Scheme, value: float, message: str) -> None:
    """NaN, infinite and too large values are named with their place, by `check` and by `encode`."""
    weight = weight_of((6, 64))
    weight[2, 5] = value
    factory = factory_for(scheme.method)
    with pytest.raises(NotFiniteError, match=message):
        factory.check(weight, scheme)
    with pytest.raises(NotFiniteError, match=message):
        factory.encode(weight, "linear", scheme)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_half_precision_weights_are_checked(dtype: torch.dtype, value: float) -> None:
    """The check works in the dtype of the weight."""
    weight = weight_of((6, 64), dtype)
    weight[5, 63] = value
    with pytest.raises(NotFiniteError, match=r"at \[5, 63\]"):
        factory_for("bnb_4bit").check(weight, Bnb4bit())


@pytest.mark.parametrize("value", [65504.0, -65504.0], ids=str)
def test_the_largest_float16_is_fine_for_int8(value: float) -> None:
    """65504 is what float16 holds."""
    weight = weight_of((4, 8))
    weight[1, 1] = value
    encoded = factory_for("bnb_int8").encode(weight, "linear", BnbInt8())
    assert encoded["SCB"][1] == 65504.0


def test_large_values_are_fine_without_double_quantization() -> None:
    """The largest float32 survives 4-bit encoding: nothing is summed."""
    weight = weight_of((4, 64))
    weight[1, 1] = torch.finfo(torch.float32).max
    factory = factory_for("bnb_4bit")
    assert torch.isfinite(factory.decode(factory.encode(weight, "linear", Bnb4bit()), "linear")).all()


@pytest.mark.parametrize("scheme", [Bnb4bit(), Bnb4bit(double_quant=True), BnbInt8()], ids=["nf4", "double", "int8"])
def test_rows_of_zeros_stay_zero(scheme: schemes.Scheme) -> None:
    """A row, or a whole weight, of zeros is no division by zero."""
    weight = weight_of((8, 64))
    weight[3] = 0
    factory = factory_for(scheme.method)
    assert torch.equal(factory.decode(factory.encode(weight, "linear", scheme), "linear")[3], torch.zeros(64))
    layer, encoded = built(linear(torch.zeros(8, 64)), scheme)
    assert torch.equal(factory.decode(encoded, "linear").float(), torch.zeros(8, 64))
    assert torch.equal(layer(torch.randn(2, 64)), torch.zeros(2, 8))


@pytest.mark.parametrize(
    ("module", "scheme", "reason"),
    [
        (nn.Conv2d(4, 4, 1), Bnb4bit(), "bnb_4bit has no layer for Conv2d"),
        (nn.Bilinear(4, 4, 4), BnbInt8(), "bnb_int8 has no layer for Bilinear"),
        (nn.Linear(64, 4, dtype=torch.float64), Bnb4bit(), "bnb_4bit cannot encode float64 weights"),
        (nn.Linear(64, 4).to(torch.float8_e4m3fn), BnbInt8(), "bnb_int8 cannot encode float8_e4m3fn weights"),
        (nn.Linear(3, 3), Bnb4bit(quant_storage="float32"), "its 5 packed bytes do not fill whole float32 items"),
    ],
    ids=["conv", "bilinear", "float64", "float8", "storage"],
)
def test_what_a_method_cannot_hold_has_a_reason(module: nn.Module, scheme: schemes.Scheme, reason: str) -> None:
    """Unsupported modules are told apart before anything is encoded."""
    info = inspect_model(nn.Sequential(module)).by_name["0"]
    assert (scheme.unsupported(info) or "").startswith(reason)
