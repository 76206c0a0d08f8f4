"""Models that come from code: a callable of the user's, or what a checkpoint brings along."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_models import SMALL

from rulequant.errors import ModelError
from rulequant.torch.skeleton import build_skeleton


def folder_with(tmp_path: Path, **config: Any) -> str:
    """A folder with a config.json."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4, dtype=torch.bfloat16)


def build():
    return Net()


class Nested:
    make = Net


def real():
    return nn.Linear(2, 2, device="cpu")


def bare():
    return nn.ReLU()


def fails():
    raise ValueError("no weights today")


def leaves():
    raise SystemExit(3)


def gives_text():
    return "model"


def wants_more(size):
    return nn.Linear(size, size)


not_callable = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module in the current folder, and others that cannot be imported."""
    (tmp_path / "own_models.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "own_script.py").write_text("import sys\nsys.exit(1)\n")
    (tmp_path / "own_syntax.py").write_text("def (\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("own_models", "own_broken", "own_script", "own_syntax"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("model", "device", "dtype"),
    [
        ("own_models:build", "meta", torch.bfloat16),
        ("own_models:Net", "meta", torch.bfloat16),
        ("own_models:Nested.make", "meta", torch.bfloat16),
        ("own_models:real", "cpu", torch.float32),
        ("own_models:bare", None, torch.float32),
    ],
)
def test_a_callable_gives_the_model(own_module: Path, model: str, device: str | None, dtype: torch.dtype) -> None:
    """A function or class of the user's own module, found in the current folder, is called on meta."""
    skeleton = build_skeleton(model)
    assert {each.device.type for each in skeleton.model.parameters()} == ({device} if device else set())
    assert (skeleton.dtype, skeleton.folder, skeleton.name) == (dtype, None, model)
    assert not skeleton.model.training
    assert skeleton.inventory().model == model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("own_modules:build", r"own_modules cannot be imported: ModuleNotFoundError.*\n  install it, or run in the fo"),
        ("own_broken:build", r"own_broken cannot be imported: ModuleNotFoundError: No module named 'nothing_of_that_n"),
        ("own_script:build", r"own_script cannot be imported: SystemExit: 1"),
        ("own_syntax:build", r"own_syntax cannot be imported: SyntaxError"),
        ("own_models:biuld", r"own_models has no `biuld`\n  did you mean `build`"),
        ("own_models:Nested.mak", r"own_models has no `Nested.mak`\n  did you mean `make`"),
        ("own_models:fails", r"own_models:fails cannot be called: ValueError: no weights today"),
        ("own_models:leaves", r"own_models:leaves cannot be called: SystemExit: 3"),
        ("own_models:gives_text", r"own_models:gives_text returns str, not an nn.Module"),
        ("own_models:wants_more", r"own_models:wants_more cannot be called: TypeError.*'size'"),
        (
            "own_models:not_callable",
            r"own_models:not_callable cannot be called: TypeError: 'int' object is not callable",
        ),
    ],
    ids=[
        "no-module",
        "broken",
        "script",
        "syntax",
        "typo",
        "nested-typo",
        "fails",
        "leaves",
        "text",
        "arguments",
        "number",
    ],
)
def test_callables_that_fail(own_module: Path, model: str, message: str) -> None:
    """The user's code raises what it likes; the message says where."""
    with pytest.raises(ModelError, match=message):
        build_skeleton(model)


REMOTE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class MineConfig(PretrainedConfig):
    model_type = "mine"


class MineModel(PreTrainedModel):
    config_class = MineConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(4, 4)
        self.post_init()


class MineForScoring(MineModel):
    pass
"""


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [(["MineForScoring"], "MineForScoring"), (["MineModel"], "MineModel"), ([], "MineModel"), (["Gone"], "MineModel")],
    ids=["named", "base", "none", "unknown"],
)
def test_code_of_a_checkpoint_runs_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architectures: list[str], expected: str
) -> None:
    """With `trust_remote_code` the class comes from the checkpoint's own code, by its `architectures`."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    auto_map = {
        "AutoConfig": "modeling_mine.MineConfig",
        "AutoModel": "modeling_mine.MineModel",
        "AutoModelForSequenceClassification": "modeling_mine.MineForScoring",
    }
    name = folder_with(tmp_path, model_type="mine", architectures=architectures, auto_map=auto_map)
    (Path(name) / "modeling_mine.py").write_text(REMOTE)
    with pytest.raises(ModelError, match="the model `mine` brings its own code"):
        build_skeleton(name)
    assert type(build_skeleton(name, trust_remote_code=True).model).__name__ == expected


def test_code_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `auto_map` that leads nowhere."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    bert = {"model_type": "bert", "architectures": ["BertModel"], **SMALL["bert"][2]}
    name = folder_with(tmp_path, **bert, auto_map={"AutoModel": "modeling_gone.Gone"})
    assert type(build_skeleton(name).model) is transformers.BertModel
    with pytest.raises(ModelError, match=r"its code cannot be loaded: OSError.*modeling_gone\.py"):
        build_skeleton(name, trust_remote_code=True)
