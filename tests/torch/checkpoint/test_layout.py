"""Which files of a folder are the checkpoint, and an index that does not agree with its shards."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.layout import (
    INDEX_NAME,
    Index,
    Layout,
    find_layout,
    natural_key,
    parse_index,
)


def _no_index() -> bytes:
    raise AssertionError("there is no index to read")


def _folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def _index(weight_map: object, **metadata: object) -> bytes:
    return json.dumps({"metadata": metadata, "weight_map": weight_map}).encode()


def test_names_are_ordered_as_a_reader_counts() -> None:
    """Numbers compare as numbers, inside a dotted part too, and equal ones by their text."""
    expected = [
        "embed.weight",
        "layer2.w",
        "layer10.w",
        "layers.0.a.weight",
        "layers.0.a.weight.absmax",
        "layers.02.a.weight",
        "layers.2.a.weight",
        "layers.10.a.weight",
        "layers." + "9" * 5000,
        "norm",
    ]
    shuffled = random.Random(0).sample(expected, len(expected))
    assert sorted(shuffled, key=natural_key) == expected


def test_a_single_file_needs_no_index(tmp_path: Path) -> None:
    """The common case of a small model."""
    folder = _folder(tmp_path, "config.json", "model.safetensors", "pytorch_model.bin")
    assert find_layout(folder, _no_index) == Layout(("model.safetensors",), None)


def test_an_index_names_the_shards_in_natural_order(tmp_path: Path) -> None:
    """Files that the index does not name play no part."""
    folder = _folder(tmp_path, INDEX_NAME, "a-10.safetensors", "a-2.safetensors", "consolidated.safetensors")
    weight_map = {"x": "a-10.safetensors", "y": "a-2.safetensors", "z": "a-2.safetensors"}
    layout = find_layout(folder, lambda: _index(weight_map, total_size=8))
    assert layout == Layout(("a-2.safetensors", "a-10.safetensors"), Index(weight_map, 8))


def test_an_index_over_the_single_file_is_fine(tmp_path: Path) -> None:
    """An index may name model.safetensors itself."""
    folder = _folder(tmp_path, INDEX_NAME, "model.safetensors")
    layout = find_layout(folder, lambda: _index({"x": "model.safetensors"}))
    assert layout.shards == ("model.safetensors",)


@pytest.mark.parametrize(
    ("names", "problem", "remedy"),
    [
        pytest.param([], "no weights: .* among no files at all", "safetensors format", id="nothing"),
        pytest.param(["config.json", "model.gguf"], "no weights: .*config.json, model.gguf", "safetensors", id="gguf"),
        pytest.param([f"{i}.txt" for i in range(9)], "4.txt and 4 more", "safetensors", id="many files"),
        pytest.param(["pytorch_model.bin"], "only pickled weights.*pytorch_model.bin", "convert", id="bin"),
        pytest.param(["model.pt", "x.pth"], "only pickled weights.*model.pt, x.pth", "convert", id="pt"),
        pytest.param(
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "model.safetensors.index.json is missing, but its shards are there: model-00001",
            "download",
            id="shards without index",
        ),
        pytest.param(
            ["model.safetensors", "model-00001-of-00002.safetensors"],
            "both model.safetensors and shards .*model-00001-of-00002.safetensors",
            "of its own",
            id="single file beside shards",
        ),
        pytest.param(["a\x1b[0m.gguf"], r"a\\x1b\[0m.gguf", "safetensors", id="escaped name"),
    ],
)
def test_a_folder_without_one_clear_checkpoint_is_refused(
    tmp_path: Path, names: list[str], problem: str, remedy: str
) -> None:
    """The message lists what is there, and says what to do."""
    with pytest.raises(CheckpointError, match=problem) as caught:
        find_layout(_folder(tmp_path, *names), _no_index)
    assert remedy in (caught.value.remedy or "")


def test_a_stale_single_file_beside_an_index_is_refused(tmp_path: Path) -> None:
    """Some loaders take the single file, others the index: rulequant takes neither."""
    folder = _folder(tmp_path, INDEX_NAME, "model.safetensors", "a.safetensors")
    with pytest.raises(CheckpointError, match=r"both model.safetensors.index.json and model.safetensors,"):
        find_layout(folder, lambda: _index({"x": "a.safetensors"}))


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    """One message lists what to download, links of the Hub cache without their blob included."""
    folder = _folder(tmp_path, INDEX_NAME, "a-1.safetensors")
    (folder / "a-3.safetensors").symlink_to("../../blobs/gone")
    weight_map = {str(i): f"a-{i}.safetensors" for i in (1, 2, 3)}
    with pytest.raises(CheckpointError, match=r"files that are missing: a-2.safetensors, a-3.safetensors\n") as caught:
        find_layout(folder, lambda: _index(weight_map))
    assert "download the checkpoint again" in str(caught.value)


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    """A wrong path and a file in its place have their messages."""
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder"):
        find_layout(tmp_path / "nowhere", _no_index)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="file: not a folder"):
        find_layout(tmp_path / "file", _no_index)


@pytest.mark.parametrize(
    "shard",
    [
        pytest.param("../x.safetensors", id="parent folder"),
        pytest.param("/etc/x.safetensors", id="absolute"),
        pytest.param("sub/x.safetensors", id="sub-folder"),
        pytest.param("..\\x.safetensors", id="backslash"),
        pytest.param("x\0.safetensors", id="nul"),
        pytest.param("x\x1b[1m.safetensors", id="ansi escape"),
        pytest.param("\ud800.safetensors", id="lone surrogate"),
        pytest.param("..", id="dots"),
        pytest.param("", id="empty"),
        pytest.param("pytorch_model.bin", id="pickle"),
        pytest.param("x" * 250 + ".safetensors", id="too long"),
        pytest.param(1, id="number"),
        pytest.param(None, id="null"),
        pytest.param(["x.safetensors"], id="list"),
    ],
)
def test_only_plain_names_of_shards_are_taken(shard: Any) -> None:
    """An index must not lead out of its folder, nor into the terminal."""
    with pytest.raises(CheckpointError, match=r"tensor `a.b` is said to be in .*; only the plain name") as caught:
        parse_index(_index({"a.b": shard}), Path(INDEX_NAME))
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(b"", "not valid JSON", id="empty"),
        pytest.param(b"[]", "must have a `weight_map`", id="list"),
        pytest.param(b"{}", "must have a `weight_map`", id="no weight_map"),
        pytest.param(b'{"weight_map": {}}', "must have a `weight_map`", id="empty weight_map"),
        pytest.param(b'{"weight_map": ["a"]}', "must have a `weight_map`", id="weight_map is a list"),
        pytest.param(
            b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "key `a` appears twice", id="twice"
        ),
        pytest.param(b'{"metadata": 1, "weight_map": {"a": "x.safetensors"}}', "`metadata` must be", id="metadata"),
    ],
)
def test_an_index_that_is_none_is_refused(text: bytes, problem: str) -> None:
    """The index is named in the message."""
    with pytest.raises(CheckpointError, match=problem) as caught:
        parse_index(text, Path(INDEX_NAME))
    assert caught.value.message.startswith(INDEX_NAME)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param(12, 12, id="whole"),
        pytest.param(1.3e10, 13_000_000_000, id="float"),
        pytest.param(None, None, id="null"),
    ],
)
def test_total_size_is_read_as_writers_leave_it(size: object, expected: int | None) -> None:
    """Some writers leave a float, or nothing."""
    assert parse_index(_index({"a": "x.safetensors"}, total_size=size), Path()).total_size == expected


@pytest.mark.parametrize("size", [pytest.param(each, id=repr(each)) for each in (-1, True, "12", 1.5, [12], 1e400)])
def test_total_size_must_be_a_number_of_bytes(size: object) -> None:
    """Anything else is refused by name."""
    text = _index({"a": "x.safetensors"}, total_size=size).replace(b"Infinity", b"1e400")
    with pytest.raises(CheckpointError, match=r"metadata.total_size must be a number of bytes"):
        parse_index(text, Path(INDEX_NAME))
