"""apply: what is refused, in words and before anything of an output is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apply_runs import RULES, configure, plan_of, run, save_with_extras, state
from tiny_models import save_tiny

from rulequant.diagnostics import DiagnosticsError
from rulequant.errors import CheckpointError, ModelError, UsageError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in bfloat16, with files beside the weights; only read."""
    return save_with_extras(tmp_path_factory.mktemp("apply") / "llama")


@pytest.fixture
def source(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "llama"))


def _file(path: Path) -> None:
    path.write_text("mine")


def _folder(path: Path) -> None:
    path.mkdir()


def _full(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text("mine")


def _link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [_file, _folder, _full, _link], ids=["file", "empty folder", "folder", "broken link"])
def test_existing_output_is_refused(make: Callable[[Path], None], original: Path, tmp_path: Path) -> None:
    """Whatever it is; and it stays as it is."""
    make(tmp_path / "out")
    before = state(tmp_path)
    with pytest.raises(CheckpointError, match="out: the output already exists; nothing is ever replaced"):
        run(original, tmp_path / "out")
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("output", "relation"),
    [
        ("llama", "is the source itself"),
        ("llama/out", "lies inside the source"),
        ("llama/1_Pooling/../out", "lies inside the source"),
        ("link/out", "lies inside the source"),
        (".", "contains the source"),
    ],
    ids=["the same", "inside", "inside, by a detour", "inside, by a link", "around"],
)
def test_overlapping_output_is_refused(output: str, relation: str, source: Path, tmp_path: Path) -> None:
    """The source is never written to."""
    (tmp_path / "link").symlink_to(source)
    before = state(source)
    with pytest.raises(CheckpointError, match=relation):
        run(source, tmp_path / output)
    assert state(source) == before


def test_output_without_a_folder(original: Path, tmp_path: Path) -> None:
    """Parents are not made up."""
    with pytest.raises(CheckpointError, match=r"a/out: .*a is not a folder"):
        run(original, tmp_path / "a" / "out")


def test_quantized_source(original: Path, tmp_path: Path) -> None:
    """An output is no source."""
    run(original, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"out is already quantized \(bitsandbytes"):
        run(tmp_path / "out", tmp_path / "again")


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _unknown_type(folder: Path) -> None:
    configure(folder, model_type="lama")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _other_size(folder: Path) -> None:
    configure(folder, intermediate_size=256)


def _more_layers(folder: Path) -> None:
    configure(folder, num_hidden_layers=3)


def _no_weights(folder: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_pickle_only, r"llama: .*pytorch_model\.bin"),
        (_unknown_type, r"does not know the model_type 'lama'\n.*did you mean `llama`"),
        (_no_config, r"holds no config\.json"),
        (_truncated, r"model\.safetensors"),
        (_other_size, r"down_proj.weight` has the shape \[64, 128\], config\.json asks for \[64, 256\]"),
        (_more_layers, r"model\.layers\.2\..* are in no shard"),
        (_no_weights, r"llama: .*model\.safetensors"),
    ],
    ids=["pickle", "model_type", "no config", "truncated", "other size", "more layers", "no weights"],
)
def test_bad_source(spoil: Callable[[Path], None], message: str, source: Path, tmp_path: Path) -> None:
    """One message that names the file or the value, and nothing left behind."""
    spoil(source)
    with pytest.raises((CheckpointError, ModelError), match=message):
        run(source, tmp_path / "out")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["llama"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["bert"]}, r"RQ405 error: .* is for bert, but the model is a llama"),
        ({"skip_modules": ["**.q_prj"]}, r"RQ401 error: `\*\*\.q_prj` matches no module.*q_proj"),
        ({"rules": [{"modules": "head", "scheme": "it"}]}, r"RQ401 error: `head` matches no module"),
        ({"expect": {"min_quantized": 0.99}}, r"RQ40\d error"),
        ({"skip_modules": ["model"]}, r"RQ501 error"),
    ],
    ids=["other family", "skip matches nothing", "rule matches nothing", "floor", "nothing to quantize"],
)
def test_rules_that_do_not_fit(changes: dict[str, Any], message: str, original: Path, tmp_path: Path) -> None:
    """Told with code, value and suggestion, before a weight is read."""
    with pytest.raises(DiagnosticsError, match=message):
        run(original, tmp_path / "out", RULES | changes)
    assert list(tmp_path.iterdir()) == []


def test_plan_with_findings_is_refused(original: Path, tmp_path: Path) -> None:
    """A plan made in Python may be one that stands in its own way."""
    plan = plan_of(original, RULES | {"skip_modules": ["nothing"]})
    with pytest.raises(DiagnosticsError, match="RQ401"):
        run(original, tmp_path / "out", plan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 256}, r"`model\.layers\.0\.mlp\.gate_proj` is a Linear of 16384 bytes here.*32768"),
        ({"num_hidden_layers": 3}, r"has no `model\.layers\.2\.self_attn\.q_proj`"),
        ({"num_hidden_layers": 1}, r"does not know `model\.layers\.1\.self_attn\.q_proj`"),
    ],
    ids=["other size", "more layers", "fewer layers"],
)
def test_plan_for_another_model(changes: dict[str, Any], message: str, original: Path, tmp_path: Path) -> None:
    """The first module that differs is named."""
    other = save_tiny("llama", tmp_path / "other", **changes)
    with pytest.raises(UsageError, match=message):
        run(original, tmp_path / "out", plan_of(other))
