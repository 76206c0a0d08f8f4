"""Shards written tensor by tensor, and read back by the safetensors library."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.reader import INDEX_NAME, CheckpointReader
from rulequant.torch.checkpoint.writer import (
    ShardWriter,
    estimate_header,
    plan_shards,
    shard_names,
    write_index,
)

NAMES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8", torch.int64: "I64", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


def _reserve(tensors: Mapping[str, torch.Tensor]) -> int:
    return estimate_header((name, NAMES[each.dtype], each.shape) for name, each in tensors.items())


def _names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """One tensor of each kind that a quantized checkpoint has."""
    return {
        "model.layers.0.q_proj.weight": torch.randint(0, 255, (7, 1), dtype=torch.uint8),
        "model.layers.0.q_proj.weight.absmax": torch.randn(3),
        "model.norm.weight": torch.randn(5).to(torch.bfloat16),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "mask": torch.tensor([True, False, True]),
        "f8": torch.randn(2, 3).to(torch.float8_e4m3fn),
        "größe \\ \"'": torch.ones(1),
    }


def test_what_is_written_loads_with_safetensors(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Bytes, dtypes, shapes and metadata come back from both readers of the library, scalars included."""
    path = tmp_path / "model.safetensors"
    with ShardWriter(path, header_reserve=_reserve(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.add(name, NAMES[tensor.dtype], tensor.shape, _bytes(tensor))
        assert writer.names == tuple(tensors)
        assert writer.nbytes == sum(each.nbytes for each in tensors.values())
        assert _names(tmp_path) == ["model.safetensors.part"]
    assert _names(tmp_path) == ["model.safetensors"]
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert _bytes(loaded[name]) == _bytes(tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert _bytes(file.get_tensor("scalar")) == _bytes(tensors["scalar"])
        assert file.get_slice("f8").get_shape() == [2, 3]


def test_our_own_reader_reads_it(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The strict reader has no complaint about the writer."""
    with ShardWriter(tmp_path / "model.safetensors", header_reserve=_reserve(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.add(name, NAMES[tensor.dtype], tensor.shape, _bytes(tensor))
    with CheckpointReader.open(tmp_path) as reader:
        assert {name: bytes(reader.read(name)) for name in tensors} == {
            name: _bytes(each) for name, each in tensors.items()
        }


def test_a_large_tensor_comes_in_chunks(tmp_path: Path) -> None:
    """Chunks of any length, and of any buffer, make up one tensor."""
    data = os.urandom(40)
    path = tmp_path / "x.safetensors"
    with ShardWriter(path, header_reserve=1000) as writer:
        writer.begin("w", "F32", (2, 5))
        writer.append(data[:3])
        writer.append(bytearray(data[3:20]))
        writer.append(b"")
        writer.append(memoryview(data[20:]).cast("f"))
        writer.add("x", "U8", (2, 2), memoryview(b"1234").cast("B", (2, 2)))
        writer.add("y", "U8", (2, 0), memoryview(b""))
    assert _bytes(load_file(path)["w"]) == data
    assert load_file(path)["x"].tolist() == [[49, 50], [51, 52]]


def test_the_header_is_aligned_and_padded_with_spaces(tmp_path: Path) -> None:
    """The format asks that data begin at a multiple of eight, and allows spaces only."""
    path = tmp_path / "x.safetensors"
    with ShardWriter(path, header_reserve=501, metadata={"format": "pt", "by": "test"}) as writer:
        writer.add("w", "U8", (3,), b"abc")
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length == 504
    assert data[8 + length :] == b"abc"
    assert data[8 : 8 + length].rstrip(b" ").endswith(b"}")
    assert json.loads(data[8 : 8 + length])["__metadata__"] == {"format": "pt", "by": "test"}


def test_a_file_without_tensors_is_valid(tmp_path: Path) -> None:
    """Nothing to write is no reason to fail."""
    with ShardWriter(tmp_path / "x.safetensors", header_reserve=estimate_header([])):
        pass
    assert load_file(tmp_path / "x.safetensors") == {}


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A file depends on nothing but what is put in."""
    for name in ("a", "b"):
        with ShardWriter(tmp_path / name, header_reserve=_reserve(tensors)) as writer:
            for key, tensor in tensors.items():
                writer.add(key, NAMES[tensor.dtype], tensor.shape, _bytes(tensor))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def _too_small_a_reserve(writer: ShardWriter) -> None:
    for number in range(9):
        writer.add(f"name{number}", "U8", (1,), b"x")
    writer.close()


def _unfilled(writer: ShardWriter) -> None:
    writer.begin("w", "F32", (2,))
    writer.append(b"1234")
    writer.close()


def _unfilled_then_next(writer: ShardWriter) -> None:
    writer.begin("w", "F32", (2,))
    writer.begin("x", "F32", (2,))


def _overfilled(writer: ShardWriter) -> None:
    writer.begin("w", "F32", (1,))
    writer.append(b"12345")


def _twice(writer: ShardWriter) -> None:
    writer.add("w", "U8", (1,), b"x")
    writer.add("w", "U8", (1,), b"x")


def _wrong_size(writer: ShardWriter) -> None:
    writer.add("w", "F32", (2,), b"1234")


def _unknown_dtype(writer: ShardWriter) -> None:
    writer.add("w", "F4", (2,), b"1")


def _reserved_name(writer: ShardWriter) -> None:
    writer.add("__metadata__", "U8", (1,), b"1")


@pytest.mark.parametrize(
    ("misuse", "error", "problem"),
    [
        pytest.param(_too_small_a_reserve, RuntimeError, r"header needs \d+ bytes, 104 are reserved", id="reserve"),
        pytest.param(_unfilled, RuntimeError, "4 bytes of `w` were not written", id="unfilled"),
        pytest.param(_unfilled_then_next, RuntimeError, "8 bytes of `w` were not written", id="next too early"),
        pytest.param(_overfilled, ValueError, "5 bytes for a tensor that lacks 4", id="overfilled"),
        pytest.param(_twice, ValueError, "w: already in x.safetensors", id="twice"),
        pytest.param(_wrong_size, ValueError, r"w: F32 of shape \[2\] is not 4 bytes", id="wrong size"),
        pytest.param(_unknown_dtype, ValueError, "dtype must be one of BF16, .*, got 'F4'", id="dtype"),
        pytest.param(_reserved_name, ValueError, "__metadata__: already in", id="reserved name"),
    ],
)
def test_misuse_is_an_error_and_leaves_nothing(
    tmp_path: Path, misuse: object, error: type[Exception], problem: str
) -> None:
    """A caller's mistake is not a CheckpointError, and no file remains after it."""

    def run() -> None:
        with ShardWriter(tmp_path / "x.safetensors", header_reserve=100) as writer:
            misuse(writer)  # type: ignore[operator]

    with pytest.raises(error, match=problem):
        run()
    assert _names(tmp_path) == []


@pytest.mark.parametrize("reserve", [0, -8, 200_000_000])
def test_the_reserve_must_be_one_that_readers_take(tmp_path: Path, reserve: int) -> None:
    """The library refuses a header past 100 MB."""
    with pytest.raises(ValueError, match="header_reserve must be from 1 to 100,000,000"):
        ShardWriter(tmp_path / "x", header_reserve=reserve)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_shard_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    """Ctrl-C in the middle of a tensor removes the file."""

    def run() -> None:
        with ShardWriter(tmp_path / "x.safetensors", header_reserve=100) as writer:
            writer.begin("w", "U8", (9,))
            writer.append(b"1234")
            raise error

    with pytest.raises(error):
        run()
    assert _names(tmp_path) == []


def test_a_full_disk_stops_a_shard_with_a_message(tmp_path: Path) -> None:
    """A limit met in the middle of a tensor is told, and no file remains."""
    code = (
        "import resource, sys; from pathlib import Path;"
        "from rulequant.torch.checkpoint.writer import ShardWriter;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "writer = ShardWriter(Path(sys.argv[1]), header_reserve=100).__enter__();"
        "\ntry: writer.add('w', 'U8', (200_000,), bytes(200_000)); writer.close()"
        "\nexcept BaseException as error: writer.abort(); print(type(error).__name__, error)"
    )
    path = tmp_path / "model.safetensors"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert re.match(r"ResumableError .*model.safetensors: the file would be larger than is allowed", done.stdout)
    assert _names(tmp_path) == []


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    """The path is named."""
    with pytest.raises(CheckpointError, match=r"gone/x: cannot write: No such file or directory"):
        ShardWriter(tmp_path / "gone" / "x", header_reserve=100)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(
    entries=st.dictionaries(
        _TEXT.filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(["F32", "U8", "F8_E4M3FNUZ"]), st.lists(st.integers(0, 2**63 - 1), max_size=4)),
        max_size=8,
    ),
    metadata=st.none() | st.dictionaries(_TEXT, _TEXT, max_size=3),
)
def test_the_estimate_holds_any_header(
    entries: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None
) -> None:
    """Whatever the names and numbers are, the header fits into its estimate."""
    estimate = estimate_header(((name, dtype, shape) for name, (dtype, shape) in entries.items()), metadata=metadata)
    header: dict[str, object] = {"__metadata__": {"format": "pt"} if metadata is None else metadata}
    for name, (dtype, shape) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [2**63 - 1, 2**63 - 1]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(text) <= estimate
    assert estimate % 8 == 0


def test_the_estimate_allows_for_shapes_that_grow() -> None:
    """A tensor whose length is known only later (a JSON record) needs no second look."""
    small = estimate_header([("w", "U8", (1,))])
    assert small == estimate_header([("w", "U8", (10**18,))])


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        pytest.param([], 10, [], id="nothing"),
        pytest.param([("a", 4), ("b", 6)], 10, [["a", "b"]], id="exactly full"),
        pytest.param([("a", 4), ("b", 7)], 10, [["a"], ["b"]], id="one byte too many"),
        pytest.param([("a", 1), ("b", 99), ("c", 1)], 10, [["a"], ["b"], ["c"]], id="one larger than a shard"),
        pytest.param([("a", 99), ("b", 0), ("c", 1)], 10, [["a"], ["b", "c"]], id="empty tensor"),
    ],
)
def test_shards_hold_consecutive_tensors(sizes: list[tuple[str, int]], limit: int, expected: list[list[str]]) -> None:
    """Order is kept, and no shard exceeds the limit unless one tensor alone does."""
    assert plan_shards(sizes, limit) == expected


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_every_plan_of_shards_is_complete_and_tight(sizes: list[int], limit: int) -> None:
    """Every tensor is in one shard, in order; no shard is empty or could take the next tensor too."""
    named = {str(number): size for number, size in enumerate(sizes)}
    shards = plan_shards(named.items(), limit)
    assert [name for shard in shards for name in shard] == list(named)
    for shard in shards:
        assert len(shard) == 1 or sum(named[name] for name in shard) <= limit
    for shard, following in pairwise(shards):
        assert sum(named[name] for name in shard) + named[following[0]] > limit


def test_a_limit_must_be_positive() -> None:
    """Zero bytes hold no tensor."""
    with pytest.raises(ValueError, match="max_shard_bytes must be positive, got 0"):
        plan_shards([], 0)


@pytest.mark.parametrize(
    ("count", "names"),
    [
        pytest.param(0, [], id="none"),
        pytest.param(1, ["model.safetensors"], id="one"),
        pytest.param(2, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], id="two"),
    ],
)
def test_shards_have_the_names_that_loaders_expect(count: int, names: list[str]) -> None:
    """One file needs no number."""
    assert shard_names(count) == names


def test_the_index_is_what_transformers_writes(tmp_path: Path) -> None:
    """Same keys, sorted, same indentation; and our reader takes it."""
    shards = shard_names(2)
    for shard, name in zip(shards, ("layers.10.w", "layers.9.w"), strict=True):
        with ShardWriter(tmp_path / shard, header_reserve=200) as writer:
            writer.add(name, "U8", (4,), b"1234")
    weight_map = {"layers.9.w": shards[1], "layers.10.w": shards[0]}
    write_index(tmp_path, weight_map, total_size=8, total_parameters=16)
    expected = {"metadata": {"total_parameters": 16, "total_size": 8}, "weight_map": weight_map}
    text = json.dumps(expected, indent=2, sort_keys=True) + "\n"
    assert (tmp_path / INDEX_NAME).read_text() == text
    with CheckpointReader.open(tmp_path) as reader:
        assert list(reader.tensors) == ["layers.9.w", "layers.10.w"]
