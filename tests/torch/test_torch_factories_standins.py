"""Encoded embeddings and convolutions: what they compute, bit by bit, and what a checkpoint holds of them."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from encoded import by_hand, same_bytes, uneven
from small_models import rules_with
from torch import nn

import rulequant.torch
from rulequant.torch.factories import NotFiniteError, factory_for

SCHEMES: dict[str, dict[str, Any]] = {
    "nf4": {"method": "bnb_4bit"},
    "nf4-double": {"method": "bnb_4bit", "double_quant": True},
    "fp4-256-double": {"method": "bnb_4bit", "quant_type": "fp4", "blocksize": 256, "double_quant": True},
    "nf4-4096": {"method": "bnb_4bit", "blocksize": 4096},
    "int8": {"method": "bnb_int8"},
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
ALL = pytest.mark.parametrize("scheme", SCHEMES)


def embedding(rows: int, columns: int, dtype: torch.dtype) -> nn.Embedding:
    """A table whose blocks differ much in scale, with a row of zeros."""
    table = nn.Embedding(rows, columns, padding_idx=0, dtype=dtype)
    table.weight = nn.Parameter(uneven((rows, columns), dtype))
    with torch.no_grad():
        table.weight[0] = 0
    return table


def quantized(module: nn.Module, scheme: str) -> tuple[Any, torch.Tensor, int]:
    """(layer, the weight that its state stands for, the bytes that the plan promised)."""
    model = nn.Sequential(module)
    plan = rulequant.torch.apply(model, rules_with(quantizable_types=["*"], schemes={"nf4": SCHEMES[scheme]}))
    state = {key: value for key, value in model[0].state_dict().items() if key != "bias"}
    kind: Any = "embedding" if isinstance(module, nn.Embedding) else "convolution"
    weight = factory_for(SCHEMES[scheme]["method"]).decode(state, kind)
    if "SCB" not in state:
        assert same_bytes(weight, by_hand(state))
    return model[0], weight, plan.summary["bytes_after"]


@DTYPES
@ALL
@pytest.mark.parametrize(
    "shape",
    [(1000, 64), (999, 100), (37, 33), (300, 512), (3, 5), (1, 1)],
    ids=["whole-blocks", "straddling", "odd", "large-rows", "tiny", "one-value"],
)
def test_rows_are_those_of_the_whole_table(shape: tuple[int, int], scheme: str, dtype: torch.dtype) -> None:
    """Every row, whether its blocks are its own or shared with its neighbours, as if the table were dequantized."""
    layer, weight, _ = quantized(embedding(*shape, dtype), scheme)
    ids = torch.arange(shape[0]).flip(0)
    assert same_bytes(layer(ids), nn.functional.embedding(ids, weight).to(dtype))
    ids = torch.randint(shape[0], (3, 17), dtype=torch.int32)
    assert same_bytes(layer(ids), nn.functional.embedding(ids, weight).to(dtype))
    assert not layer(torch.tensor(0)).any()
    assert layer(torch.empty((2, 0), dtype=torch.long)).shape == (2, 0, shape[1])


@ALL
def test_double_quantization_past_one_nested_block(scheme: str) -> None:
    """Where bitsandbytes' own Embedding4bit takes the scale of the first 256 blocks for all, each has its own."""
    table = embedding(2000, 64, torch.float32)
    layer, _, _ = quantized(copy.deepcopy(table), scheme)
    ids = torch.arange(1500, 2000)
    error = (layer(ids) - table(ids)).norm() / table(ids).norm()
    assert error < 0.15


def test_bitsandbytes_own_embedding_is_wrong_there() -> None:
    """The reason for layers of our own: theirs cannot be saved, and is off by far past one nested block."""
    table = embedding(2000, 64, torch.float32)
    stock = bnb.nn.Embedding4bit(2000, 64, quant_type="nf4")
    stock.weight = bnb.nn.Params4bit(table.weight.data, quant_type="nf4", compress_statistics=True)
    stock = stock.to("cpu")
    ids = torch.arange(1500, 2000)
    assert (stock(ids) - table(ids)).norm() / table(ids).norm() > 0.3
    with pytest.raises(NotImplementedError):
        stock.state_dict()


@DTYPES
@ALL
@pytest.mark.parametrize(
    ("channels", "settings"),
    [
        ((80, 64, 3), {"padding": 1, "stride": 2}),
        ((8, 16, 3), {"groups": 4, "padding": 1, "padding_mode": "reflect"}),
        ((1, 32, 10), {"bias": False, "padding": 3, "padding_mode": "circular"}),
        ((6, 9, 5), {"groups": 3, "dilation": 2, "padding": "same"}),
    ],
    ids=["whisper", "groups-reflect", "wav2vec2", "odd-same"],
)
def test_convolutions(channels: tuple[int, int, int], settings: Any, scheme: str, dtype: torch.dtype) -> None:
    """Stride, padding of every mode, dilation and groups are those of the class; the weight is the dequantized one."""
    plain = nn.Conv1d(*channels, **settings, dtype=dtype)
    layer, weight, _ = quantized(copy.deepcopy(plain), scheme)
    assert weight.shape == plain.weight.shape
    plain.weight = nn.Parameter(weight.to(dtype))
    states = torch.randn(2, channels[0], 50).to(dtype)
    assert same_bytes(layer(states), plain(states))


@ALL
def test_bytes_are_those_of_the_plan(scheme: str) -> None:
    """The payload of a layer's state, records aside, is what the plan promised."""
    for module in (embedding(99, 20, torch.bfloat16), nn.Conv1d(8, 16, 3, groups=4, dtype=torch.bfloat16)):
        layer, _, promised = quantized(module, scheme)
        assert sum(each.nbytes for key, each in layer.state_dict().items() if ".quant_state." not in key) == promised


@ALL
def test_ids_are_checked(scheme: str) -> None:
    """An id that the table does not have is an error, as it is for the plain one, and not a neighbour's row."""
    layer, _, _ = quantized(embedding(99, 20, torch.float32), scheme)
    with pytest.raises(IndexError, match="the ids are from 3 to 99, the embedding has 99 rows"):
        layer(torch.tensor([3, 99]))
    with pytest.raises(IndexError, match="the ids are from -1 to 3"):
        layer(torch.tensor([3, -1]))


@ALL
@pytest.mark.parametrize("columns", [64, 100], ids=["whole-blocks", "straddling"])
def test_the_table_is_never_dequantized_as_a_whole(columns: int, scheme: str) -> None:
    """A batch of a few ids decodes a few rows, each once."""
    taken: list[int] = []
    layer, _, _ = quantized(embedding(5000, columns, torch.float32), scheme)
    decode_rows = layer.decoded_rows
    layer.decoded = lambda: pytest.fail("the whole table")
    layer.decoded_rows = lambda rows: taken.append(len(rows)) or decode_rows(rows)
    layer(torch.tensor([[7, 4999, 7], [0, 7, 0]]))
    assert taken == [3]


@ALL
def test_not_finite_weights_are_refused(scheme: str) -> None:
    """The place of the first value that cannot be encoded is named, in the shape of the weight."""
    module = nn.Conv1d(8, 16, 3)
    with torch.no_grad():
        module.weight[3, 2, 1] = float("nan")
    with pytest.raises(NotFiniteError, match=r"`0\.weight`: the value at \[3, 2, 1\] is nan"):
        quantized(module, scheme)
