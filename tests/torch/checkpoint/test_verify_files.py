"""Any flipped byte of any file of an output is found, the file named, and where it lies in a tensor, the tensor."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from apply_runs import RULES, files_of, run, save_with_extras
from verify_runs import codes, flip, verify

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.manifest import MANIFEST_NAME, load_manifest
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.verify.files import check_files

MANIFEST = MANIFEST_NAME


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output in several shards, with double quantization; only read."""
    folder = tmp_path_factory.mktemp("verify")
    rules = RULES | {"schemes": {"it": {"method": "bnb_4bit", "double_quant": True}}}
    run(save_with_extras(folder / "llama"), folder / "out", rules, max_shard_bytes=60_000)
    return folder / "out"


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def _positions(path: Path) -> Iterator[int]:
    """The first and the last byte, and some between."""
    size = path.stat().st_size
    yield from {0, 1, 8, size // 3, size // 2, size - 2, size - 1} & set(range(size))


def test_a_whole_output_has_no_problem(made: Path) -> None:
    """Every check is made, and none finds anything."""
    found = verify(made)
    assert found.ok
    assert found.diagnostics == []
    assert found.files == len(files_of(made)) - 1
    assert found.file_bytes == sum((made / each).stat().st_size for each in files_of(made) if each != MANIFEST)
    assert found.shards > 2
    assert found.container == "bitsandbytes"
    assert found.plan is not None
    assert found.payload_bytes == found.plan.summary["bytes_after"]


def test_every_flipped_byte_is_found_and_its_file_named(output: Path) -> None:
    """In shards, index, config, records and side files, one file at a time."""
    manifest = load_manifest(output)
    for name in manifest.files:
        before = (output / name).read_bytes()
        for position in _positions(output / name):
            flip(output / name, position)
            (finding,) = check_files(output, manifest)
            assert (finding.code, finding.value) == ("RQ530", name), position
            assert name in finding.message
            (output / name).write_bytes(before)
    assert check_files(output, manifest) == []


SMALL = ["config.json", "model.safetensors.index.json", "rulequant-plan.json", "rulequant-rules.yaml", "tokenizer.json"]


@pytest.mark.parametrize("name", [*SMALL, "1_Pooling/config.json", MANIFEST])
def test_what_depends_on_a_damaged_file_does_not_hide_it(name: str, output: Path) -> None:
    """The whole run names the file too, whatever the later checks come across."""
    for position in (0, (output / name).stat().st_size // 2):
        flip(output / name, position)
        found = verify(output)
        assert name in {each.value for each in found.diagnostics if each.code == "RQ530"}
        flip(output / name, position)
    assert verify(output, quick=True).ok


def test_a_flipped_byte_of_a_tensor_names_the_tensor(output: Path) -> None:
    """First, middle and last byte of every tensor, scalars and records among them."""
    manifest = load_manifest(output)
    with CheckpointReader.open(output) as reader:
        entries = list(reader.tensors.values())
    assert len(entries) > 80
    for entry in entries:
        for position in {entry.start, (entry.start + entry.end) // 2, entry.end - 1}:
            flip(output / entry.shard, position)
            (finding,) = check_files(output, manifest)
            assert f"`{entry.name}` was changed" in finding.message
            assert finding.value == entry.shard
            flip(output / entry.shard, position)


def test_several_changed_tensors_are_named_or_counted(output: Path) -> None:
    """The first few by name."""
    with CheckpointReader.open(output) as reader:
        shard = reader.shards[-1]
        entries = [each for each in reader.tensors.values() if each.shard == shard]
    for entry in entries:
        flip(output / shard, entry.start)
    (finding,) = check_files(output, load_manifest(output))
    assert f"and {len(entries) - 3} more tensors were changed" in finding.message


def test_a_flipped_byte_of_a_header_says_so(output: Path) -> None:
    """Its length, a name, a shape, and the padding."""
    shard = sorted(output.glob("*.safetensors"))[0]
    with shard.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    for position in (0, 8, 30, 8 + length // 2, 7 + length):
        flip(shard, position)
        found = check_files(output, load_manifest(output))
        assert [(each.code, each.value) for each in found] == [("RQ530", shard.name)], position
        assert "header was changed" in found[0].message
        flip(shard, position)


def test_quick_compares_sizes_and_headers(output: Path) -> None:
    """A flipped byte passes, a missing one does not, nor does a damaged header."""
    shard = sorted(output.glob("*.safetensors"))[0]
    flip(shard, shard.stat().st_size - 1)
    assert verify(output, quick=True).ok
    flip(shard, 9)
    found = verify(output, quick=True)
    assert codes(found) == ["RQ539"]
    assert shard.name in found.diagnostics[0].message
    os.truncate(shard, shard.stat().st_size - 1)
    assert "RQ530" in codes(verify(output, quick=True))


def _remove(path: Path) -> None:
    path.unlink()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link_out(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "code"),
    [(_remove, "RQ531"), (_pipe, "RQ530"), (_link_out, "RQ530"), (_loop, "RQ530"), (_folder, "RQ530")],
    ids=["missing", "pipe", "link out", "link to itself", "folder"],
)
@pytest.mark.parametrize("name", ["model-00001-of-0000{n}.safetensors", "config.json", "rulequant-plan.json",
                                  "rulequant-rules.yaml", "tokenizer.json"])  # fmt: skip
@pytest.mark.parametrize("quick", [False, True], ids=["hashed", "quick"])
def test_hostile_files_are_findings(name: str, damage: object, code: str, quick: bool, output: Path) -> None:
    """Nothing hangs, nothing is read outside, and the file is named."""
    path = output / name.format(n=len(list(output.glob("model-*.safetensors"))))
    damage(path)  # type: ignore[operator]
    found = verify(output, quick=quick)
    assert (code, path.name) in {(each.code, each.value) for each in found.diagnostics}


def test_hostile_manifest_is_a_finding(output: Path) -> None:
    """The rest is checked all the same."""
    _pipe(output / MANIFEST)
    found = verify(output)
    assert codes(found) == ["RQ530"]
    assert "not a regular file but a pipe" in found.diagnostics[0].message
    assert found.tensors


def test_added_files_and_links_to_folders_are_findings(output: Path, tmp_path: Path) -> None:
    """A folder behind a link is not entered, and not passed over either."""
    (output / "adapter_model.safetensors").write_bytes(b"")
    (output / "elsewhere").symlink_to(tmp_path)
    (output / ".gitattributes").write_bytes(b"")
    found = verify(output, quick=True)
    assert {each.value for each in found.diagnostics} == {"adapter_model.safetensors", "elsewhere"}
    assert codes(found) == ["RQ532"]


@pytest.mark.parametrize("kind", ["nothing", "file", "empty folder"])
def test_what_is_no_output_is_refused(kind: str, tmp_path: Path) -> None:
    """That is a mistake of the call, not a finding."""
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("")
    elif kind == "empty folder":
        path.mkdir()
    expected = {"nothing": "no such folder", "file": "not a folder", "empty folder": "not a finished output"}
    with pytest.raises(CheckpointError, match=expected[kind]):
        verify(path)


def test_progress_adds_up(made: Path) -> None:
    """All bytes of all files are told."""
    told: list[tuple[object, ...]] = []

    class Progress:
        def start(self, total_bytes: int, items: int, unit: str = "tensor") -> None:
            told.append((total_bytes, items, unit))

        def advance(self, name: str, nbytes: int) -> None:
            told.append((name, nbytes))

    found = verify(made, progress=Progress())
    assert told[0] == (found.file_bytes, found.files, "file")
    assert sum(each[1] for each in told[1:]) == found.file_bytes  # type: ignore[misc]
