"""The tensors of encoded weights are found by the keys that they have, whatever transformers makes of those."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from transformers.core_model_loading import WeightRenaming, rename_source_key

from rulequant.schemes import Bnb4bit
from rulequant.torch.encoded_keys import encoded_weights

NAMES = ("weight", "weight.absmax")


def renamed(key: str, *renamings: WeightRenaming) -> tuple[str, str | None]:
    """What becomes of a key of a model with the layers `part.one`, which is encoded, and `part.two`, which is not."""
    model: Any = nn.Module()
    model.base_model_prefix = "part"
    model.part = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
    quantizer = SimpleNamespace(schemes={"part.one": Bnb4bit()})
    written, encoded = encoded_weights(quantizer, model, NAMES)
    state: dict[str, Any] = dict.fromkeys(model.state_dict(), True)
    return rename_source_key(key, [written, *renamings], [encoded], "part", state)


SPOIL = WeightRenaming("one", "one.weight")


@pytest.mark.parametrize(
    ("key", "renamings", "expected"),
    [
        ("part.one.weight", [], ("part.one.weight", "weight")),
        ("part.one.weight.absmax", [], ("part.one.weight", "weight.absmax")),
        ("one.weight.absmax", [], ("part.one.weight", "weight.absmax")),
        ("part.one.bias", [], ("part.one.bias", None)),
        ("part.two.weight", [], ("part.two.weight", None)),
        ("old.weight.absmax", [WeightRenaming("old", "part.one")], ("part.one.weight", "weight.absmax")),
        ("part.one.weight.absmax", [SPOIL], ("part.one.weight", "weight.absmax")),
        ("part.one.weight", [SPOIL], ("part.one.weight", "weight")),
        ("part.one.weight", [WeightRenaming("one", "two")], ("part.two.weight", None)),
        ("part.one.more", [SPOIL], ("part.one.weight.more", None)),
    ],
    ids=[
        *("weight", "part of a weight", "without prefix", "bias", "not encoded", "renamed"),
        *("spoiled", "spoiled weight", "another layer", "neither"),
    ],
)
def test_keys(key: str, renamings: list[WeightRenaming], expected: tuple[str, str | None]) -> None:
    """By the renamed key; and by the one that was written where the renamed one is nothing that the model has."""
    assert renamed(key, *renamings) == expected
