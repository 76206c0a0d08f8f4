"""The classes of a config are found and built quietly; what cannot be built is left out."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from transformers.utils import logging

from rulequant.torch.checkpoint.siblings import class_names, sibling_models


def test_classes_of_a_config() -> None:
    """All classes of the auto classes, the model's own among them."""
    assert class_names(transformers.ViTConfig()) == [
        "ViTForImageClassification",
        "ViTForMaskedImageModeling",
        "ViTModel",
    ]


def test_siblings_are_on_meta_and_not_the_model_itself(caplog: pytest.LogCaptureFixture) -> None:
    """They cost no memory, log nothing, and leave the config and the level of logging alone."""
    config = transformers.BertConfig(num_hidden_layers=1, hidden_size=12, num_attention_heads=2)
    before, level = config.to_dict(), logging.get_verbosity()
    with torch.device("meta"):
        model = transformers.BertModel(config)
    siblings = list(sibling_models(model))
    assert {"BertForMaskedLM", "BertForSequenceClassification"} <= {type(each).__name__ for each in siblings}
    assert not any(isinstance(each, transformers.BertModel) for each in siblings)
    assert {each.device.type for sibling in siblings for each in sibling.parameters()} == {"meta"}
    assert (model.config.to_dict(), logging.get_verbosity(), caplog.text) == (before, level, "")


def test_class_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can load it either."""

    def fail(self: nn.Module, config: object) -> None:
        raise ValueError("not with this config")

    monkeypatch.setattr(transformers.ViTForMaskedImageModeling, "__init__", fail)
    with torch.device("meta"):
        model = transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=1))
    assert [type(each).__name__ for each in sibling_models(model)] == ["ViTForImageClassification"]


def test_plain_module_has_none() -> None:
    """Only models of transformers have other classes."""
    assert list(sibling_models(nn.Sequential(nn.Linear(2, 2)))) == []
