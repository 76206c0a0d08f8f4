"""The errors against the original are those of the dequantized weights, whichever way they are stored."""

from __future__ import annotations

import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from apply_runs import RULES, configure, run
from moe_models import MOE, moe_class, moe_rules, save_moe
from safetensors.torch import load_file, save_file
from small_models import small
from tiny_models import save_tiny
from verify_runs import INT8, MIXED, codes, edit_tensors, flip, reseal, verify

import rulequant.torch
from rulequant.errors import CheckpointError, ModelError, UsageError
from rulequant.torch.checkpoint.manifest import load_manifest
from rulequant.torch.checkpoint.reader import CheckpointReader
from rulequant.torch.checkpoint.verify import records, spans
from rulequant.torch.experts import ExpertWeights
from rulequant.torch.factories import factory_for
from rulequant.torch.plain import plain_layer

SCHEMES: dict[str, dict[str, Any]] = {
    "nf4": {"method": "bnb_4bit"},
    "double": {"method": "bnb_4bit", "double_quant": True},
    "fp4-32-double": {"method": "bnb_4bit", "quant_type": "fp4", "blocksize": 32, "double_quant": True},
    "nf4-bf16": {"method": "bnb_4bit", "quant_storage": "bfloat16"},
    "int8": {"method": "bnb_int8"},
}


class ForeignFactory:
    """No factory is one."""


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    one, other = (each.detach().double() for each in (actual, expected))
    return float((one - other).norm() / other.norm())


def errors_in_memory(source: Path, rules: Any, model_class: Any) -> dict[str, float]:
    """The relative error of each weight, from whole tensors of a model that is quantized in memory."""
    original, model = (model_class.from_pretrained(source) for _ in range(2))
    plan = rulequant.torch.apply(model, rules)
    found: dict[str, float] = {}
    for decision in plan.quantized:
        scheme = plan.schemes[str(decision.scheme)]
        module, before = model.get_submodule(decision.name), original.get_submodule(decision.name)
        experts = {name: each for name, each in module.named_children() if isinstance(each, ExpertWeights)}
        for name, each in experts.items():
            decoded = factory_for(scheme.method).decode(dict(each.state_dict()), "experts")
            found[f"{decision.name}.{name}"] = relative(decoded, getattr(before, name))
        if not experts:
            weight = before.weight.T if type(before).__name__ == "Conv1D" else before.weight
            found[decision.name] = relative(cast(Any, plain_layer(module, scheme, None)).weight, weight)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "bert", "t5"])
def test_errors_are_those_of_whole_tensors(
    name: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Span by span, many for each weight; `Conv1D` in its orientation; worst first; all else is equal."""
    monkeypatch.setattr(spans, "_ELEMENTS", 4096)
    source = save_tiny(name, tmp_path / "source")
    rules = RULES | {"quantizable_types": ["Linear", "Conv1D"], "schemes": {"it": SCHEMES[scheme]}}
    run(source, tmp_path / "out", rules)
    found = verify(tmp_path / "out", source)
    assert found.diagnostics == []
    comparison = found.comparison
    assert comparison is not None
    model = getattr(transformers, transformers.AutoConfig.from_pretrained(source).architectures[0])
    expected = errors_in_memory(source, rules, model)
    assert {each.name: each.relative_error for each in comparison.weights} == pytest.approx(expected, rel=1e-5)
    errors = [each.relative_error for each in comparison.weights]
    assert errors == sorted(errors, reverse=True)
    assert all(each.snr_db == pytest.approx(-20 * math.log10(each.relative_error)) for each in comparison.weights)
    assert comparison.different == 0
    with CheckpointReader.open(source) as reader:
        assert comparison.equal + len(comparison.weights) == len(reader.tensors)


@pytest.mark.parametrize("scheme", ["nf4", "double", "int8"])
@pytest.mark.parametrize("name", MOE)
def test_experts_are_compared_one_by_one(name: str, scheme: str, tmp_path: Path) -> None:
    """Fused, or one by one in the source; the worst expert is named."""
    source = save_moe(name, tmp_path / "source")
    rules = moe_rules(**SCHEMES[scheme])
    run(source, tmp_path / "out", rules, container="rulequant")
    found = verify(tmp_path / "out", source)
    assert [each.concise() for each in found.diagnostics] == []
    assert found.comparison is not None
    expected = errors_in_memory(source, rules, moe_class(name))
    assert {each.name: each.relative_error for each in found.comparison.weights} == pytest.approx(expected, rel=1e-5)
    fused = [each for each in found.comparison.weights if each.worst_expert is not None]
    assert fused
    for each in fused:
        assert each.relative_error <= (each.worst_expert_error or 0) < 2 * each.relative_error
        assert 0 <= (each.worst_expert or 0) < 4


@pytest.mark.parametrize("skipped", [[], ["model.layers.0.**.experts"]], ids=["all", "one stays"])
@pytest.mark.parametrize("scheme", ["double", "int8"])
def test_experts_taken_apart_are_layers(scheme: str, skipped: list[str], tmp_path: Path) -> None:
    """Llama 4 in plain bitsandbytes: an error for each matrix of each expert; what stays is compared in its place."""
    source = save_moe("llama4_text", tmp_path / "source")
    rules = moe_rules(**SCHEMES[scheme])
    rules["skip_modules"] += skipped
    run(source, tmp_path / "out", rules)
    found = verify(tmp_path / "out", source)
    assert [each.concise() for each in found.diagnostics] == []
    assert found.container == "bitsandbytes"
    assert found.comparison is not None
    apart = [each for each in found.comparison.weights if ".experts." in each.name]
    assert len(apart) == (1 if skipped else 2) * 4 * 3
    assert {each.scheme for each in apart} == {"it"}
    assert all(0 < each.relative_error < 0.12 for each in apart)
    edit_tensors(tmp_path / "out", lambda tensors: tensors.pop(f"{apart[0].name}.weight"))
    reseal(tmp_path / "out")
    assert "RQ534" in codes(verify(tmp_path / "out"))


@pytest.mark.parametrize("scheme", ["double", "fp4-32-double", "int8"])
@pytest.mark.parametrize("name", ["gpt2", "wav2vec2"])
def test_embeddings_and_convolutions(name: str, scheme: str, tmp_path: Path) -> None:
    """Whatever a rule file lists beside linear layers."""
    small(name, dtype=torch.bfloat16).save_pretrained(tmp_path / "source")
    types = ["Linear", "Conv1D", "Embedding", "Conv1d"]
    rules = RULES | {"quantizable_types": types, "schemes": {"it": SCHEMES[scheme]}}
    run(tmp_path / "source", tmp_path / "out", rules)
    found = verify(tmp_path / "out", tmp_path / "source")
    assert [each.concise() for each in found.diagnostics] == []
    assert found.plan is not None
    kinds = {each.type for each in found.plan.quantized}
    assert kinds & {"Embedding", "Conv1d"}
    assert found.comparison is not None
    assert all(0 < each.relative_error < 0.2 for each in found.comparison.weights)


def test_mixed_schemes_are_summed_up(tmp_path: Path) -> None:
    """Each by itself: int8 is ten times closer than nf4."""
    source = save_tiny("llama", tmp_path / "source")
    run(source, tmp_path / "out", MIXED)
    found = verify(tmp_path / "out", source)
    assert found.comparison is not None
    by_name = {each.scheme: each for each in found.comparison.schemes}
    assert {name: each.weights for name, each in by_name.items()} == {"it": 12, "int8": 2}
    assert by_name["int8"].relative_error < 0.02
    assert 0.08 < by_name["it"].relative_error <= by_name["it"].worst < 0.12
    assert found.to_dict()["against"]["schemes"]["int8"]["weights"] == 2


def test_casts_are_those_that_apply_documents(tmp_path: Path) -> None:
    """A source in another dtype than config.json: the rest is compared after the cast, weights before it."""
    source = save_tiny("llama", tmp_path / "source", torch.float32)
    run(source, tmp_path / "whole", RULES | {"schemes": {"it": {"method": "bnb_int8"}}})
    whole = verify(tmp_path / "whole", source).comparison
    configure(source, dtype="bfloat16")
    run(source, tmp_path / "cast", RULES | {"schemes": {"it": {"method": "bnb_int8"}}})
    half = verify(tmp_path / "cast", source).comparison
    assert whole is not None
    assert half is not None
    assert (half.different, half.equal) == (0, 7)
    assert half.schemes[0].relative_error > whole.schemes[0].relative_error


def test_a_method_without_spans_is_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's factory need not know them; the errors are the same."""
    source = save_tiny("gpt2", tmp_path / "source")
    run(source, tmp_path / "out", RULES | {"quantizable_types": ["Conv1D"]})
    first = verify(tmp_path / "out", source).comparison
    monkeypatch.setattr(spans, "SpanFactory", ForeignFactory)
    second = verify(tmp_path / "out", source).comparison
    assert first is not None
    assert second is not None
    for one, other in zip(first.weights, second.weights, strict=True):
        assert (one.name, one.relative_error) == (other.name, pytest.approx(other.relative_error, rel=1e-6))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama as `source`, its output as `out`, and another llama as `other`; only read."""
    folder = tmp_path_factory.mktemp("verify")
    run(save_tiny("llama", folder / "source"), folder / "out", RULES | {"schemes": RULES["schemes"] | INT8})
    shutil.copytree(folder / "source", folder / "other")
    tensors = load_file(folder / "other" / "model.safetensors")
    generator = torch.Generator().manual_seed(9)
    others = {name: torch.randn(each.shape, generator=generator).to(each.dtype) for name, each in tensors.items()}
    save_file(others, folder / "other" / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    """A copy of the output that a test may change."""
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def test_another_model_of_the_same_size(made: Path) -> None:
    """Its weights are as far as zeros would be, and every other tensor differs."""
    found = verify(made / "out", made / "other")
    assert codes(found) == ["RQ537", "RQ538"]
    assert found.comparison is not None
    assert (found.comparison.equal, found.comparison.different) == (0, 7)
    assert sum(each.code == "RQ538" for each in found.diagnostics) == 14


def test_threads_change_nothing_and_leave_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings and weights come in the same order, and torch has the threads that it had, also for later ones."""
    before = torch.get_num_threads()
    told = {}
    for cores in (1, 5):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        told[cores] = verify(made / "out", made / "other").to_dict()
    assert told[5] == told[1]
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before


def test_an_unquantized_value_that_differs(made: Path, output: Path) -> None:
    """The element is told, under a manifest that was written over it."""
    with CheckpointReader.open(output) as reader:
        entry = reader.entry("model.embed_tokens.weight")
    flip(output / "model.safetensors", entry.start + 2 * 777)
    reseal(output)
    (finding,) = verify(output, made / "source").diagnostics
    assert (finding.code, finding.value) == ("RQ537", "model.embed_tokens.weight")
    assert "from element 777 on" in finding.message


def test_a_damaged_scale_and_a_damaged_record(made: Path, output: Path) -> None:
    """The one makes a weight far off, the other one that cannot be decoded."""
    names = [f"model.layers.0.mlp.{each}_proj" for each in ("up", "down")]

    def edit(tensors: dict[str, Any]) -> None:
        tensors[f"{names[0]}.weight.absmax"].mul_(1e4)
        tensors[f"{names[1]}.weight.quant_state.bitsandbytes__nf4"].fill_(0)

    edit_tensors(output, edit)
    reseal(output)
    found = verify(output, made / "source")
    assert codes(found) == ["RQ538"]
    messages = sorted(each.message for each in found.diagnostics)
    assert messages[0].startswith(f"`{names[1]}.weight` cannot be decoded: ")
    assert messages[1].startswith(f"`{names[0]}`: the relative error is ")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("nowhere", ModelError, "nowhere is no folder here"),
        ("torch.nn:Identity", UsageError, "the plan is for another model"),
        ("{made}/out", CheckpointError, "is already quantized"),
        ("{tmp}/opt", UsageError, "the plan is for another model"),
    ],
    ids=["nowhere", "callable", "quantized", "another architecture"],
)
def test_an_original_that_cannot_be_one(
    model: str, error: type[Exception], message: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is a mistake of the call, and told before anything is hashed."""
    save_tiny("opt", tmp_path / "opt")
    monkeypatch.setattr(records, "check_files", None)
    with pytest.raises(error, match=message):
        verify(made / "out", Path(model.format(made=made, tmp=tmp_path)))


def test_nothing_is_compared_where_the_output_is_not_as_planned(made: Path, output: Path) -> None:
    """A missing scale leaves nothing to decode."""
    edit_tensors(output, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight.absmax"))
    reseal(output)
    found = verify(output, made / "source")
    assert found.comparison is None
    assert load_manifest(output).files


@pytest.mark.parametrize("name", ["called_models:mixed", "called_models:moe"])
def test_a_callable_is_called_again(name: str, tmp_path: Path) -> None:
    """Its output has no config.json: the bytes are checked without it, all the rest with it."""
    rules = moe_rules(method="bnb_4bit", double_quant=True)
    rulequant.torch.apply_checkpoint(name, rules, tmp_path / "out")
    alone, beside = rulequant.torch.verify(tmp_path / "out"), rulequant.torch.verify(tmp_path / "out", name)
    assert alone.diagnostics == beside.diagnostics == []
    assert (alone.called, alone.container) == (True, None)
    assert beside.comparison is not None
    assert beside.comparison.schemes[0].relative_error < 0.12
    edit_tensors(tmp_path / "out", lambda tensors: tensors.update(stranger=torch.zeros(1)))
    reseal(tmp_path / "out")
    assert codes(rulequant.torch.verify(tmp_path / "out")) == ["RQ535"]
    found = rulequant.torch.verify(tmp_path / "out", name)
    assert codes(found) == ["RQ534"]
    assert "`stranger` is nothing that " in found.diagnostics[0].message


def test_python_entry(made: Path) -> None:
    """`rulequant.torch.verify` says the same."""
    found = rulequant.torch.verify(made / "out", made / "source")
    assert found.ok
    assert found.comparison is not None
    assert len(found.comparison.weights) == 14
    assert rulequant.torch.verify(str(made / "out"), quick=True).comparison is None
