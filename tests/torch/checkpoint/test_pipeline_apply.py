"""The output of a pipeline is written by the protocol of one model: by several workers, resumed, by a saved plan."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from apply_stops import Stop, contents, interrupt, kill, names
from children import in_child
from diffusion_models import RULES, save_pipeline
from safetensors.torch import load_file, save_file

from rulequant.cli.main import run
from rulequant.errors import CheckpointError
from rulequant.loader import load_rules
from rulequant.plan_file import read_plan
from rulequant.torch.checkpoint import cluster
from rulequant.torch.checkpoint import crew as crew_module
from rulequant.torch.checkpoint.apply import apply_pipeline
from rulequant.torch.checkpoint.manifest import check_manifest, load_manifest
from rulequant.torch.checkpoint.pipeline_prepare import prepare_pipeline
from rulequant.torch.factories import NotFiniteError
from rulequant.torch.pipeline import open_pipeline

Capture = pytest.CaptureFixture[str]
STAGING = ".out.rulequant-staging"
SHARD_BYTES = 60_000
MIXED = {"rules": [{"modules": "**.q", "scheme": "int8"}], "schemes": {"int8": {"method": "bnb_int8"}}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Flux pipeline."""
    return save_pipeline(tmp_path_factory.mktemp("pipeline") / "flux")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with rule files; a tiny pipeline is worth several workers here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(crew_module, "_BYTES_A_WORKER", 1)
    Path("transformer.yaml").write_text(json.dumps(RULES))
    Path("t5.yaml").write_text(json.dumps({"version": 1, "extends": "t5"} | MIXED))
    Path("flux.yaml").write_text(
        '{"version": 1, "components": {"transformer": "./transformer.yaml", "text_encoder_2": "t5"}}'
    )
    return tmp_path


def write(source: Path, output: str, rules: str = "flux.yaml", **options: Any) -> list[str]:
    """What a run in this process says."""
    notices: list[str] = []
    options = {"max_shard_bytes": SHARD_BYTES, "notice": notices.append, **options}
    apply_pipeline(open_pipeline(str(source)), load_rules(rules), Path(output), **options)
    return notices


@pytest.fixture
def undisturbed(saved: Path) -> dict[str, bytes]:
    """The files of a run that nothing stops."""
    write(saved, "undisturbed")
    return contents(Path("undisturbed"))


@pytest.mark.parametrize(("workers", "memory"), [(2, 24 << 20), (4, None)], ids=["two", "four"])
def test_workers(saved: Path, undisturbed: dict[str, bytes], workers: int, memory: int | None) -> None:
    """Several processes write the files that this one writes, of all components."""
    write(saved, "out", workers=workers, memory=memory)
    assert contents(Path("out")) == undisturbed
    assert len([name for name in undisturbed if name.endswith(".safetensors")]) > 6


def test_shards_have_an_index_in_their_component(undisturbed: dict[str, bytes]) -> None:
    """Names in it are those of the component's own files."""
    index = json.loads(undisturbed["transformer/diffusion_pytorch_model.safetensors.index.json"])
    files = set(index["weight_map"].values())
    assert len(files) > 1
    assert {f"transformer/{each}" for each in files} <= undisturbed.keys()
    assert "model.safetensors.index.json" not in undisturbed


def test_an_interrupted_run_goes_on(saved: Path, undisturbed: dict[str, bytes], folder: Path) -> None:
    """What was finished of any component is taken over; the output is that of an undisturbed run."""
    with pytest.raises(KeyboardInterrupt, match=r"[1-9] of \d+ shards are kept"):
        write(saved, "out", progress=Stop(40, interrupt))
    assert not Path("out").exists()
    records = names(Path(STAGING, "shards"))
    assert {each.partition("%2F")[0] for each in records} == {"text_encoder_2", "transformer"}
    made, all_made = Stop(10_000, interrupt), Stop(10_000, interrupt)
    (notice,) = write(saved, "out", progress=made, workers=2)
    assert notice.startswith(f"checking {len(records)} of ")
    write(saved, "another", progress=all_made)
    assert all_made.after < made.after < 10_000
    assert contents(Path("out")) == undisturbed
    assert not Path(STAGING).exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on(saved: Path, undisturbed: dict[str, bytes], workers: int, folder: Path) -> None:
    """The same after a SIGKILL, which nothing cleans up after."""
    code, _ = in_child(_killed, saved, workers, torch.get_num_threads(), report=folder / "report")
    assert code == -9
    assert not Path("out").exists()
    (notice,) = once_free(saved)
    assert notice.startswith("checking ")
    assert contents(Path("out")) == undisturbed


def once_free(source: Path) -> list[str]:
    """As `write`, once the last worker of a killed run is gone, and with it the lock."""
    for _ in range(50):
        with suppress(CheckpointError):
            return write(source, "out")
        time.sleep(0.1)
    return write(source, "out")


def _killed(source: Path, workers: int, threads: int) -> None:
    torch.set_num_threads(threads)
    write(source, "out", progress=Stop(30, kill), workers=workers)


def test_a_changed_byte_of_what_is_kept(saved: Path, undisturbed: dict[str, bytes]) -> None:
    """That shard is named with its component, and written again."""
    with pytest.raises(KeyboardInterrupt):
        write(saved, "out", progress=Stop(40, interrupt))
    shard = sorted(Path(STAGING, "checkpoint").rglob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    _, notice = write(saved, "out")
    assert notice == f"written again, since the bytes are not those that were written: text_encoder_2/{shard.name}"
    assert contents(Path("out")) == undisturbed


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"restart": True}, ""),
        ({"max_shard_bytes": 61_000}, ": it was made with another largest file (60,000 bytes, now 61,000)"),
        (
            {"rules": "other.yaml"},
            (
                ": it was made with another plan and other rules and another container "
                "(bitsandbytes, now rulequant for text_encoder_2, bitsandbytes for transformer)"
            ),
        ),
    ],
    ids=["--restart", "size", "rules"],
)
def test_another_run_starts_over(saved: Path, options: dict[str, Any], why: str) -> None:
    """What is there is removed, and the notice says what it was made with."""
    Path("other.yaml").write_text(Path("flux.yaml").read_text().replace('"t5"', '"./t5.yaml"'))
    with pytest.raises(KeyboardInterrupt):
        write(saved, "out", progress=Stop(40, interrupt))
    (notice,) = write(saved, "out", **options)
    assert notice.endswith(f"{STAGING}{why}")
    assert check_manifest(Path("out")) == []


def test_another_source_starts_over(saved: Path, folder: Path) -> None:
    """A file of one component that was touched."""
    import shutil

    source = Path(shutil.copytree(saved, folder / "flux"))
    with pytest.raises(KeyboardInterrupt):
        write(source, "out", progress=Stop(40, interrupt))
    os.utime(source / "text_encoder_2" / "model.safetensors", ns=(1, 1))
    (notice,) = write(source, "out")
    assert notice.endswith(": it was made with another text_encoder_2/model.safetensors of the model")


def test_nothing_is_left_of_a_failure(saved: Path, folder: Path) -> None:
    """Where a weight of the last component cannot be encoded, nothing of the others is left either."""
    import shutil

    source = Path(shutil.copytree(saved, folder / "flux"))
    file = source / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["proj_out.weight"][0, 0] = float("inf")
    save_file(tensors, file, {"format": "pt"})
    before = sorted(folder.rglob("*"))
    with pytest.raises(NotFiniteError, match=r"`proj_out\.weight`"):
        write(source, "out")
    assert sorted(folder.rglob("*")) == before


def test_a_full_disk_can_be_gone_on_from(
    saved: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    """Shards that were finished before the copies failed are kept."""
    from rulequant.torch.checkpoint import pipeline as writing

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "copy_file", full)
        with pytest.raises(OSError, match="No space left"):
            write(saved, "out")
    shards = sum(
        name.endswith(".safetensors") and name.split("/")[0] in {"transformer", "text_encoder_2"}
        for name in undisturbed
    )
    (notice,) = write(saved, "out")
    assert notice.startswith(f"checking {shards} of {shards} shards")
    assert contents(Path("out")) == undisturbed


def test_the_writer_imports_no_torch(saved: Path, folder: Path, undisturbed: dict[str, bytes]) -> None:
    """A prepared job is written by workers, and by a run that knows nothing of models."""
    job = prepare_pipeline(open_pipeline(str(saved)), load_rules("flux.yaml"), max_shard_bytes=SHARD_BYTES)
    Path("job").write_bytes(pickle.dumps(job))
    code = """
import pickle, sys
from pathlib import Path
from rulequant.torch.checkpoint.crew import Crew
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.write import write_output
job = pickle.loads(Path("job").read_bytes())
with CheckpointReader.attach(job.source, job.fingerprint) as reader, Crew(1) as crew:
    write_output(job, reader, Path("out"), crew.executor, memory=32 << 20)
print(sorted({"torch", "transformers", "diffusers", "numpy", "bitsandbytes"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
    assert contents(Path("out")) == undisturbed


def test_a_task_of_a_cluster(saved: Path, folder: Path, undisturbed: dict[str, bytes]) -> None:
    """A shard of a component is written where the task is told to, under the component's name."""
    job = prepare_pipeline(open_pipeline(str(saved)), load_rules("flux.yaml"), max_shard_bytes=SHARD_BYTES)
    attempts = folder / "attempts"
    attempts.mkdir()
    (attempts / "token").write_text("right")
    task = cluster._Task(job.source, job.fingerprint, attempts, "right", job.mean_threads, 32 << 20)
    answer = cluster._write_shard(task, job.shards[-1])
    assert isinstance(answer, tuple)
    place, result = answer
    assert result.name.startswith("transformer/")
    assert (place / result.name).read_bytes() == undisturbed[result.name]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'rulequant[ray]'")
def test_on_a_cluster(saved: Path, undisturbed: dict[str, bytes]) -> None:
    """The tasks of a cluster write the same, into the folders of the components."""
    command = ["apply", str(saved), "flux.yaml", "-o", "out", "--max-shard-size", f"{SHARD_BYTES // 1000}KB", "--quiet"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTHONWARNINGS"))}
    done = subprocess.run(
        [sys.executable, "-m", "rulequant", *command, "--executor", "ray"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert contents(Path("out")) == undisturbed


def test_the_manifest_knows_all(saved: Path) -> None:
    """The source of each component, the libraries behind the bytes, and the plan of the whole."""
    write(saved, "out")
    manifest = load_manifest(Path("out"))
    assert set(manifest.source) == {
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder_2/model.safetensors",
    }
    assert {"rulequant", "torch", "diffusers", "transformers"} <= manifest.versions.keys()
    plan, _ = read_plan(Path("out/rulequant-plan.json"))
    assert manifest.plan_sha256 == plan.to_dict()["plan_sha256"]


def test_the_command_line(saved: Path, capsys: Capture) -> None:
    """--workers, --memory and --restart are for pipelines too; the summary tells of each component, and the worst."""
    command = ["apply", str(saved), "flux.yaml", "-o", "out", "--workers", "2", "--memory", "24MiB", "--restart"]
    assert run([*command, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert {name: each["container"] for name, each in data["components"].items()} == {
        "text_encoder_2": "bitsandbytes",
        "transformer": "bitsandbytes",
    }
    assert data["pipeline_bytes_after"] == data["bytes_after"] + data["bytes_copied"]
    assert data["bytes_written"] == sum(each["bytes_written"] for each in data["components"].values())
    assert {each["name"].partition(".")[0] for each in data["worst_modules"]} <= {"text_encoder_2", "transformer"}
    assert "container        transformer: bitsandbytes, which diffusers loads as it is\n" in err
    assert f"check it any time: rulequant verify out --against {saved}\n" in err
    with pytest.raises(CheckpointError, match="the output already exists"):
        write(saved, "out")
