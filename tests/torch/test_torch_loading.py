"""A callable's model quantized from memory into a folder, and loaded again: the bytes of the in-memory apply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import called_models
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rulequant.torch
from rulequant.cli.main import run
from rulequant.diagnostics import DiagnosticsError
from rulequant.errors import CheckpointError, ModelError, RulequantError, UsageError
from rulequant.loader import load_rules
from rulequant.planner import make_plan
from rulequant.torch.checkpoint.manifest import check_manifest, load_manifest
from rulequant.torch.factories import NotFiniteError
from rulequant.torch.skeleton import build_skeleton

RULES: dict[str, Any] = {
    "version": 1,
    "quantizable_types": ["Linear", "*Experts"],
    "schemes": {
        "nf4": {"method": "bnb_4bit", "double_quant": True},
        "fp4": {"method": "bnb_4bit", "quant_type": "fp4", "blocksize": 128},
        "int8": {"method": "bnb_int8"},
    },
    "scheme": "nf4",
    "rules": [
        {"modules": "**.down", "scheme": "int8", "optional": True},
        {"modules": "narrow", "scheme": "fp4", "optional": True},
    ],
}
IDS = torch.arange(24).reshape(2, 12)


@pytest.fixture(params=["mixed", "moe"])
def name(request: pytest.FixtureRequest) -> str:
    """A callable."""
    return f"called_models:{request.param}"


def in_memory(name: str) -> nn.Module:
    """The model with the rules applied in place."""
    model = getattr(called_models, name.partition(":")[2])()
    rulequant.torch.apply(model, RULES)
    return model.eval()


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Bit for bit: some packed bytes are NaN to a float dtype."""
    alike = first.shape == second.shape and first.dtype == second.dtype
    return alike and torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def output(model: nn.Module) -> torch.Tensor:
    """What a forward pass gives."""
    with torch.no_grad():
        found = model(IDS)
    return found if isinstance(found, torch.Tensor) else found.logits


def test_the_bytes_are_those_in_memory(name: str, tmp_path: Path) -> None:
    """Each tensor of the folder is that of the state dict; what shares a parameter is there once."""
    plan = rulequant.torch.apply_checkpoint(name, RULES, tmp_path / "out")
    assert plan.container == make_plan(load_rules(RULES), build_skeleton(name).inventory()).container == "rulequant"
    saved, state = load_file(tmp_path / "out" / "model.safetensors"), in_memory(name).state_dict()
    assert plan.summary["quantized"] > 1
    assert [key for key in saved if not same(saved[key], state[key])] == []
    shared = {key for key in state if key.startswith("again.")} | ({"head.weight"} & state.keys())
    assert saved.keys() == state.keys() - shared
    payload = sum(each.nbytes for key, each in saved.items() if ".quant_state." not in key)
    assert payload == plan.summary["bytes_after"]


@pytest.mark.parametrize("form", ["name", "callable", "model", "meta"])
def test_it_loads_again(name: str, tmp_path: Path, form: str) -> None:
    """Whatever the model is given as, it computes what the one quantized in memory does."""
    rulequant.torch.apply_checkpoint(name, RULES, tmp_path / "out", max_shard_bytes=20_000)
    build = getattr(called_models, name.partition(":")[2])
    if form == "meta":
        with torch.device("meta"):
            model: Any = build()
        with pytest.raises(ModelError, match=r"is on meta, and no checkpoint holds it.*\n  build the model on the CPU"):
            rulequant.torch.load_quantized(model, tmp_path / "out")
        return
    given: Any = {"name": name, "callable": build, "model": build()}[form]
    loaded = rulequant.torch.load_quantized(given, tmp_path / "out")
    expected = in_memory(name)
    assert torch.equal(output(loaded), output(expected))
    assert not any(each.training for each in loaded.modules())
    state, other = expected.state_dict(), loaded.state_dict()
    assert [key for key in state if not same(state[key], other[key])] == []


def test_modules_called_like_methods(tmp_path: Path) -> None:
    """`half` and `type` are found among the modules, where an attribute would be the method."""
    plan = rulequant.torch.apply_checkpoint("called_models:odd", RULES, tmp_path / "out")
    assert [each.name for each in plan.quantized] == ["0.half", "0.type.0"]
    loaded, x = rulequant.torch.load_quantized("called_models:odd", tmp_path / "out"), torch.ones(1, 64)
    assert torch.equal(loaded(x), in_memory("called_models:odd")(x))


def test_random_weights_are_overwritten(tmp_path: Path) -> None:
    """The model that is given need not have the weights; ties and shared modules stay so."""
    rulequant.torch.apply_checkpoint("called_models:mixed", RULES, tmp_path / "out")
    torch.manual_seed(1)
    loaded: Any = rulequant.torch.load_quantized(called_models.Mixed(), tmp_path / "out")
    assert torch.equal(output(loaded), output(in_memory("called_models:mixed")))
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.again is loaded.blocks[0]


def test_a_meta_model_without_computed_buffers(tmp_path: Path) -> None:
    """It takes no memory for the original weights; ties hold."""
    torch.manual_seed(0)

    def build() -> nn.Module:
        model = nn.Sequential(nn.Embedding(96, 64), nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 96, bias=False))
        model[3].weight = model[0].weight
        return model

    called_models.build = build  # type: ignore[attr-defined]
    rulequant.torch.apply_checkpoint("called_models:build", RULES, tmp_path / "out")
    with torch.device("meta"):
        model = build()
    loaded: Any = rulequant.torch.load_quantized(model, tmp_path / "out")
    assert loaded[3].weight is loaded[0].weight
    assert output(loaded).isfinite().all()


def test_the_folder_explains_itself(tmp_path: Path) -> None:
    """Plan, rules and manifest; the card says how to load it, and how it was made; a plan is applied as it is."""
    plan = rulequant.torch.apply_checkpoint("called_models:mixed", RULES, tmp_path / "out")
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        "README.md", "model.safetensors", "rulequant-manifest.json", "rulequant-plan.json", "rulequant-rules.yaml"
    ]  # fmt: skip
    assert check_manifest(tmp_path / "out") == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'rulequant.torch.load_quantized("called_models:mixed", "path/to/this/folder")' in card
    assert "rulequant apply called_models:mixed rulequant-rules.yaml -o OUTPUT" in card
    assert "library_name: rulequant\n" in card
    rulequant.torch.apply_checkpoint("called_models:mixed", plan, tmp_path / "again")
    for file in ("model.safetensors", "rulequant-plan.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()
    assert load_manifest(tmp_path / "again").source == load_manifest(tmp_path / "out").source != {}


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The callable is called once, and the summary says who loads the output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(called_models, "calls", 0)
    (tmp_path / "rules.yaml").write_text(json.dumps(RULES))
    assert run(["plan", "called_models:mixed", "rules.yaml", "-o", "plan.json"]) == 0
    assert run(["apply", "called_models:counting", "rules.yaml", "-o", "out"]) == 0
    assert called_models.calls == 1
    text = capsys.readouterr().err
    assert "container        rulequant, which `rulequant.torch.load_quantized` loads" in text
    assert run(["apply", "called_models:mixed", "--plan", "plan.json", "-o", "again"]) == 0
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "empty",
            ModelError,
            r"is on meta, so there are no weights to quantize\n  let the callable return the model with",
        ),
        ("whole", ModelError, r"the model itself is a Linear.*\n  wrap it"),
        ("not_finite", NotFiniteError, r"`blocks\.1\.down\.weight`: .*\[3, 5\]"),
        ("stateful", ModelError, r"holds a str as `0\._extra_state`, and safetensors holds tensors only"),
        ("foreign", ModelError, r"`wave` has the dtype torch\.complex64"),
        ("broken", ModelError, r"called_models:broken cannot be called: ValueError: no such weights"),
        ("missing", ModelError, r"called_models has no `missing`"),
    ],
)
def test_models_that_cannot_be_applied(tmp_path: Path, name: str, error: type[RulequantError], message: str) -> None:
    """Each says why, and nothing is left behind."""
    with pytest.raises(error, match=message):
        rulequant.torch.apply_checkpoint(f"called_models:{name}", RULES, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_no_container_of_transformers(tmp_path: Path) -> None:
    """transformers loads nothing without a config.json."""
    with pytest.raises(DiagnosticsError, match="RQ541"):
        rulequant.torch.apply_checkpoint("called_models:mixed", RULES, tmp_path / "out", container="bitsandbytes")


def damaged(folder: Path, **changes: torch.Tensor | None) -> None:
    """Put other tensors into the folder's file; None takes one out."""
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({key: each for key, each in tensors.items() if each is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gain": None}, r"lacks `gain`, which the model has"),
        (
            {"gain": torch.ones(3)},
            r"`gain` is torch\.float32 of shape \[3\], the model's is torch\.float32 of shape \[64\]",
        ),
        ({"blocks.0.up.weight": None}, r"lacks `blocks\.0\.up\.weight`, which the plan says is quantized"),
        ({"more": torch.ones(3)}, r"holds `more`, which Mixed does not have"),
    ],
    ids=["missing", "other shape", "not encoded", "extra"],
)
def test_folders_that_do_not_fit(tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str) -> None:
    """Nothing is left random, and nothing is left over."""
    rulequant.torch.apply_checkpoint("called_models:mixed", RULES, tmp_path / "out")
    damaged(tmp_path / "out", **changes)
    with pytest.raises(CheckpointError, match=message):
        rulequant.torch.load_quantized(called_models.mixed, tmp_path / "out")


def test_another_model(tmp_path: Path) -> None:
    """The plan tells."""
    rulequant.torch.apply_checkpoint("called_models:mixed", RULES, tmp_path / "out")
    with pytest.raises(UsageError, match="the plan is for another model: the model itself is a Linear of 16640 bytes"):
        rulequant.torch.load_quantized(called_models.whole, tmp_path / "out")
    with pytest.raises(ModelError, match="the callable returns int, not an"):
        rulequant.torch.load_quantized(lambda: 1, tmp_path / "out")  # type: ignore[arg-type, return-value]


def test_a_checkpoint_of_transformers(tmp_path: Path) -> None:
    """It has a loader of its own."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"is a checkpoint with a config\.json\n  load it with the class"):
        rulequant.torch.load_quantized(called_models.mixed, tmp_path)
