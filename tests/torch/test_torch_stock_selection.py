"""What the README says about skip lists in transformers, held against the installed version.

Where one of these fails, transformers has changed: correct the table in the README, section "Instead of a skip list".
"""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    FalconConfig,
    FalconForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

import rulequant.torch
from rulequant.plan import Plan

_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128}
_LAYERS = {**_SMALL, "intermediate_size": 128, "num_attention_heads": 2}


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What transformers logs, which by itself it keeps from other handlers."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return caplog


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_LAYERS, num_key_value_heads=2))


def _falcon() -> PreTrainedModel:
    return FalconForCausalLM(FalconConfig(**_SMALL, num_attention_heads=2))


def _mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**_LAYERS, num_key_value_heads=2, num_local_experts=4))


def _mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(**_SMALL, state_size=4))


def _stock_names(model: PreTrainedModel, skip: list[str] | None) -> list[str]:
    """The modules that transformers swaps, with this `llm_int8_skip_modules`."""
    kept = HfQuantizer.get_modules_to_not_convert(model, skip, model._keep_in_fp32_modules)
    config = BitsAndBytesConfig(load_in_4bit=True)
    replace_with_bnb_linear(model, modules_to_not_convert=kept, quantization_config=config)
    return [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]


def _plan(model: PreTrainedModel, **keys: object) -> Plan:
    return rulequant.torch.plan(model, {"version": 1, "extends": "causal_lm", **keys})


@pytest.mark.parametrize("skip", [[], ["q_proj"]], ids=["empty list", "other module"])
def test_any_list_switches_the_protection_of_the_output_embedding_off(skip: list[str]) -> None:
    """With no list lm_head stays; with any it is swapped. Here it stays either way."""
    with torch.device("meta"):
        assert "lm_head" not in _stock_names(_llama(), None)
        assert "lm_head" in _stock_names(_llama(), skip)
        decision = _plan(_llama(), skip_modules=[f"**.{each}" for each in skip]).by_name["lm_head"]
    assert decision.reason == "output_embedding"


def test_misspelt_entry_does_nothing(logged: pytest.LogCaptureFixture) -> None:
    """transformers swaps all the same and logs nothing; here it is an error with the nearest name."""
    with torch.device("meta"):
        assert "model.layers.0.mlp.down_proj" in _stock_names(_llama(), ["lm_haed", "dwn_proj"])
        found = _plan(_llama(), skip_modules=["**.dwn_proj"]).diagnostics
    assert not logged.records
    assert [each.code for each in found if each.code == "RQ401"] == ["RQ401"]
    assert "`**.down_proj`" in str(found[0].remedy)


@pytest.mark.parametrize(
    ("entry", "name"),
    [("3.fc1", "layers.13.fc1"), ("proj", "model.layers.0.self_attn.q_proj"), ("model.layer..0", "model.layers.0")],
    ids=["suffix of a number", "suffix of a name", "regular expression"],
)
def test_entry_matches_as_suffix_or_regular_expression(entry: str, name: str) -> None:
    """Entries match more than they seem to say."""
    assert not should_convert_module(name, [entry])


def test_subclass_of_linear_stays() -> None:
    """Of a Falcon model transformers swaps nothing outside its head; here FalconLinear can be named."""
    with torch.device("meta"):
        assert _stock_names(_falcon(), []) == ["lm_head"]
        plan = rulequant.torch.plan(_falcon(), "falcon")
    assert plan.layer_coverage > 0.95


def test_heavy_class_that_is_not_listed_is_reported() -> None:
    """What stays because of its class is a warning here, by its share of the parameters."""
    with torch.device("meta"):
        found = _plan(_falcon(), quantizable_types=["Linear"]).diagnostics
    assert [each.value for each in found if each.code == "RQ408"] == ["FalconLinear"]


def test_fused_experts_stay(logged: pytest.LogCaptureFixture) -> None:
    """transformers leaves the experts, most of the layers, as they are and logs nothing; here they can be named."""
    with torch.device("meta"):
        model = _mixtral()
        assert not any("experts" in each for each in _stock_names(model, None))
        plan = _plan(_mixtral(), quantizable_types=["Linear", "*Experts"])
    assert not logged.records
    experts = [each for each in plan.decisions if each.type == "MixtralExperts"]
    assert sum(each.parameters for each in experts) > sum(each.parameters for each in plan.decisions) / 2
    assert all(each.quantize for each in experts)


def test_layer_whose_weight_is_read_directly_is_swapped() -> None:
    """Mamba's mixer reads `dt_proj.weight`; transformers swaps the layer, here it stays with that reason."""
    with torch.device("meta"):
        assert "backbone.layers.0.mixer.dt_proj" in _stock_names(_mamba(), None)
        plan = rulequant.torch.plan(_mamba(), "mamba")
    assert plan.by_name["backbone.layers.0.mixer.dt_proj"].reason == "weight_read_directly"


def test_only_plain_linear_and_conv1d_are_swapped() -> None:
    """The type is compared, not tested with isinstance."""

    class Subclass(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(64, 64), Subclass(64, 64))
    replace_with_bnb_linear(model, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    assert [type(each).__name__ for each in model] == ["Linear4bit", "Subclass"]
