"""A run takes over what an interrupted one finished, if it is of the same making, and gives the same bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from apply_runs import RULES, configure, run
from apply_stops import Stop, contents, interrupt
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny

from rulequant.errors import CheckpointError, ResumableError
from rulequant.torch.checkpoint import journal as journal_module
from rulequant.torch.checkpoint import manifest as manifest_module
from rulequant.torch.checkpoint import staging as staging_module
from rulequant.torch.checkpoint import work as work_module
from rulequant.torch.checkpoint.checksums import Digest
from rulequant.torch.checkpoint.manifest import check_manifest
from rulequant.torch.factories import NotFiniteError

STAGING = ".out.rulequant-staging"
SHARD_BYTES = 30_000


class Tensors:
    """Progress that knows which tensors were made."""

    def __init__(self) -> None:
        self.total = 0
        self.names: list[str] = []

    def start(self, total_bytes: int, tensors: int) -> None:
        self.total = tensors

    def advance(self, tensor: str, nbytes: int) -> None:
        self.names.append(tensor)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model, in a folder beside which a run was interrupted after two of four shards."""
    folder = save_tiny("llama", tmp_path / "llama")
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", max_shard_bytes=SHARD_BYTES, progress=Stop(10, interrupt))
    return folder


def undisturbed(source: Path) -> dict[str, bytes]:
    """The files of a run that nothing stops."""
    run(source, source.parent / "undisturbed", max_shard_bytes=SHARD_BYTES)
    return contents(source.parent / "undisturbed")


def again(source: Path, **options: Any) -> tuple[Tensors, list[str]]:
    """The same run once more: the tensors that it made, and what it said."""
    tensors, notices = Tensors(), list[str]()
    options = {"max_shard_bytes": SHARD_BYTES, **options}
    run(source, source.parent / "out", progress=tensors, notice=notices.append, **options)
    return tensors, notices


def test_the_rest_is_made(source: Path) -> None:
    """Finished shards are read once, for their hash, and not made again; the output is that of an undisturbed run."""
    tensors, notices = again(source)
    assert notices == [f"checking 2 of 4 shards that an interrupted run left in {source.parent / STAGING}"]
    assert tensors.total == len(tensors.names)
    assert 0 < tensors.total < 21
    assert sorted(each.name for each in source.parent.iterdir()) == ["llama", "out"]
    assert contents(source.parent / "out") == undisturbed(source)


def test_several_interruptions(source: Path) -> None:
    """Each run adds to what is there."""
    with pytest.raises(KeyboardInterrupt, match="3 of 4 shards are kept"):
        run(source, source.parent / "out", max_shard_bytes=SHARD_BYTES, progress=Stop(11, interrupt))
    assert again(source)[1][0].startswith("checking 3 of 4 shards")
    assert contents(source.parent / "out") == undisturbed(source)


def test_a_changed_byte_is_found(source: Path) -> None:
    """That shard is said to be written again, and is."""
    shard = source.parent / STAGING / "checkpoint" / "model-00001-of-00004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    _, notices = again(source)
    assert notices[1:] == [f"written again, since the bytes are not those that were written: {shard.name}"]
    assert contents(source.parent / "out") == undisturbed(source)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        pytest.param({"restart": True}, "", id="--restart"),
        pytest.param(
            {"max_shard_bytes": 31_000}, ": it was made with another largest file (30,000 bytes, now 31,000)", id="size"
        ),
        pytest.param(
            {"container": "rulequant"},
            ": it was made with another plan and another container (bitsandbytes, now rulequant)",
            id="container",
        ),
        pytest.param(
            {"rules": RULES | {"schemes": {"it": {"method": "bnb_4bit", "quant_type": "fp4"}}}},
            ": it was made with another plan and other rules",
            id="rules",
        ),
    ],
)
def test_another_run_starts_over(source: Path, options: dict[str, Any], why: str) -> None:
    """What is there is removed, and the notice says what it was made with."""
    tensors, notices = again(source, **options)
    assert notices == [f"removing what an interrupted run left in {source.parent / STAGING}{why}"]
    assert tensors.total == 21
    assert check_manifest(source.parent / "out") == []


def test_another_source_starts_over(source: Path) -> None:
    """A file of the model that was touched, and a config that was edited."""
    os.utime(source / "model.safetensors", ns=(1, 1))
    configure(source, rope_theta=5)
    _, notices = again(source)
    assert notices[0].endswith(
        "it was made with another model.safetensors of the model and another config.json of the model"
    )


def test_other_weights_start_over_though_size_and_time_are_the_same(source: Path) -> None:
    """A store that gives all files one time holds another training of the model under the same name."""
    path = source / "model.safetensors"
    tensors, stamp = load_file(path), path.stat()
    save_file({name: each + 1 for name, each in tensors.items()}, path, {"format": "pt"})
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size
    _, notices = again(source)
    assert notices[0].endswith(f"left in {source.parent / STAGING}: it was made with other weights in the model")
    assert contents(source.parent / "out") == undisturbed(source)


def test_a_restored_copy_goes_on(source: Path) -> None:
    """The same files, copied elsewhere and back with their times, are the same source."""
    shutil.copytree(source, source.parent / "backup")
    shutil.rmtree(source)
    shutil.copytree(source.parent / "backup", source)
    shutil.rmtree(source.parent / "backup")
    assert again(source)[1][0].startswith("checking 2 of 4 shards")


def test_another_version_starts_over(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes may differ between versions of torch."""
    from rulequant.torch.checkpoint import job as job_module

    monkeypatch.setattr(job_module, "stock_versions", lambda _: {"torch": "9"})
    assert "another torch (2" in again(source)[1][0]


def test_a_folder_of_another_user_is_not_trusted(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anyone may have made a folder of that name in a place that all can write to."""
    user = os.geteuid()
    monkeypatch.setattr(staging_module.os, "geteuid", lambda: user + 1)
    assert again(source)[1][0].endswith(": it belongs to another user")


def test_a_recipe_that_cannot_be_read_starts_over(source: Path) -> None:
    """Nothing is known of the shards then."""
    (source.parent / STAGING / "recipe.json").write_text("{}")
    assert again(source)[1][0].endswith(": what it was making cannot be read")


def test_only_what_is_missing_needs_space(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards that are there count; where that does not help, they stay, and the message says so."""
    monkeypatch.setattr(staging_module, "free_bytes", lambda _: 1000)
    with pytest.raises(ResumableError, match="not enough space: needs") as raised:
        again(source)
    assert "\n  2 of 4 shards are kept in" in str(raised.value)
    needed = 16 << 20
    monkeypatch.setattr(staging_module, "free_bytes", lambda _: needed + 75_000)
    again(source)


def test_an_output_that_exists_keeps_what_is_there(source: Path) -> None:
    """A refusal before anything is done loses nothing."""
    (source.parent / "out").mkdir()
    with pytest.raises(CheckpointError, match="already exists"):
        again(source)
    (source.parent / "out").rmdir()
    assert again(source)[1][0].startswith("checking 2 of 4")


def test_an_interrupt_while_hashes_are_checked_keeps_all(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C then says the same as while shards are written."""

    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    real = journal_module.hash_file
    monkeypatch.setattr(journal_module, "hash_file", interrupted)
    with pytest.raises(KeyboardInterrupt, match="2 of 4 shards are kept"):
        again(source)
    monkeypatch.setattr(journal_module, "hash_file", real)
    assert again(source)[1][0].startswith("checking 2 of 4")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a defect")], ids=["memory", "defect"])
def test_what_nobody_foresaw_keeps_the_shards(source: Path, error: Exception) -> None:
    """Hours of work are not thrown away for it, and a notice says where they are."""
    notices: list[str] = []

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        run(
            source,
            source.parent / "out",
            max_shard_bytes=SHARD_BYTES,
            progress=Stop(11, fail),
            notice=notices.append,
        )
    assert notices[-1].startswith("3 of 4 shards are kept in")


def test_what_a_rerun_cannot_mend_leaves_nothing(source: Path) -> None:
    """A weight that is not finite, in the last shard: the plan has to change, and the shards would not fit."""

    def fail() -> None:
        raise NotFiniteError("holds NaN")

    with pytest.raises(NotFiniteError, match="holds NaN"):
        run(source, source.parent / "out", max_shard_bytes=SHARD_BYTES, progress=Stop(10, fail))
    assert [each.name for each in source.parent.iterdir()] == ["llama"]


def test_a_shard_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right after it was written; the manifest takes that hash, and it is the right one."""
    hashed: dict[str, list[str]] = {"shards": [], "manifest": []}
    hash_fd, digest_file = work_module.hash_fd, manifest_module.digest_file

    def of_shard(fd: int, path: Path) -> str:
        hashed["shards"].append(path.name)
        return hash_fd(fd, path)

    def of_manifest(path: Path, *, root: Path) -> Digest:
        hashed["manifest"].append(path.name)
        return digest_file(path, root=root)

    monkeypatch.setattr(work_module, "hash_fd", of_shard)
    monkeypatch.setattr(manifest_module, "digest_file", of_manifest)
    run(save_tiny("llama", tmp_path / "llama"), tmp_path / "out", max_shard_bytes=SHARD_BYTES)
    assert hashed["shards"] == [f"model-0000{number}-of-00004.safetensors" for number in range(1, 5)]
    assert not set(hashed["shards"]) & set(hashed["manifest"])
    monkeypatch.undo()
    assert check_manifest(tmp_path / "out") == []
    files = json.loads((tmp_path / "out" / "rulequant-manifest.json").read_text())["files"]
    assert {*hashed["shards"], *hashed["manifest"]} == set(files)
