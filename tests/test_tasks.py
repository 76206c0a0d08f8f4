"""What a model without a family file is for, and that each task has its file."""

from __future__ import annotations

import pytest
from inventories import linear, llama, norm, of, weight

from rulequant.inventory import Inventory, ModuleInfo
from rulequant.loader import load_rules
from rulequant.selection import select
from rulequant.tasks import CONNECTORS, TASKS, TOWERS, Task, task_of


def _model(architecture: str, *modules: ModuleInfo) -> Inventory:
    return of(ModuleInfo("", architecture), *modules, architecture=architecture, model_type="new")


def _part(name: str) -> ModuleInfo:
    return ModuleInfo(name, "Part")


def _embedding(name: str, rows: int = 1000) -> ModuleInfo:
    return ModuleInfo(name, "Embedding", "embedding", (weight(rows, 64),))


def _convolution(*kernel: int) -> ModuleInfo:
    return ModuleInfo("first", "Conv", "convolution", (weight(64, 3, *kernel),))


HEAD = linear("lm_head", 1000, 64, output_embedding=True)
TEXT = _embedding("embed_tokens")
MODELS: dict[str, tuple[Inventory, Task]] = {
    "decoder": (llama(), "causal_lm"),
    "decoder without a head": (_model("NewModel", TEXT, _part("layers")), "causal_lm"),
    "masked": (_model("NewForMaskedLM", TEXT, HEAD), "encoder"),
    "pooler": (_model("NewModel", TEXT, _part("pooler")), "encoder"),
    "two stacks": (_model("NewModel", TEXT, _part("model.encoder"), _part("model.decoder"), HEAD), "seq2seq"),
    "decoder of a head": (_model("New", TEXT, _part("new.encoder"), _part("cls.decoder")), "encoder"),
    "tower beside a language model": (
        _model("New", _part("model.visual"), _part("model.language_model")),
        "multimodal",
    ),
    "tower and a head": (_model("New", TEXT, _part("model.vision_tower"), HEAD), "multimodal"),
    "tower beside a tower": (_model("New", TEXT, _part("vision_model"), _part("text_model")), "encoder"),
    "tower alone": (_model("NewModel", _convolution(16, 16), _part("vision_encoder")), "vision"),
    "images": (_model("NewModel", _convolution(16, 16), _embedding("position_embeddings")), "vision"),
    "videos": (_model("NewModel", _convolution(2, 16, 16)), "vision"),
    "sound": (_model("NewModel", _convolution(10)), "audio"),
    "spectrograms": (_model("NewForCTC", _convolution(3, 3)), "audio"),
    "vision by its name": (_model("NewVisionModel", linear("patch", 64, 64)), "vision"),
    "text by its name": (_model("NewTextModel", linear("fc", 64, 64)), "causal_lm"),
    "numbers": (_model("NewModel", linear("fc", 64, 64), norm("norm")), "encoder"),
    "nothing": (of(), "encoder"),
}


@pytest.mark.parametrize(("inventory", "task"), MODELS.values(), ids=MODELS.keys())
def test_task(inventory: Inventory, task: Task) -> None:
    """Each kind of model is told by its parts, or else by its name."""
    assert task_of(inventory) == task


def test_each_task_has_a_file() -> None:
    """A default is a bundled file for any family."""
    assert [load_rules(task).models for task in TASKS] == [()] * len(TASKS)


@pytest.mark.parametrize("name", sorted(TOWERS | CONNECTORS))
def test_towers_stay_by_default(name: str) -> None:
    """What makes a model multimodal is what its default file skips, with a reason."""
    part = _model("New", linear(f"model.{name}.fc", 64, 64))
    (skip,) = select(load_rules("multimodal"), part).skips_of(part.by_name[f"model.{name}.fc"])
    assert skip.selector.reason
