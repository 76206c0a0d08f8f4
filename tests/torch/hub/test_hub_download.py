"""A checkpoint from the Hub into its cache: only what is needed, going on where it stopped, checked byte by byte."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from hub_server import Hub, Once, sha256
from huggingface_hub import constants

from rulequant.errors import CheckpointError, ModelError
from rulequant.torch.hub import download as download_module
from rulequant.torch.hub.blob import PART_SUFFIX
from rulequant.torch.hub.download import download
from rulequant.torch.hub.source import HubModel, open_hub_model

WEIGHTS = "model.safetensors"


class Told:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.total = self.files = 0
        self.advances: list[tuple[str, int]] = []

    def start(self, total_bytes: int, files: int) -> None:
        """Keep it."""
        self.total, self.files = total_bytes, files

    def advance(self, name: str, nbytes: int) -> None:
        """Keep it."""
        self.advances.append((name, nbytes))

    @property
    def done(self) -> int:
        """Bytes that came in all."""
        return sum(count for _, count in self.advances)


def files_in(folder: Path) -> dict[str, bytes]:
    """The contents by path."""
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def part_of(model: HubModel) -> list[Path]:
    """What is left of files that are not whole."""
    return list((model.folder.parent.parent / "blobs").glob(f"*{PART_SUFFIX}"))


def test_a_checkpoint_is_downloaded(hub: Hub, checkpoint: Path) -> None:
    """Config, safetensors, tokenizer and card come, byte for byte; pickles and hidden files are not asked for."""
    hub.add("org/tiny", checkpoint)
    told = Told()
    folder = download(open_hub_model("org/tiny"), progress=told)
    expected = files_in(checkpoint)
    del expected["pytorch_model.bin"], expected[".gitattributes"]
    assert files_in(folder) == expected
    assert not hub.asked("pytorch_model.bin")
    assert not hub.asked("pytorch_model.bin", "HEAD")
    assert told.files == len(expected) - 1  # config.json was there
    assert told.total == told.done == sum(map(len, expected.values())) - len(expected["config.json"])


def test_what_is_there_is_not_asked_for_again(hub: Hub, checkpoint: Path) -> None:
    """A second download asks for the list of files alone."""
    hub.add("org/tiny", checkpoint)
    model = open_hub_model("org/tiny")
    download(model)
    asked = len(hub.requests)
    download(model)
    assert [each.path for each in hub.requests[asked:]] == [f"/api/models/org/tiny/revision/{model.commit}"]


def test_the_commit_is_pinned(hub: Hub, checkpoint: Path) -> None:
    """A push to the branch between plan and download changes nothing: both are of one commit."""
    repo = hub.add("org/tiny", checkpoint)
    model = open_hub_model("org/tiny")
    repo.commits["d" * 40] = repo.commits[model.commit] | {WEIGHTS: b"other weights"}
    repo.refs["main"] = "d" * 40
    assert files_in(download(model))[WEIGHTS] == (checkpoint / WEIGHTS).read_bytes()


def test_a_dropped_connection_goes_on(hub: Hub, checkpoint: Path) -> None:
    """Cut off half way through a shard, a second run asks for the rest of it alone, and the bytes are right."""
    hub.add("org/tiny", checkpoint)
    model, data = open_hub_model("org/tiny"), (checkpoint / WEIGHTS).read_bytes()
    hub.drop_after = Once({WEIGHTS: 100_000})
    with pytest.raises(ModelError, match=r"cannot be reached: .*\n.*running again goes on where it stopped"):
        download(model)
    (part,) = part_of(model)
    have = part.stat().st_size
    assert data.startswith(part.read_bytes())
    assert 0 < have < len(data)
    hub.drop_after, hub.requests, told = {}, [], Told()
    folder = download(model, progress=told)
    assert [each.range for each in hub.asked(WEIGHTS) if "/storage/" in each.path] == [f"bytes={have}-"]
    assert (folder / WEIGHTS).read_bytes() == data
    assert told.total == told.done == len(data) - have
    assert not part_of(model)


def test_a_short_interruption_is_not_noticed(hub: Hub, checkpoint: Path) -> None:
    """A connection that breaks now and then goes on within the same run."""
    hub.add("org/tiny", checkpoint)
    hub.drop_after = {WEIGHTS: 90_000}
    told = Told()
    folder = download(open_hub_model("org/tiny"), progress=told)
    assert (folder / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
    assert told.total == told.done
    assert len([each for each in hub.asked(WEIGHTS) if each.range]) > 1


def test_a_server_without_ranges_starts_over(hub: Hub, checkpoint: Path) -> None:
    """What was there is thrown away, and the progress goes back."""
    hub.add("org/tiny", checkpoint)
    model = open_hub_model("org/tiny")
    data = (checkpoint / WEIGHTS).read_bytes()
    blobs = model.folder.parent.parent / "blobs"
    (blobs / f"{sha256(data)}{PART_SUFFIX}").write_bytes(data[:1000])
    hub.ignore_ranges, told = True, Told()
    folder = download(model, progress=told)
    assert (folder / WEIGHTS).read_bytes() == data
    assert told.total == told.done
    assert (WEIGHTS, -1000) in told.advances


@pytest.mark.parametrize("extra", [0, 7], ids=["whole", "longer"])
def test_a_part_that_is_no_part(hub: Hub, checkpoint: Path, extra: int) -> None:
    """Bytes of another file, whole or too long, end in the right ones all the same."""
    hub.add("org/tiny", checkpoint)
    model, data = open_hub_model("org/tiny"), (checkpoint / WEIGHTS).read_bytes()
    part = model.folder.parent.parent / "blobs" / f"{sha256(data)}{PART_SUFFIX}"
    part.write_bytes(bytes(len(data) + extra))
    if not extra:
        with pytest.raises(CheckpointError, match=r"model\.safetensors came with the sha256 .*\n  run it again"):
            download(model)
    assert (download(model) / WEIGHTS).read_bytes() == data


def test_other_bytes_are_refused(hub: Hub, checkpoint: Path) -> None:
    """A proxy that changes a byte is found out, and nothing of it stays."""
    hub.add("org/tiny", checkpoint)
    data = (checkpoint / WEIGHTS).read_bytes()
    hub.lie = {WEIGHTS: data[:-1] + bytes([data[-1] ^ 1])}
    model = open_hub_model("org/tiny")
    with pytest.raises(CheckpointError, match=f"the Hub says {sha256(data)}\n  run it again: it is fetched anew"):
        download(model)
    assert not part_of(model)
    assert not (model.folder / WEIGHTS).exists()
    hub.lie = {}
    assert (download(model) / WEIGHTS).read_bytes() == data


def test_the_token_is_shown_to_the_hub_alone(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store behind it, on another host, gets signed addresses and no token."""
    hub.add("org/tiny", checkpoint, token="hf_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    download(open_hub_model("org/tiny"))
    shown = {each.host.split(":")[0]: each.authorization for each in hub.requests}
    assert shown == {"127.0.0.1": "Bearer hf_secret", "localhost": None}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(hub: Hub, checkpoint: Path, status: int) -> None:
    """Wherever in the run it happens to be busy."""
    hub.add("org/tiny", checkpoint)
    model = open_hub_model("org/tiny")
    hub.busy = [status] * 4
    assert (download(model) / WEIGHTS).exists()


def test_no_space(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is downloaded, with what the output will need on the same device."""
    hub.add("org/tiny", checkpoint)
    model = open_hub_model("org/tiny")
    monkeypatch.setattr(download_module, "free_bytes", lambda _: 300_000)
    with pytest.raises(
        CheckpointError,
        match=r"not enough space: \d+\.\d+ kB are to be downloaded, and 1\.00 MB for the output; "
        r".*cache has 300\.00 kB free\n  free some space, or set HF_HOME",
    ):
        download(model, reserve=1_000_000)
    assert not hub.asked(WEIGHTS)
    download(model)


def test_an_interrupt_keeps_what_came(hub: Hub, checkpoint: Path) -> None:
    """Ctrl-C comes through at once, with the promise that the next run keeps."""
    hub.add("org/tiny", checkpoint)
    model = open_hub_model("org/tiny")

    class Interrupted(Told):
        def advance(self, name: str, nbytes: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="what came of org/tiny stays in the Hub's cache, and running again"):
        download(model, progress=Interrupted())
    assert (download(model) / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()


def test_two_at_once(hub: Hub, checkpoint: Path) -> None:
    """The second waits for the first, and the bytes come once."""
    hub.add("org/tiny", checkpoint)
    model = open_hub_model("org/tiny")
    threads = [threading.Thread(target=download, args=(model,)) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (model.folder / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
    assert len([each for each in hub.asked(WEIGHTS) if "/storage/" in each.path]) == 1


def test_offline(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache holds is taken, with a notice; what it lacks is told."""
    hub.add("org/tiny", checkpoint)
    model = open_hub_model("org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"org/tiny: its weights are not all in the Hub's cache .*\n  unset HF_HUB_OFF"
    ):
        download(model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    download(model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    notices: list[str] = []
    assert (download(model, notice=notices.append) / WEIGHTS).exists()
    assert notices == [f"HF_HUB_OFFLINE is set: taking what the cache holds of org/tiny, {model.folder}"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pytorch_model.bin": b"x"}, r"org/tiny: only pickled weights"),
        ({"model.gguf": b"x"}, r"org/tiny: no weights: neither model\.safetensors nor"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'},
            r"names model-00001-of-00001\.safetensors, which the repository lacks",
        ),
        (
            {
                "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}',
                "model-00001-of-00001.safetensors": b"",
                "model.safetensors": b"",
            },
            r"org/tiny: both model\.safetensors\.index\.json and model\.safetensors",
        ),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'},
            r"only the plain name of a \.safetensors file in the same folder is allowed",
        ),
    ],
    ids=["pickles", "other format", "incomplete", "two checkpoints", "hostile index"],
)
def test_repositories_without_a_checkpoint(
    hub: Hub, checkpoint: Path, tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    """Refused as a folder like it would be, before any weight is asked for."""
    folder = tmp_path / "source"
    folder.mkdir()
    shutil.copy(checkpoint / "config.json", folder)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    hub.add("org/tiny", folder)
    with pytest.raises(CheckpointError, match=message):
        download(open_hub_model("org/tiny"))
    assert not hub.asked(".safetensors", "HEAD")


def test_modules_of_sentence_transformers_come_whole(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    """Weights in the folders that modules.json names are side files, as for a folder; other sub-folders' are not."""
    folder = tmp_path / "source"
    shutil.copytree(checkpoint, folder)
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "2_Dense"}]))
    for name in ("2_Dense", "original"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(name.encode())
    hub.add("org/tiny", folder)
    found = files_in(download(open_hub_model("org/tiny")))
    assert "2_Dense/model.safetensors" in found
    assert "original/model.safetensors" not in found
