"""A checkpoint folder read by position: real files of transformers, and hostile ones."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint import reader as reader_module
from rulequant.torch.checkpoint.reader import INDEX_NAME, CheckpointReader

SHARDS = {
    "model-00001-of-00002.safetensors": {"b.10.w": torch.arange(6).reshape(2, 3), "b.2.w": torch.ones(3)},
    "model-00002-of-00002.safetensors": {"a": torch.tensor(1.5), "empty": torch.zeros(0, 3)},
}


def _write(
    folder: Path,
    shards: Mapping[str, Mapping[str, torch.Tensor]] = SHARDS,
    *,
    weight_map: Mapping[str, str] | None = None,
    total_size: int | None = None,
) -> Path:
    folder.mkdir(exist_ok=True)
    for shard, tensors in shards.items():
        save_file(dict(tensors), folder / shard, metadata={"format": "pt"})
    if weight_map is None:
        weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    metadata = {} if total_size is None else {"total_size": total_size}
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return folder


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_shards_are_read_as_one_list_of_tensors(tmp_path: Path) -> None:
    """Order is natural, bytes are those that were saved, and each tensor knows its shard."""
    with CheckpointReader.open(_write(tmp_path)) as reader:
        assert list(reader.tensors) == ["a", "b.2.w", "b.10.w", "empty"]
        assert reader.shards == tuple(SHARDS)
        assert reader.nbytes == 48 + 12 + 4
        for shard, tensors in SHARDS.items():
            assert dict(reader.metadata[shard]) == {"format": "pt"}
            for name, tensor in tensors.items():
                assert reader.tensors[name].shard == shard
                assert reader.tensors[name].shape == tuple(tensor.shape)
                assert reader.read(name) == _bytes(tensor)


def test_a_single_file_is_read(tmp_path: Path) -> None:
    """A folder without an index has one file."""
    weight = torch.randn(4, 4).to(torch.bfloat16)
    save_file({"w": weight}, tmp_path / "model.safetensors")
    with CheckpointReader.open(tmp_path) as reader:
        assert reader.tensors["w"].dtype == "BF16"
        assert reader.read("w") == _bytes(weight.view(torch.int16))


def test_slices_are_bytes_of_one_tensor(tmp_path: Path) -> None:
    """A slice is read into fresh memory or into a buffer that is given, and never past the tensor."""
    data = _bytes(SHARDS["model-00001-of-00002.safetensors"]["b.10.w"])
    with CheckpointReader.open(_write(tmp_path)) as reader:
        assert reader.read_slice("b.10.w", 8, 16) == data[8:24]
        assert reader.read_slice("b.10.w", 48, 0) == b""
        buffer = memoryview(bytearray(20))
        reader.read_into("b.10.w", 40, buffer[4:12])
        assert bytes(buffer) == bytes(4) + data[40:] + bytes(8)
        with pytest.raises(ValueError, match="bytes 40 to 49 of a tensor of 48"):
            reader.read_slice("b.10.w", 40, 9)
        with pytest.raises(ValueError, match="bytes -1 to 0 of a tensor"):
            reader.read_slice("b.10.w", -1, 1)


def test_an_unknown_tensor_is_told(tmp_path: Path) -> None:
    """A name that no shard has is a problem of the checkpoint, escaped."""
    with CheckpointReader.open(_write(tmp_path)) as reader, pytest.raises(CheckpointError, match=r"`x\\n`"):
        reader.read("x\n")


def test_fingerprint_and_hashes_cover_index_and_shards(tmp_path: Path) -> None:
    """Both name the files as the folder does."""
    folder = _write(tmp_path)
    with CheckpointReader.open(folder) as reader:
        fingerprint = reader.fingerprint()
        assert list(fingerprint) == [*SHARDS, INDEX_NAME]
        for name, stamp in fingerprint.items():
            state = (folder / name).stat()
            assert stamp == {"size": state.st_size, "mtime_ns": state.st_mtime_ns}
            assert reader.sha256(name) == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        with pytest.raises(ValueError, match="neither the index nor a shard"):
            reader.sha256("../secret")


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        pytest.param({}, False, id="the same"),
        pytest.param({"b.2.w": torch.tensor([1.0, 2.0, 1.0])}, True, id="a value"),
        pytest.param({"a": torch.tensor(-1.5)}, True, id="the only value"),
    ],
)
def test_samples_tell_weights_apart(changed: dict[str, torch.Tensor], differs: bool, tmp_path: Path) -> None:
    """Those of files of the same size; a copy with the same weights has the same."""
    found = []
    for name, changes in (("one", {}), ("two", changed)):
        shards = {
            file: tensors | {k: v for k, v in changes.items() if k in tensors} for file, tensors in SHARDS.items()
        }
        with CheckpointReader.open(_write(tmp_path / name, shards)) as reader:
            found.append(reader.content_sha256())
    assert (found[0] != found[1]) == differs


def test_samples_are_few_and_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file with many tensors so many at most, the first and one near the end among them."""
    monkeypatch.setattr(reader_module, "_SAMPLED_TENSORS", 4)
    read = []
    with CheckpointReader.open(
        _write(tmp_path / "x", {"one.safetensors": {f"{i}": torch.ones(40) for i in range(10)}})
    ) as reader:
        monkeypatch.setattr(reader, "read_slice", lambda *arguments: read.append(arguments) or b"")
        reader.content_sha256()
    assert read == [(f"{i}", 48, 64) for i in (0, 3, 6, 9)]


def test_the_hub_cache_is_read(tmp_path: Path) -> None:
    """Snapshot files that are links into the blobs of their repository are followed."""
    repo = tmp_path / "models--org--name"
    (repo / "snapshots").mkdir(parents=True)
    snapshot = _write(repo / "snapshots" / "rev")
    (repo / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(repo / "blobs" / f"hash{number}")
        path.symlink_to(f"../../blobs/hash{number}")
    with CheckpointReader.open(snapshot) as reader:
        assert reader.read("a") == _bytes(torch.tensor(1.5))


def _missing_shard(folder: Path) -> None:
    _write(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _unlisted(folder: Path) -> None:
    _write(folder, weight_map={"a": "model-00002-of-00002.safetensors", "empty": "model-00002-of-00002.safetensors"})
    save_file({"a": torch.tensor(1.5), "empty": torch.zeros(0, 3), "extra": torch.ones(1)},
              folder / "model-00002-of-00002.safetensors")  # fmt: skip


def _lacking(folder: Path) -> None:
    _write(folder, weight_map={**_whole_map(), "ghost": "model-00001-of-00002.safetensors"})


def _elsewhere(folder: Path) -> None:
    _write(folder, weight_map={**_whole_map(), "a": "model-00001-of-00002.safetensors"})


def _twice(folder: Path) -> None:
    _write(folder, {**SHARDS, "model-00002-of-00002.safetensors": {"b.2.w": torch.ones(3)}})


def _truncated(folder: Path) -> None:
    _write(folder)
    shard = folder / "model-00001-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)


def _fifo(folder: Path) -> None:
    _write(folder)
    shard = folder / "model-00001-of-00002.safetensors"
    shard.unlink()
    os.mkfifo(shard)


def _fifo_index(folder: Path) -> None:
    _write(folder)
    (folder / INDEX_NAME).unlink()
    os.mkfifo(folder / INDEX_NAME)


def _device(folder: Path) -> None:
    _write(folder)
    shard = folder / "model-00001-of-00002.safetensors"
    shard.unlink()
    shard.symlink_to("/dev/zero")


def _link_out(folder: Path) -> None:
    _write(folder)
    shard = folder / "model-00001-of-00002.safetensors"
    shard.rename(folder.parent / "outside.safetensors")
    shard.symlink_to("../outside.safetensors")


def _empty(folder: Path) -> None:
    folder.mkdir()
    save_file({}, folder / "model.safetensors")


def _huge_index(folder: Path) -> None:
    _write(folder)
    os.truncate(folder / INDEX_NAME, 10**9)


def _whole_map() -> dict[str, str]:
    return {name: shard for shard, tensors in SHARDS.items() for name in tensors}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        pytest.param(_missing_shard, "missing: model-00002-of-00002.safetensors", id="missing shard"),
        pytest.param(
            _unlisted,
            "index.json: does not list tensor `b.2.w` that model-00001|does not list tensor `extra` that model-00002",
            id="tensor not in the index",
        ),
        pytest.param(
            _lacking,
            "tensor `ghost` is said to be in model-00001-of-00002.safetensors, but no shard has it",
            id="tensor in no shard",
        ),
        pytest.param(
            _elsewhere,
            "tensor `a` is said to be in model-00001-of-.*, but it is in model-00002-of-00002.safetensors",
            id="tensor in another shard",
        ),
        pytest.param(
            _twice,
            "tensor `b.2.w` is in two shards, model-00001-of-00002.safetensors and model-00002-of",
            id="tensor in two shards",
        ),
        pytest.param(_truncated, "model-00001-.*: the download is incomplete: expected", id="truncated shard"),
        pytest.param(_fifo, "model-00001-.*: not a regular file but a pipe", id="shard is a fifo"),
        pytest.param(_fifo_index, "index.json: not a regular file but a pipe", id="index is a fifo"),
        pytest.param(_device, "model-00001-.*: leads out .* /dev/zero", id="shard is a device"),
        pytest.param(_link_out, "model-00001-.*: leads out .*outside.safetensors", id="shard is a link out"),
        pytest.param(_empty, "the checkpoint holds no tensor", id="no tensor"),
        pytest.param(_huge_index, "an index of 1,000,000,000 bytes, at most", id="huge index"),
    ],
)
def test_a_checkpoint_that_does_not_agree_is_refused(tmp_path: Path, damage: object, problem: str) -> None:
    """Each disagreement names the shard and the tensor, and leaves no file open."""
    before = _open_files()
    damage(tmp_path / "model")  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=problem):
        CheckpointReader.open(tmp_path / "model")
    assert _open_files() == before


@pytest.mark.parametrize(
    ("total_size", "fine"),
    [
        pytest.param(64, True, id="exact"),
        pytest.param(None, True, id="absent"),
        pytest.param(100, True, id="tied weights counted twice"),
        pytest.param(128, True, id="bytes of float32 for bfloat16"),
        pytest.param(32, True, id="bytes of bfloat16 for float32"),
        pytest.param(129, False, id="more than double"),
        pytest.param(31, False, id="less than half"),
        pytest.param(0, False, id="zero"),
        pytest.param(10**15, False, id="a petabyte"),
    ],
)
def test_an_index_may_not_lie_about_the_size(tmp_path: Path, total_size: int | None, fine: bool) -> None:
    """A factor of two either way is found in real indexes; more is a lie."""
    folder = _write(tmp_path, total_size=total_size)
    if fine:
        CheckpointReader.open(folder).close()
        return
    with pytest.raises(CheckpointError, match=rf"total_size says {total_size:,} bytes .* the shards hold 64") as caught:
        CheckpointReader.open(folder)
    assert "correct metadata.total_size" in str(caught.value)


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path: Path) -> None:
    """A read past the new end is an error, never zeros."""
    folder = _write(tmp_path)
    with CheckpointReader.open(folder) as reader:
        entry = reader.tensors["b.10.w"]
        os.truncate(folder / entry.shard, entry.start + 5)
        with pytest.raises(CheckpointError, match=r"model-00001-.*: ends at byte .*, and 43 more bytes"):
            reader.read("b.10.w")


def test_a_file_that_was_replaced_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that is opened again must be the one whose header was read."""
    monkeypatch.setattr(reader_module, "_MAX_OPEN_SHARDS", 1)
    folder = _write(tmp_path)
    with CheckpointReader.open(folder) as reader:
        save_file({"b.10.w": torch.zeros(9), "b.2.w": torch.zeros(3)}, folder / "model-00001-of-00002.safetensors")
        with pytest.raises(CheckpointError, match=r"model-00001-.*: the file changed while"):
            reader.read("b.2.w")
        with pytest.raises(CheckpointError, match=r"model-00001-.*: the file changed while"):
            reader.check_unchanged()


def test_an_untouched_checkpoint_is_unchanged(tmp_path: Path) -> None:
    """The check passes when nothing happened."""
    with CheckpointReader.open(_write(tmp_path)) as reader:
        reader.check_unchanged()


def test_threads_share_a_reader_with_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eviction never closes a file under a read, and the number of open files stays bounded."""
    monkeypatch.setattr(reader_module, "_MAX_OPEN_SHARDS", 3)
    shards = {f"s{i}.safetensors": {f"t.{i}": torch.full((50_000,), i)} for i in range(20)}
    before = _open_files()
    with CheckpointReader.open(_write(tmp_path, shards)) as reader:
        assert _open_files() - before <= 3

        def right(number: int) -> bool:
            return reader.read(f"t.{number % 20}") == _bytes(torch.full((1,), number % 20)) * 50_000

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(right, range(400)))
        reader.read("t.0")
        assert _open_files() - before <= 3
    assert _open_files() == before


def test_a_closed_reader_says_so(tmp_path: Path) -> None:
    """Reading after close is the caller's mistake; closing twice is none."""
    reader = CheckpointReader.open(_write(tmp_path))
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="the reader is closed"):
        reader.read("a")


def test_close_waits_for_no_read_and_leaks_no_file(tmp_path: Path) -> None:
    """A read in flight keeps its file until it ends."""
    before = _open_files()
    reader = CheckpointReader.open(_write(tmp_path))
    with reader._descriptor("model-00001-of-00002.safetensors") as fd:
        reader.close()
        assert os.fstat(fd).st_size
    assert _open_files() == before


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("manifest, reader, writer", ("torch", "numpy", "safetensors", "pydantic")),
        ("staging", ("torch", "numpy", "safetensors")),  # what it resumes is told by schemes, which are pydantic models
    ],
    ids=["bytes", "staging"],
)
def test_reading_needs_no_torch(modules: str, absent: tuple[str, ...]) -> None:
    """The modules of this folder that move bytes import neither torch nor safetensors."""
    code = (
        "import sys, types, pathlib, rulequant;"
        "parent = types.ModuleType('rulequant.torch');"
        "parent.__path__ = [str(pathlib.Path(p, 'torch')) for p in rulequant.__path__];"
        "sys.modules['rulequant.torch'] = parent;"
        "child = types.ModuleType('rulequant.torch.checkpoint');"
        "child.__path__ = [str(pathlib.Path(p, 'checkpoint')) for p in parent.__path__];"
        "sys.modules['rulequant.torch.checkpoint'] = child;"
        f"from rulequant.torch.checkpoint import {modules};"
        f"print([each for each in {absent} if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
