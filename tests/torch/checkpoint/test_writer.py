"""Headers, names and sizes of the files of an output, and the index over them."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from rulequant.torch.checkpoint.reader import INDEX_NAME, CheckpointReader
from rulequant.torch.checkpoint.writer import estimate_header, header_bytes, plan_shards, shard_names, write_index


def test_the_header_is_aligned_and_padded_with_spaces() -> None:
    """The format asks that data begin at a multiple of eight, and allows spaces only."""
    entries = {"größe": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}
    reserve = estimate_header([("größe", "U8", (3,))])
    data = header_bytes(entries, reserve)
    (length,) = struct.unpack("<Q", data[:8])
    assert length == reserve == len(data) - 8
    assert length % 8 == 0
    assert data.rstrip(b" ").endswith(b"}")
    assert json.loads(data[8:]) == {"__metadata__": {"format": "pt"}, **entries}


def test_a_reserve_that_is_too_small_is_an_error() -> None:
    """A caller's mistake, told before anything is written."""
    with pytest.raises(RuntimeError, match=r"the header needs \d+ bytes, 8 are reserved"):
        header_bytes({"w": {}}, 8)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(
    st.dictionaries(
        _TEXT.filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(["F32", "U8", "F8_E4M3FNUZ"]), st.lists(st.integers(0, 2**63 - 1), max_size=4)),
        max_size=8,
    )
)
def test_the_estimate_holds_any_header(entries: dict[str, tuple[str, list[int]]]) -> None:
    """Whatever the names and numbers are, the header fits into its estimate."""
    estimate = estimate_header((name, dtype, shape) for name, (dtype, shape) in entries.items())
    largest = [2**63 - 1, 2**63 - 1]
    header_bytes(
        {name: {"dtype": dtype, "shape": shape, "data_offsets": largest} for name, (dtype, shape) in entries.items()},
        estimate,
    )
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
        save_file({name: torch.tensor([1, 2, 3, 4], dtype=torch.uint8)}, tmp_path / shard, {"format": "pt"})
    weight_map = {"layers.9.w": shards[1], "layers.10.w": shards[0]}
    write_index(tmp_path, weight_map, total_size=8, total_parameters=16)
    expected = {"metadata": {"total_parameters": 16, "total_size": 8}, "weight_map": weight_map}
    text = json.dumps(expected, indent=2, sort_keys=True) + "\n"
    assert (tmp_path / INDEX_NAME).read_text() == text
    with CheckpointReader.open(tmp_path) as reader:
        assert list(reader.tensors) == ["layers.9.w", "layers.10.w"]
