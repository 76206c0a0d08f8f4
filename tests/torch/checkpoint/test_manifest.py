"""The manifest of an output: any byte that changes is found, and its file named."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint import manifest as manifest_module
from rulequant.torch.checkpoint.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    check_manifest,
    load_manifest,
    write_manifest,
)

SOURCE = {"model.safetensors": {"size": 12, "mtime_ns": 1_700_000_000_000_000_001}}
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "1_Pooling/config.json": b"{1}", "empty": b""}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A finished output."""
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    _write(tmp_path)
    return tmp_path


def _write(folder: Path, **options: dict[str, str]) -> Manifest:
    return write_manifest(
        folder, source=SOURCE, rules_sha256="a" * 64, plan_sha256="b" * 64, versions={"torch": "2.13.0"}, **options
    )


def test_a_manifest_lists_every_file_and_what_it_was_made_from(output: Path) -> None:
    """The data is plain JSON, versioned, with paths in the folder."""
    data = json.loads((output / MANIFEST_NAME).read_text())
    assert list(data) == [
        "format_version", "files", "source", "rules_sha256", "plan_sha256", "versions", "manifest_sha256",
    ]  # fmt: skip
    assert data["format_version"] == 1
    assert data["files"] == {
        name: {"size": len(FILES[name]), "sha256": hashlib.sha256(FILES[name]).hexdigest()} for name in sorted(FILES)
    }
    assert data["source"] == SOURCE
    assert data["versions"].keys() == {"rulequant", "torch"}


def test_a_manifest_comes_back_as_it_was_written(output: Path) -> None:
    """Reading is the inverse of writing, and a whole output has no problem."""
    (output / MANIFEST_NAME).unlink()
    written = _write(output)
    assert load_manifest(output) == written
    assert check_manifest(output) == []


def test_the_same_output_gives_the_same_bytes(output: Path) -> None:
    """No time and no path of a machine is in a manifest."""
    before = (output / MANIFEST_NAME).read_bytes()
    _write(output)
    assert (output / MANIFEST_NAME).read_bytes() == before
    assert str(output).encode() not in before


def test_hashes_that_are_known_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer may hash a shard while it writes the next."""
    (tmp_path / "x").write_bytes(b"data")
    monkeypatch.setattr(manifest_module, "digest_file", None)
    assert _write(tmp_path, known={"x": FileRecord(4, "c" * 64, {"a": "0" * 8})}).files == {
        "x": FileRecord(4, "c" * 64, {"a": "0" * 8})
    }


@pytest.mark.parametrize("name", [*FILES, MANIFEST_NAME])
def test_any_flipped_byte_is_found_and_the_file_named(output: Path, name: str) -> None:
    """Every bit position of every byte, in the manifest itself too."""
    path = output / name
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        problems = check_manifest(output)
        assert len(problems) == 1, position
        assert name in problems[0]
    path.write_bytes(data)
    assert check_manifest(output) == []


def _truncate(output: Path) -> None:
    os.truncate(output / "model.safetensors", 3)


def _grow(output: Path) -> None:
    (output / "model.safetensors").write_bytes(b"weights and more")


def _swap(output: Path) -> None:
    (output / "model.safetensors").write_bytes(b"WEIGHTS")


def _remove(output: Path) -> None:
    (output / "model.safetensors").unlink()


def _pipe(output: Path) -> None:
    _remove(output)
    os.mkfifo(output / "model.safetensors")


def _link(output: Path) -> None:
    _remove(output)
    (output / "model.safetensors").symlink_to("/dev/zero")


def _add(output: Path) -> None:
    (output / "adapter\x1b.safetensors").write_bytes(b"")


def _add_below(output: Path) -> None:
    (output / "1_Pooling" / "extra.py").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        pytest.param(_truncate, "model.safetensors: has 3 bytes, the manifest says 7", id="truncated"),
        pytest.param(_grow, "model.safetensors: has 16 bytes, the manifest says 7", id="grown"),
        pytest.param(_swap, "model.safetensors: sha256 is ", id="same size"),
        pytest.param(_remove, "model.safetensors: missing", id="missing"),
        pytest.param(_pipe, "model.safetensors: not a regular file but a pipe", id="pipe"),
        pytest.param(_link, "model.safetensors: leads out of the checkpoint's folder", id="link"),
        pytest.param(_add, "adapter\\x1b.safetensors: not in the manifest", id="added"),
        pytest.param(_add_below, "1_Pooling/extra.py: not in the manifest", id="added below"),
    ],
)
def test_each_problem_is_one_line_that_names_the_file(output: Path, damage: object, problem: str) -> None:
    """Nothing else is reported."""
    damage(output)  # type: ignore[operator]
    (found,) = check_manifest(output)
    assert problem in found
    assert found.isprintable()


def test_all_problems_are_reported(output: Path) -> None:
    """Not the first one only."""
    _swap(output)
    _add(output)
    (output / "config.json").unlink()
    assert len(check_manifest(output)) == 3


def test_hidden_files_may_be_added(output: Path) -> None:
    """Publishing and downloading add .gitattributes and .cache."""
    (output / ".gitattributes").write_bytes(b"x")
    (output / ".cache" / "huggingface").mkdir(parents=True)
    (output / ".cache" / "huggingface" / "x").write_bytes(b"x")
    assert check_manifest(output) == []


def test_an_output_in_the_hub_cache_is_checked(output: Path, tmp_path: Path) -> None:
    """A downloaded output consists of links into the blobs of its repository."""
    repo = tmp_path / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "rev"
    for number, name in enumerate([*FILES, MANIFEST_NAME]):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).rename(repo / "blobs" / str(number))
        (snapshot / name).symlink_to(repo / "blobs" / str(number))
    assert check_manifest(snapshot) == []


def test_a_folder_without_manifest_is_no_output(tmp_path: Path) -> None:
    """That is another answer than a damaged one."""
    for function in (load_manifest, check_manifest):
        with pytest.raises(CheckpointError, match=r"no rulequant-manifest.json, so this is not a finished output"):
            function(tmp_path)


def test_a_file_still_being_written_is_the_callers_mistake(tmp_path: Path) -> None:
    """A manifest is written over finished files only."""
    (tmp_path / "x.part").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"x.part was not finished"):
        _write(tmp_path)


def test_a_link_out_is_not_put_into_a_manifest(tmp_path: Path) -> None:
    """An output holds its own files."""
    (tmp_path / "x").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint's folder"):
        _write(tmp_path)


def _forge(**changes: object) -> bytes:
    data = {
        "format_version": 1, "files": {}, "source": {}, "rules_sha256": "", "plan_sha256": "", "versions": {},
        **changes,
    }  # fmt: skip
    data["manifest_sha256"] = hashlib.sha256(json.dumps(data, separators=(",", ":")).encode()).hexdigest()
    return (json.dumps(data, indent=2) + "\n").encode()


def _files(name: str, **record: object) -> dict[str, object]:
    return {name: {"size": 1, "sha256": "0" * 64, **record}}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(b"", "not valid JSON", id="empty"),
        pytest.param(b"[]", "not a JSON object", id="list"),
        pytest.param(b"{}", "not a manifest of rulequant", id="no keys"),
        pytest.param(_forge(format_version=2), "format_version 2, this rulequant reads 1", id="newer"),
        pytest.param(_forge(files=[]), "not a manifest of rulequant", id="files is a list"),
        pytest.param(_forge(files=_files("../x")), "not a path inside the folder: '../x'", id="parent"),
        pytest.param(_forge(files=_files("/etc/passwd")), "not a path inside the folder", id="absolute"),
        pytest.param(_forge(files=_files("a/./b")), "not a path inside the folder", id="dot"),
        pytest.param(_forge(files=_files("a\0")), "not a path inside the folder", id="nul"),
        pytest.param(_forge(files=_files("")), "not a path inside the folder", id="empty name"),
        pytest.param(_forge(files=_files("x", size="1")), "needs its size and sha256", id="size is text"),
        pytest.param(_forge(files=_files("x", size=True)), "needs its size and sha256", id="size is true"),
        pytest.param(_forge(files=_files("x", sha256="0")), "needs its size and sha256", id="short sha256"),
        pytest.param(_forge(files=_files("x", sha256=1)), "not a manifest", id="sha256 is a number"),
        pytest.param(_forge(format_version=0), "was changed after rulequant wrote it", id="older"),
        pytest.param(_forge(extra=1), "was changed after rulequant wrote it", id="unknown key"),
        pytest.param(_forge().replace(b" ", b"  ", 1), "was changed after rulequant wrote it", id="a space"),
    ],
)
def test_a_manifest_that_rulequant_did_not_write_is_refused(tmp_path: Path, text: bytes, problem: str) -> None:
    """It is named, and never leads out of its folder."""
    (tmp_path / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(CheckpointError, match=problem) as caught:
        load_manifest(tmp_path)
    assert MANIFEST_NAME in caught.value.message
    assert check_manifest(tmp_path) == [caught.value.message]


def test_an_untouched_forgery_of_the_format_is_read(tmp_path: Path) -> None:
    """The forger above is right where it changes nothing, so the cases test what they say."""
    (tmp_path / MANIFEST_NAME).write_bytes(_forge())
    assert load_manifest(tmp_path) == Manifest({}, {}, "", "", {})
