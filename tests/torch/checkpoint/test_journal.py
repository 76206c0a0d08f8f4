"""Finished shards are written down one by one, and only those whose bytes are still the same are taken over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rulequant.errors import ResumableError
from rulequant.torch.checkpoint.journal import Journal
from rulequant.torch.checkpoint.recipe import Recipe
from rulequant.torch.checkpoint.shards import ShardResult

RECIPE = Recipe(
    plan_sha256="a" * 64,
    rules_sha256="b" * 64,
    source={"model.safetensors": {"size": 12, "mtime_ns": 1_700_000_000_000_000_001}},
    tensors_sha256="c" * 64,
    content_sha256="f" * 64,
    config_sha256="d" * 64,
    container="bitsandbytes",
    mean_threads=2,
    max_shard_bytes=1000,
    layout_sha256="e" * 64,
    versions={"rulequant": "1", "torch": "2"},
)
FILES = {"one": b"first", "two": b"second"}


def _result(name: str) -> ShardResult:
    data = FILES[name]
    weight, sha256 = f"{name}.weight", hashlib.sha256(data).hexdigest()
    return ShardResult(name, {weight: len(data)}, len(data), sha256, {weight: "0" * 8}, {name: [0.5, 2.0, 64]})


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Of two finished shards, in a folder in which a run was interrupted."""
    (tmp_path / "files").mkdir()
    journal = Journal(tmp_path, tmp_path / "files")
    journal.begin(RECIPE)
    for name, data in FILES.items():
        (tmp_path / "files" / name).write_bytes(data)
        journal.add(_result(name))
    return Journal(tmp_path, tmp_path / "files")


def test_what_was_written_comes_back(journal: Journal) -> None:
    """The recipe, and each shard with the sizes of its tensors."""
    assert RECIPE.differences(journal.found() or {}) == []
    assert journal.take() == {name: _result(name) for name in FILES}
    assert journal.names == ["one", "two"]


def test_other_files_go(tmp_path: Path, journal: Journal) -> None:
    """Half-written files, folders, records of files that are gone; a link is removed, and what it leads to stays."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "files" / "three.part").write_bytes(b"half")
    (tmp_path / "files" / "sub").mkdir()
    (tmp_path / "files" / "sub" / "x").write_bytes(b"")
    (tmp_path / "files" / "link").symlink_to(tmp_path / "victim")
    (tmp_path / "shards" / "four.json.part").write_bytes(b"half")
    (tmp_path / "files" / "two").unlink()
    assert list(journal.take()) == ["one"]
    assert [each.name for each in (tmp_path / "files").iterdir()] == ["one"]
    assert [each.name for each in (tmp_path / "shards").iterdir()] == ["one.json"]
    assert (tmp_path / "victim").read_text() == "precious"


def _flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_flip, id="a byte"),
        pytest.param(_cut, id="its end"),
        pytest.param(_link, id="a link to itself"),
        pytest.param(_folder, id="a folder"),
        pytest.param(Path.unlink, id="gone"),
    ],
)
def test_a_shard_that_changed_is_not_taken(tmp_path: Path, journal: Journal, change: Callable[[Path], None]) -> None:
    """Whatever became of it: it goes, with its record, and the other is taken."""
    change(tmp_path / "files" / "two")
    assert list(journal.take()) == ["one"]
    assert [each.name for each in (tmp_path / "files").iterdir()] == ["one"]
    assert journal.names == ["one"]


def _other_size(path: Path) -> None:
    path.write_text(path.read_text().replace('"two.weight": 6', '"two.weight": 7'))


def _other_fields(path: Path) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"more": 1}))


def _renamed(path: Path) -> None:
    path.write_bytes(path.with_name("one.json").read_bytes())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_flip, id="a byte"),
        pytest.param(_cut, id="its end"),
        pytest.param(_other_size, id="a number"),
        pytest.param(_other_fields, id="a field"),
        pytest.param(_renamed, id="that of another shard"),
        pytest.param(lambda path: path.write_bytes(b"\xff"), id="no text"),
        pytest.param(lambda path: path.write_bytes(b"[]"), id="no mapping"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    ],
)
def test_a_record_that_changed_is_not_believed(
    tmp_path: Path, journal: Journal, change: Callable[[Path], None]
) -> None:
    """The shard is written again."""
    change(tmp_path / "shards" / "two.json")
    assert list(journal.take()) == ["one"]


def test_a_record_of_other_fields_is_not_believed(tmp_path: Path, journal: Journal) -> None:
    """One that another version sealed, whose records say other things."""
    from rulequant.torch.checkpoint.sealed import seal

    (tmp_path / "shards" / "two.json").write_bytes(seal({"name": "two", "hash": "x"}, "sha256_of_record"))
    assert list(journal.take()) == ["one"]


def test_a_recipe_that_changed_is_none(tmp_path: Path, journal: Journal) -> None:
    """No shard can then be said to fit."""
    path = tmp_path / "recipe.json"
    path.write_text(path.read_text().replace("bitsandbytes", "rulequant"))
    assert journal.found() is None


def test_removed(tmp_path: Path, journal: Journal) -> None:
    """Nothing is known any more, and the files are another's business."""
    journal.remove()
    assert journal.found() is None
    assert journal.names == []
    assert [each.name for each in tmp_path.iterdir()] == ["files"]
    journal.remove()


def test_records_behind_a_link_are_none(tmp_path: Path, journal: Journal) -> None:
    """A link in their place must not aim the removal at another folder."""
    (tmp_path / "shards").rename(tmp_path / "victim")
    (tmp_path / "shards").symlink_to("victim")
    assert journal.names == []
    journal.remove()
    assert sorted(each.name for each in (tmp_path / "victim").iterdir()) == ["one.json", "two.json"]
    assert not (tmp_path / "shards").is_symlink()


def test_a_full_disk_is_told(tmp_path: Path, journal: Journal) -> None:
    """A record that cannot be written is an error, and no half of it stays."""
    (tmp_path / "shards" / "two.json").unlink()
    (tmp_path / "shards" / "two.json").mkdir()
    with pytest.raises(ResumableError, match=r"two\.json: cannot write"):
        journal.add(_result("two"))
    assert sorted(each.name for each in (tmp_path / "shards").iterdir()) == ["one.json", "two.json"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({}, [], id="the same"),
        pytest.param({"plan_sha256": "0"}, ["another plan"], id="plan"),
        pytest.param({"plan_sha256": "0", "layout_sha256": "1"}, ["another plan"], id="plan, and with it the layout"),
        pytest.param({"layout_sha256": "1"}, ["another layout of the files"], id="layout alone"),
        pytest.param({"max_shard_bytes": 2000}, ["another largest file (1,000 bytes, now 2,000)"], id="size of shards"),
        pytest.param({"container": "rulequant"}, ["another container (bitsandbytes, now rulequant)"], id="container"),
        pytest.param(
            {"versions": {"rulequant": "1", "torch": "3"}}, ["another torch (2, now 3)"], id="version of torch"
        ),
        pytest.param({"content_sha256": "0"}, ["other weights in the model"], id="weights alone"),
        pytest.param(
            {"content_sha256": "0", "tensors_sha256": "0"}, ["other tensors in the model"], id="weights and tensors"
        ),
        pytest.param({"encoding": 2}, ["another version of rulequant"], id="encoding"),
        pytest.param(
            {"source": {"model.safetensors": {"size": 12, "mtime_ns": 3}}},
            ["another model.safetensors of the model"],
            id="time of change of the source",
        ),
        pytest.param(
            {"source": {"a": {"size": 1, "mtime_ns": 3}, "model.safetensors": {"size": 13, "mtime_ns": 3}}},
            ["another a and 1 more of the model"],
            id="files of the source",
        ),
    ],
)
def test_what_is_different_is_told(journal: Journal, changes: dict[str, object], words: list[str]) -> None:
    """In words, the old before the new."""
    assert replace(RECIPE, **changes).differences(journal.found() or {}) == words  # type: ignore[arg-type]


def test_a_recipe_of_another_version(journal: Journal) -> None:
    """A key that it lacks is a difference too."""
    found = dict(journal.found() or {})
    del found["container"]
    assert RECIPE.differences(found) == ["another version of rulequant"]
    assert RECIPE.differences({}) != []
