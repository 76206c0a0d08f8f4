"""Schemes: exact bytes against sums done by hand, what a method cannot hold, strict settings, foreign methods."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from math import ceil
from typing import Any, Literal

import inventories
import pytest
from inventories import linear
from pydantic import ValidationError

from rulequant import schemes
from rulequant.errors import UsageError
from rulequant.inventory import ModuleInfo, TensorInfo
from rulequant.schemes import BUILTIN, Bnb4bit, BnbInt8, Scheme, methods, scheme_class

EMBEDDING = ModuleInfo("embed", "Embedding", "embedding", (inventories.weight(99, 20),))
CONVOLUTION = ModuleInfo(
    "conv", "Conv1d", "convolution", (inventories.weight(64, 16, 3), TensorInfo("bias", (64,), "bfloat16"))
)
CONV1D = ModuleInfo("c_attn", "Conv1D", "conv1d", (inventories.weight(64, 192), TensorInfo("bias", (192,), "bfloat16")))


@pytest.mark.parametrize(
    ("settings", "shape", "expected"),
    [
        pytest.param({}, (64, 64), 2048 + 64 * 4 + 16 * 4, id="nf4"),
        pytest.param({"quant_type": "fp4"}, (64, 64), 2048 + 64 * 4 + 16 * 4, id="fp4"),
        pytest.param({"blocksize": 128}, (64, 64), 2048 + 32 * 4 + 16 * 4, id="blocks-of-128"),
        pytest.param({"blocksize": 4096}, (64, 64), 2048 + 1 * 4 + 16 * 4, id="one-block"),
        pytest.param({"double_quant": True}, (64, 64), 2048 + 64 + 16 * 4 + 1 * 4 + 256 * 4, id="double"),
        pytest.param({"double_quant": True}, (128, 128), 8192 + 256 + 64 + 1 * 4 + 1024, id="double-256-blocks"),
        pytest.param({"double_quant": True}, (128, 130), 8320 + 260 + 64 + 2 * 4 + 1024, id="double-260-blocks"),
        pytest.param({"double_quant": True, "blocksize": 32}, (64, 64), 2048 + 128 + 64 + 4 + 1024, id="double-of-32"),
        pytest.param({}, (5, 13), 33 + 2 * 4 + 64, id="odd"),
        pytest.param({}, (1, 1), 1 + 4 + 64, id="one-value"),
        pytest.param({"quant_storage": "bfloat16"}, (64, 64), 2048 + 256 + 64, id="storage"),
        pytest.param({"compute_dtype": "float32"}, (64, 64), 2048 + 256 + 64, id="compute-dtype"),
    ],
)
def test_4bit_bytes(settings: dict[str, Any], shape: tuple[int, ...], expected: int) -> None:
    """Packed halves of bytes, an absmax for each block, the code table, and a second level for double quantization."""
    info = linear("fc", *shape)
    assert Bnb4bit(**settings).encoded_bytes(info, info.tensors[0]) == expected
    assert Bnb4bit(**settings).bytes_after(info) == expected


@pytest.mark.parametrize("blocksize", [32, 64, 128, 256, 512, 1024, 2048, 4096])
def test_4bit_bytes_of_every_blocksize(blocksize: int) -> None:
    """A short last block has an absmax too."""
    info = linear("fc", 65, 67)
    scheme = Bnb4bit.model_validate({"blocksize": blocksize})
    assert scheme.bytes_after(info) == ceil(65 * 67 / 2) + ceil(65 * 67 / blocksize) * 4 + 64


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        pytest.param(linear("fc", 64, 48), 64 * 48 + 64 * 4 + 1, id="linear"),
        pytest.param(linear("fc", 64, 48, bias=True), 64 * 48 + 64 * 4 + 1 + 64 * 2, id="bias"),
        pytest.param(CONV1D, 64 * 192 + 192 * 4 + 1 + 192 * 2, id="conv1d-has-outputs-in-columns"),
        pytest.param(EMBEDDING, 99 * 20 + 99 * 4, id="embedding"),
        pytest.param(CONVOLUTION, 64 * 16 * 3 + 64 * 4 + 64 * 2, id="convolution"),
    ],
)
def test_int8_bytes(info: ModuleInfo, expected: int) -> None:
    """A byte for each weight, a float32 scale for each row, and of a linear layer the byte that names the format."""
    assert BnbInt8().bytes_after(info) == expected


@pytest.mark.parametrize(
    ("info", "numel", "rest"), [(EMBEDDING, 1980, 0), (CONVOLUTION, 3072, 128)], ids=["embedding", "convolution"]
)
def test_4bit_bytes_of_other_kinds(info: ModuleInfo, numel: int, rest: int) -> None:
    """Tables and kernels are flat blocks too, whatever the length of a row."""
    assert Bnb4bit(blocksize=128).bytes_after(info) == ceil(numel / 2) + ceil(numel / 128) * 4 + 64 + rest


def test_other_tensors_stay() -> None:
    """A bias keeps its bytes, and a tied one has none of its own."""
    tied = TensorInfo("bias", (64,), "float32", tied_to="head.bias")
    info = linear("fc", 64, 64, tensors=(inventories.weight(64, 64), tied))
    assert Bnb4bit().bytes_after(info) == 2048 + 256 + 64
    assert Bnb4bit().bytes_after(linear("fc", 64, 64, bias=True, dtype="float32")) == 2048 + 256 + 64 + 64 * 4


UNSUPPORTED: dict[str, tuple[Scheme, ModuleInfo, str]] = {
    "kind": (Bnb4bit(), ModuleInfo("g", "Grid"), "bnb_4bit has no layer for Grid"),
    "no-table": (Bnb4bit(), ModuleInfo("e", "Embedding", "embedding"), "its weight is missing, not a plain parameter"),
    "conv2d": (
        BnbInt8(),
        ModuleInfo("c", "Conv2d", "convolution", (inventories.weight(8, 4, 3, 3),)),
        "bnb_int8 has no layer for Conv2d",
    ),
    "obstacle": (BnbInt8(), replace(EMBEDDING, obstacle="it rhymes"), "it rhymes"),
    "table-float64": (
        BnbInt8(),
        ModuleInfo("e", "Embedding", "embedding", (TensorInfo("weight", (4, 2), "float64"),)),
        "bnb_int8 cannot encode float64 weights",
    ),
    "table-storage": (
        Bnb4bit(quant_storage="bfloat16"),
        EMBEDDING,
        "embeddings are stored as uint8, not as bfloat16; use quant_storage: uint8",
    ),
    "convolution-storage": (
        Bnb4bit(quant_storage="float32"),
        CONVOLUTION,
        "convolutions are stored as uint8, not as float32; use quant_storage: uint8",
    ),
    "missing": (
        BnbInt8(),
        linear("fc", 1, 1, tensors=()),
        "its weight is missing, not a plain two-dimensional parameter",
    ),
    "three-dimensions": (
        Bnb4bit(),
        linear("fc", 1, 1, tensors=(inventories.weight(8, 4, 2),)),
        "its weight is of shape [8, 4, 2], not a plain two-dimensional parameter",
    ),
    "beside": (
        Bnb4bit(),
        linear("fc", 1, 1, tensors=(inventories.weight(4, 2), TensorInfo("scale", (1,), "float32"))),
        "it owns `scale` beside weight and bias",
    ),
    "float64": (Bnb4bit(), linear("fc", 4, 2, dtype="float64"), "bnb_4bit cannot encode float64 weights"),
    "float8": (BnbInt8(), linear("fc", 4, 2, dtype="float8_e4m3fn"), "bnb_int8 cannot encode float8_e4m3fn weights"),
    "empty": (Bnb4bit(), linear("fc", 0, 2), "its weight has no elements"),
    "storage": (
        Bnb4bit(quant_storage="float32"),
        linear("fc", 3, 2),
        "its 3 packed bytes do not fill whole float32 items; use quant_storage: uint8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported(name: str) -> None:
    """What a method cannot hold has a reason in words."""
    scheme, info, reason = UNSUPPORTED[name]
    assert scheme.unsupported(info) == reason


@pytest.mark.parametrize("scheme", [pytest.param(Bnb4bit(), id="4bit"), pytest.param(BnbInt8(), id="int8")])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_supported(scheme: Scheme, dtype: str) -> None:
    """Linear and Conv1D in the three floating dtypes are fine, with a bias or without."""
    assert scheme.unsupported(linear("fc", 64, 64, dtype=dtype)) is None
    assert scheme.unsupported(linear("fc", 64, 64, bias=True, dtype=dtype)) is None
    assert scheme.unsupported(CONV1D) is None
    assert scheme.unsupported(linear("fc", 4, 4, type="FalconLinear")) is None


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "float32"])
def test_storage_takes_what_fills_it(storage: Literal["float16", "bfloat16", "float32"]) -> None:
    """Packed bytes that fill whole items of the storage dtype are fine."""
    assert Bnb4bit(quant_storage=storage).unsupported(linear("fc", 4, 2)) is None


REFUSED: dict[str, tuple[type[Scheme], dict[str, Any], str]] = {
    "unknown-option": (Bnb4bit, {"blcksize": 64}, "extra_forbidden"),
    "option-of-the-other": (BnbInt8, {"blocksize": 64}, "extra_forbidden"),
    "blocksize-text": (Bnb4bit, {"blocksize": "64"}, "literal_error"),
    "blocksize-bool": (Bnb4bit, {"blocksize": True}, "literal_error"),
    "blocksize-odd": (Bnb4bit, {"blocksize": 96}, "literal_error"),
    "blocksize-16": (Bnb4bit, {"blocksize": 16}, "literal_error"),
    "quant-type-case": (Bnb4bit, {"quant_type": "NF4"}, "literal_error"),
    "double-quant-text": (Bnb4bit, {"double_quant": "true"}, "bool_type"),
    "double-quant-number": (Bnb4bit, {"double_quant": 1}, "bool_type"),
    "compute-dtype": (Bnb4bit, {"compute_dtype": "bf16"}, "literal_error"),
    "threshold-text": (BnbInt8, {"threshold": "6"}, "float_type"),
    "threshold-bool": (BnbInt8, {"threshold": True}, "float_type"),
    "threshold-negative": (BnbInt8, {"threshold": -0.5}, "greater_than_equal"),
    "threshold-nan": (BnbInt8, {"threshold": float("nan")}, "finite_number"),
    "threshold-inf": (BnbInt8, {"threshold": float("inf")}, "finite_number"),
    "method-of-the-other": (Bnb4bit, {"method": "bnb_int8"}, "literal_error"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_are_strict(name: str) -> None:
    """Nothing is converted: text is no number, a truth value is none either, and unknown options are refused."""
    found, settings, kind = REFUSED[name]
    with pytest.raises(ValidationError, match=next(iter(settings))) as caught:
        found.model_validate(settings)
    assert [each["type"] for each in caught.value.errors()] == [kind]


def test_an_integer_is_a_number() -> None:
    """`threshold: 6` is what people write."""
    assert BnbInt8.model_validate({"threshold": 6}) == BnbInt8(threshold=6.0)


def test_builtin_methods_are_entry_points() -> None:
    """The table of the built-in methods says what the entry points say."""
    found = {each.name: each.load() for each in metadata.entry_points(group=schemes.ENTRY_POINTS)}
    assert {name: found[name] for name in BUILTIN} == dict(BUILTIN)
    assert set(BUILTIN) <= set(methods())


class HalfBits(Scheme):
    """A method as a third party would write it."""

    method: Literal["half_bits"] = "half_bits"
    group: int = 8

    kinds = frozenset({"linear"})

    def encoded_bytes(self, info: ModuleInfo, tensor: TensorInfo) -> int:
        """A sixteenth of a byte for each weight."""
        return tensor.numel // 16


def provide(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Let an installed package provide these methods."""
    entries = [metadata.EntryPoint(name, value, schemes.ENTRY_POINTS) for name, value in values.items()]
    monkeypatch.setattr(metadata, "entry_points", lambda **_: metadata.EntryPoints(entries))


def test_a_package_adds_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass of Scheme under the entry point group is found by the name of its method."""
    provide(monkeypatch, half_bits=f"{__name__}:HalfBits")
    found = scheme_class("half_bits")
    assert found is HalfBits
    assert methods() == ["bnb_4bit", "bnb_int8", "half_bits"]
    assert found().bytes_after(linear("fc", 64, 64, bias=True)) == 256 + 128


def test_a_built_in_method_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package cannot take the name of a built-in method."""
    provide(monkeypatch, bnb_4bit=f"{__name__}:HalfBits")
    assert scheme_class("bnb_4bit") is Bnb4bit


def test_nobody_provides_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown method is None, not an error."""
    provide(monkeypatch)
    assert scheme_class("gptq") is None
    assert methods() == ["bnb_4bit", "bnb_int8"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param("gone.away:Gone", r"`x` \(gone\.away:Gone\) cannot be loaded: ModuleNotFoundError: ", id="import"),
        pytest.param("math:gone", r"`x` \(math:gone\) cannot be loaded: AttributeError: ", id="attribute"),
        pytest.param("math:pi", r"`x` \(math:pi\) is no subclass of Scheme", id="no-class"),
        pytest.param("builtins:dict", r"`x` \(builtins:dict\) is no subclass of Scheme", id="other-class"),
    ],
)
def test_a_broken_package_is_named(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    """A method that cannot be loaded is an error that says from where, not an unknown method."""
    provide(monkeypatch, x=value)
    with pytest.raises(UsageError, match=message) as caught:
        scheme_class("x")
    assert caught.value.remedy == "update or uninstall the package that provides it"


def test_a_scheme_must_say_its_bytes() -> None:
    """A third party's class without byte counts fails where they are asked for."""
    with pytest.raises(NotImplementedError, match="Scheme does not say its bytes"):
        Scheme(method="x").bytes_after(linear("fc", 4, 2))
