"""Headers of safetensors files: what the library writes is read, and what contradicts itself is refused."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.header import (
    ITEM_SIZES,
    MAX_HEADER_BYTES,
    Header,
    TensorEntry,
    parse_header,
    read_header,
)

NAME = Path("model.safetensors")
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def _read(path: Path) -> Header:
    with path.open("rb") as file:
        return read_header(file.fileno(), path)


def _parse(header: object, *, payload: int = 8) -> Header:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return parse_header(text, file_size=8 + len(text) + payload, path=NAME)


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    """Names, dtypes, shapes and bytes are those that were saved, scalars and empty tensors too."""
    tensors = {
        "a.weight": torch.randn(3, 5).to(torch.bfloat16),
        "a.bias": torch.randn(5),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 4, dtype=torch.float16),
        "mask": torch.tensor([True, False]),
        "f8": torch.randn(4).to(torch.float8_e4m3fn),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    header, data = _read(path), path.read_bytes()
    assert dict(header.metadata) == {"format": "pt"}
    assert header.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        entry = header.tensors[name]
        assert entry.shape == tuple(tensor.shape)
        assert entry.numel == tensor.numel()
        assert entry.nbytes == tensor.numel() * tensor.element_size()
        assert data[entry.start : entry.end] == bytes(tensor.reshape(-1).view(torch.uint8).tolist())
        assert entry.shard == "model.safetensors"
    assert {name: each.dtype for name, each in header.tensors.items()} == {
        "a.weight": "BF16",
        "a.bias": "F32",
        "scalar": "I64",
        "empty": "F16",
        "mask": "BOOL",
        "f8": "F8_E4M3",
    }


def test_every_dtype_of_torch_has_its_item_size(tmp_path: Path) -> None:
    """The table agrees with the sizes that the library writes."""
    dtypes = [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.complex64,
        torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
    ]  # fmt: skip
    save_file({str(dtype): torch.empty(3, dtype=dtype) for dtype in dtypes}, tmp_path / NAME)
    header = _read(tmp_path / NAME)
    assert {each.dtype for each in header.tensors.values()} == set(ITEM_SIZES)


def test_tensors_come_in_the_order_of_their_bytes() -> None:
    """The order of the keys in the header says nothing."""
    header = _parse({"b": {**F32, "data_offsets": [8, 16]}, "a": F32}, payload=16)
    start = header.data_start
    assert list(header.tensors.values()) == [
        TensorEntry("a", "F32", (2,), start, start + 8, "model.safetensors"),
        TensorEntry("b", "F32", (2,), start + 8, start + 16, "model.safetensors"),
    ]


def test_a_header_padded_with_spaces_is_read() -> None:
    """The library pads to eight bytes, and so does the writer here."""
    assert list(_parse(json.dumps({"a": F32}).encode() + b" " * 100).tensors) == ["a"]


def test_a_file_without_tensors_is_read() -> None:
    """An empty file is no contradiction."""
    assert dict(_parse({"__metadata__": None}, payload=0).tensors) == {}


def _entry(**changes: Any) -> dict[str, Any]:
    return {"a": {**F32, **changes}}


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        pytest.param(b'[{"a": 1}]', "does not begin with `{`", id="a list"),
        pytest.param(b' {"a": 1}', "does not begin with `{`", id="leading space"),
        pytest.param(b'{"a": 1} x', "not valid JSON", id="text after it"),
        pytest.param(b'{"\xff": 1}', "not UTF-8", id="not utf-8"),
        pytest.param(b'{"a": {}, "a": {}}', "key `a` appears twice", id="duplicate tensor"),
        pytest.param(
            b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [2], "data_offsets": [0, 8]}}',
            "key `dtype` appears twice",
            id="duplicate dtype",
        ),
        pytest.param({"a": [1]}, "tensor `a`: it must have exactly dtype, shape and", id="entry is a list"),
        pytest.param({"a": {"dtype": "F32"}}, "must have exactly dtype, shape and", id="keys missing"),
        pytest.param(_entry(extra=1), "must have exactly dtype, shape and", id="unknown key"),
        pytest.param({"a": None}, "must have exactly dtype, shape and", id="entry is null"),
        pytest.param(_entry(dtype="F31"), "tensor `a`: unknown dtype 'F31'; known: BF16, BOOL", id="dtype"),
        pytest.param(_entry(dtype=["F32"]), r"unknown dtype \['F32'\]", id="dtype is a list"),
        pytest.param(_entry(dtype="F4"), "dtype F4 packs elements smaller than a byte", id="sub-byte"),
        pytest.param(_entry(dtype="F6_E2M3"), "F6_E2M3 packs elements smaller than a byte", id="six bits"),
        pytest.param(_entry(shape=2), "shape must be a list of whole numbers", id="shape is a number"),
        pytest.param(_entry(shape=[-2]), r"shape must be a list of whole numbers.*got \[-2\]", id="negative"),
        pytest.param(_entry(shape=[True, 2]), r"shape must be .*got \[True, 2\]", id="bool as int"),
        pytest.param(_entry(shape=[2.0]), r"shape must be .*got \[2.0\]", id="float as int"),
        pytest.param(_entry(shape=[2**63]), "shape must be .* 2.*63 - 1", id="past 63 bits"),
        pytest.param(_entry(shape=[10**40]), "larger than 64 bits hold", id="huge"),
        pytest.param(_entry(shape=[2**62, 2**62]), "more elements than 64 bits count", id="huge product"),
        pytest.param(_entry(shape=[3]), r"F32 of shape \[3\] needs 12 bytes, data_offsets give 8", id="size"),
        pytest.param(_entry(shape=[]), r"F32 of shape \[\] needs 4 bytes, data_offsets give 8", id="scalar"),
        pytest.param(_entry(shape=[0, 9]), "needs 0 bytes, data_offsets give 8", id="empty with bytes"),
        pytest.param(_entry(data_offsets=[0]), r"data_offsets must be \[start, end\], got \[0\]", id="one"),
        pytest.param(_entry(data_offsets=[0, 4, 8]), r"must be \[start, end\]", id="three offsets"),
        pytest.param(_entry(data_offsets=[8, 0]), r"must be \[start, end\], got \[8, 0\]", id="backwards"),
        pytest.param(_entry(data_offsets=[-8, 0]), "data_offsets must be a list of whole", id="negative offset"),
        pytest.param(_entry(data_offsets=None), "data_offsets must be a list of whole", id="no offsets"),
        pytest.param({"__metadata__": {"a": 1}}, "`__metadata__` must map names to strings", id="metadata"),
        pytest.param({"__metadata__": ["a"]}, "`__metadata__` must map names to strings", id="metadata list"),
        pytest.param({"a\x1b[2J": F32}, r"tensor `a\\x1b\[2J`: its name has control", id="name with an ansi escape"),
        pytest.param({"a\nb": F32}, r"tensor `a\\nb`: its name has control", id="name with a newline"),
        pytest.param({"a\0": F32}, r"tensor `a\\x00`: its name has control", id="name with nul"),
        pytest.param({"a\ud800": F32}, r"tensor `a\\ud800`: its name", id="name with a lone surrogate"),
        pytest.param(
            {"a": F32, "b": {**F32, "data_offsets": [4, 12]}},
            "tensor `b` overlaps tensor `a`: it starts 4 bytes too early",
            id="overlap",
        ),
        pytest.param({"a": F32, "b": F32}, "tensor `b` overlaps tensor `a`", id="same bytes twice"),
        pytest.param(
            {"a": F32, "b": {**F32, "data_offsets": [12, 20]}},
            "4 bytes between tensor `a` and tensor `b` belong to no tensor",
            id="gap",
        ),
        pytest.param(
            _entry(data_offsets=[4, 12]),
            "4 bytes between the header and tensor `a` belong to no tensor",
            id="gap at the front",
        ),
        pytest.param(_entry(data_offsets=[2**62, 2**62 + 8]), "belong to no tensor", id="far outside"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(header: object, problem: str) -> None:
    """Each contradiction is named, with the file and the tensor, and on one line."""
    with pytest.raises(CheckpointError, match=problem) as caught:
        _parse(header)
    assert caught.value.message.startswith("model.safetensors: ")
    assert caught.value.message.isprintable()
    assert caught.value.remedy


def test_a_truncated_file_says_how_much_is_missing() -> None:
    """An interrupted download is the likeliest cause, and is told as such."""
    with pytest.raises(CheckpointError, match=r"download is incomplete: expected 1,0\d\d bytes, the file has 5\d\d"):
        _parse({"a": {"dtype": "U8", "shape": [1000], "data_offsets": [0, 1000]}}, payload=500)


def test_bytes_after_the_last_tensor_are_refused() -> None:
    """Nothing may hide behind the tensors."""
    with pytest.raises(CheckpointError, match="3 bytes after tensor `a` belong to no tensor"):
        _parse({"a": F32}, payload=11)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"", "0 bytes, too few", id="empty"),
        pytest.param(b"1234567", "7 bytes, too few", id="seven bytes"),
        pytest.param(struct.pack("<Q", MAX_HEADER_BYTES + 1), "at most 100,000,000 are allowed", id="too long"),
        pytest.param(b"<!DOCTYPE html><html>", "so this is not a safetensors file", id="a web page"),
        pytest.param(b"PK\x03\x04" + bytes(100), "does not begin with|is incomplete|not a safet", id="a zip"),
        pytest.param(struct.pack("<Q", 50) + b"{", "at least 58 bytes .*the file has 9", id="header cut short"),
        pytest.param(struct.pack("<Q", 0), "does not begin with `{`", id="no header"),
        pytest.param(
            b"version https://git-lfs.example/spec/v1\noid sha256:0\n",
            "a Git LFS pointer",
            id="git lfs pointer",
        ),
    ],
)
def test_what_is_no_safetensors_file_is_told(tmp_path: Path, content: bytes, problem: str) -> None:
    """A file of another kind, or cut short in its header, gets a message of its own."""
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        _read(tmp_path / NAME)


def test_a_header_that_claims_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    """A sparse file is no way to make the reader allocate."""
    path = tmp_path / NAME
    path.write_bytes(struct.pack("<Q", 2**40))
    os.truncate(path, 2**41)
    with pytest.raises(CheckpointError, match="claims a header of 1,099,511,627,776 bytes"):
        _read(path)


def test_a_header_of_millions_of_entries_is_refused_before_it_is_parsed() -> None:
    """A header within the limit of bytes may still blow up a hundredfold in memory."""
    text = b'{"a":' + b"{" * 600_000
    with pytest.raises(CheckpointError, match="names more than 500,000 tensors"):
        _parse(text)


def test_every_truncation_of_a_file_is_noticed(tmp_path: Path) -> None:
    """No prefix of a file passes for the file."""
    path = tmp_path / NAME
    save_file({"a": torch.arange(4), "b": torch.ones(2, 2)}, path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            _read(path)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16", "F4"]) | _VALUES,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | _VALUES,
        "data_offsets": st.lists(st.integers(-1, 16), min_size=2, max_size=2) | _VALUES,
    }
)


@given(
    st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), _ENTRIES | _VALUES, max_size=4),
    st.binary(),
)
def test_any_header_is_read_or_refused(header: dict[str, Any], tail: bytes) -> None:
    """Whatever a header says, the answer is entries that fit the file or a CheckpointError."""
    text = json.dumps(header).encode() + tail
    size = 8 + len(text) + 16
    try:
        found = parse_header(text, file_size=size, path=NAME)
    except CheckpointError:
        return
    for entry in found.tensors.values():
        assert found.data_start <= entry.start <= entry.end <= size
        assert entry.nbytes == entry.numel * ITEM_SIZES[entry.dtype]
