"""Outputs whose hashes are in order, and whose tensors, layers or records are not those of the plan."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from apply_runs import RULES, configure, plan_of, run
from tiny_models import ARCHITECTURES, save_tiny
from verify_runs import INT8, MIXED, codes, edit_json, edit_tensors, reseal, verify

from rulequant.torch.checkpoint.records import PLAN_NAME, RULES_NAME, write_plan

UP = "model.layers.0.mlp.up_proj"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a tiny llama: `out` is 4-bit, `int8` is int8, and `mixed` is both; only read."""
    folder = tmp_path_factory.mktemp("verify")
    save_tiny("llama", folder / "llama")
    run(folder / "llama", folder / "out")
    run(folder / "llama", folder / "int8", RULES | {"schemes": {"it": {"method": "bnb_int8"}}})
    run(folder / "llama", folder / "mixed", MIXED)
    return folder


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    """A copy of the 4-bit output that a test may change."""
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


@pytest.mark.parametrize("kind", ["plain", "double", "int8", "mixed", "rulequant"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_as_planned(name: str, kind: str, tmp_path: Path) -> None:
    """Tied and untied, with biases, renamed keys, `Conv1D`, encoders and decoders; in both containers."""
    schemes: dict[str, Any] = {
        "plain": {"method": "bnb_4bit"},
        "double": {"method": "bnb_4bit", "double_quant": True, "blocksize": 128},
        "int8": {"method": "bnb_int8"},
        "mixed": {"method": "bnb_4bit", "quant_type": "fp4"},
        "rulequant": {"method": "bnb_4bit", "quant_storage": "bfloat16"},
    }
    rules = RULES | {"quantizable_types": ["Linear", "Conv1D"], "schemes": {"it": schemes[kind]} | INT8}
    if kind == "mixed":
        rules |= {"rules": [{"modules": "**", "types": ["Linear", "Conv1D"], "layers": -1, "scheme": "int8"}]}
    source = save_tiny(name, tmp_path / "source", torch.float32 if kind == "plain" else torch.bfloat16)
    run(source, tmp_path / "out", rules, container="rulequant" if kind == "rulequant" else "auto")
    found = verify(tmp_path / "out")
    assert [each.concise() for each in found.diagnostics] == []
    assert found.container == ("rulequant" if kind in {"mixed", "rulequant"} else "bitsandbytes")


def _missing_part(tensors: dict[str, Any]) -> None:
    del tensors[f"{UP}.weight.absmax"]


def _missing_record(tensors: dict[str, Any]) -> None:
    del tensors[f"{UP}.weight.quant_state.bitsandbytes__nf4"]


def _missing_norm(tensors: dict[str, Any]) -> None:
    del tensors[NORM]


def _stranger(tensors: dict[str, Any]) -> None:
    tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(1)


def _stray_part(tensors: dict[str, Any]) -> None:
    tensors[f"{NORM}.absmax"] = torch.zeros(1)


def _extra_part(tensors: dict[str, Any]) -> None:
    tensors[f"{UP}.weight.nested_absmax"] = torch.zeros(1)


def _other_shape(tensors: dict[str, Any]) -> None:
    tensors[f"{UP}.weight"] = tensors[f"{UP}.weight"].reshape(1, -1)


def _other_dtype(tensors: dict[str, Any]) -> None:
    tensors[f"{UP}.weight.absmax"] = tensors[f"{UP}.weight.absmax"].view(torch.int32)


def _uncast(tensors: dict[str, Any]) -> None:
    tensors[NORM] = tensors[NORM].float()


def _decoded(tensors: dict[str, Any]) -> None:
    for name in [each for each in tensors if each.startswith(f"{UP}.weight")]:
        del tensors[name]
    tensors[f"{UP}.weight"] = torch.zeros(128, 64, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("edit", "code", "message"),
    [
        pytest.param(_missing_part, "RQ534", f"`{UP}.weight` is to be encoded by bnb_4bit, and its `weight.absmax` is",
                     id="no absmax"),
        pytest.param(_missing_record, "RQ534", "`weight.quant_state.bitsandbytes__nf4` is in no shard", id="no record"),
        pytest.param(_missing_norm, "RQ534", f"`{NORM}` of LlamaForCausalLM is in no shard", id="no norm"),
        pytest.param(_stranger, "RQ534", "does not have `model.layers.7.mlp.up_proj.weight`", id="stranger"),
        pytest.param(_stray_part, "RQ534", "part of an encoded weight, and the plan keeps that as it is", id="stray"),
        pytest.param(_extra_part, "RQ534", f"`{UP}.weight.nested_absmax` in model.safetensors is no tensor of a weight",
                     id="extra part"),
        pytest.param(_other_shape, "RQ534", "is uint8[1, 4096], the plan asks for uint8[4096, 1]", id="shape"),
        pytest.param(_other_dtype, "RQ534", "is int32[128], the plan asks for float32[128]", id="dtype"),
        pytest.param(_uncast, "RQ534", "is float32[64], the plan asks for bfloat16[64]", id="cast"),
        pytest.param(_decoded, "RQ534", "is bfloat16[128, 64], the plan asks for uint8[4096, 1]", id="not encoded"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_as_planned(
    edit: Callable[[dict[str, Any]], None], code: str, message: str, output: Path
) -> None:
    """Under a manifest that was written over them; the tensor is named."""
    edit_tensors(output, edit)
    reseal(output)
    found = verify(output)
    assert code in codes(found)
    assert any(message in each.message for each in found.diagnostics if each.code == code)
    assert not {"RQ530", "RQ536"} & set(codes(found))


def test_bytes_that_are_not_as_planned(output: Path) -> None:
    """More bytes than the plan promises, in the dtype of the model."""
    edit_tensors(output, _uncast)
    reseal(output)
    messages = [each.message for each in verify(output).diagnostics if each.code == "RQ535"]
    assert len(messages) == 1
    assert messages[0].startswith("the shards hold ")


def _skip_all(config: dict[str, Any]) -> None:
    config["quantization_config"]["llm_int8_skip_modules"] = ["o_proj"]


def _skip_less(config: dict[str, Any]) -> None:
    config["quantization_config"]["llm_int8_skip_modules"] = []


def _compute(config: dict[str, Any]) -> None:
    config["quantization_config"]["bnb_4bit_compute_dtype"] = "float16"


def _as_int8(config: dict[str, Any]) -> None:
    config["quantization_config"] |= {
        "load_in_4bit": False, "_load_in_4bit": False, "load_in_8bit": True, "_load_in_8bit": True
    }  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "count", "message"),
    [
        pytest.param(_skip_all, 3, "would make Linear of `model.layers.0.self_attn.o_proj`, the plan says Linear4bit",
                     id="o_proj skipped, lm_head not"),
        pytest.param(_skip_less, 1, "would make Linear4bit (torch.bfloat16) of `lm_head`, the plan says Linear",
                     id="lm_head not skipped"),
        pytest.param(_compute, 14, "Linear4bit (torch.float16) of `model.layers.0.self_attn.q_proj`, the plan says ",
                     id="compute dtype"),
        pytest.param(_as_int8, 14, "would make Linear8bitLt (6.0) of `model.layers.0.", id="int8"),
    ],
)  # fmt: skip
def test_layers_that_transformers_would_make_otherwise(
    edit: Callable[[dict[str, Any]], None], count: int, message: str, output: Path
) -> None:
    """By stock transformers' own selection, from an edited config.json."""
    edit_json(output / "config.json", edit)
    reseal(output)
    found = verify(output)
    assert codes(found) == ["RQ536"]
    assert len(found.diagnostics) == count
    assert any(message in each.message for each in found.diagnostics)


def test_threshold_of_another_output(made: Path, tmp_path: Path) -> None:
    """What config.json holds once for all int8 layers is compared too."""
    output = Path(shutil.copytree(made / "int8", tmp_path / "out"))
    edit_json(output / "config.json", lambda config: config["quantization_config"].update(llm_int8_threshold=3.0))
    reseal(output)
    found = verify(output)
    assert codes(found) == ["RQ536"]
    assert "Linear8bitLt (3.0) of" in found.diagnostics[0].message


def _without_o_proj(config: dict[str, Any]) -> None:
    config["quantization_config"]["modules"]["int8"].pop()


def _of_others(config: dict[str, Any]) -> None:
    config["quantization_config"]["schemes"]["it"]["method"] = "gptq"


@pytest.mark.parametrize(
    ("edit", "code", "message"),
    [
        (
            _without_o_proj,
            "RQ536",
            "would make Linear of `model.layers.1.self_attn.o_proj`, the plan says Linear8bitLt",
        ),
        (_of_others, "RQ539", "the method `gptq`, which no installed package provides"),
    ],
    ids=["a module less", "unknown method"],
)
def test_layers_of_the_own_container(
    edit: Callable[[dict[str, Any]], None], code: str, message: str, made: Path, tmp_path: Path
) -> None:
    """By rulequant's quantizer, from an edited config.json."""
    output = Path(shutil.copytree(made / "mixed", tmp_path / "out"))
    edit_json(output / "config.json", edit)
    reseal(output)
    found = verify(output)
    assert codes(found) == [code]
    assert message in found.diagnostics[0].message


def test_config_without_quantization(output: Path) -> None:
    """It would load as plain layers, and the weights as nothing at all."""
    edit_json(output / "config.json", lambda config: config.pop("quantization_config"))
    reseal(output)
    found = verify(output)
    assert codes(found) == ["RQ539"]
    assert "config.json has no `quantization_config`" in found.diagnostics[0].message


def test_plan_of_another_run(made: Path, output: Path) -> None:
    """A plan that is in order by itself is not that of the manifest, nor of the tensors."""
    (output / PLAN_NAME).unlink()
    write_plan(plan_of(made / "llama", RULES | {"skip_modules": ["**.o_proj"]}), output)
    reseal(output)
    found = verify(output)
    assert {"RQ533", "RQ534", "RQ535", "RQ536"} == set(codes(found))
    first = found.diagnostics[0].message
    assert first.startswith("rulequant-plan.json: its plan has the sha256 ")


def test_plan_of_another_model(made: Path, output: Path, tmp_path: Path) -> None:
    """What cannot be checked is not, and that is said."""
    save_tiny("opt", tmp_path / "opt")
    (output / PLAN_NAME).unlink()
    write_plan(plan_of(tmp_path / "opt"), output)
    reseal(output)
    found = verify(output)
    assert "RQ539" in codes(found)
    assert any("the plan is for another model" in each.message for each in found.diagnostics)
    assert (found.plan, found.tensors) == (None, 0)


def test_rules_of_another_run(output: Path) -> None:
    """A rule file that is in order by itself is not the one that the manifest names."""
    (output / RULES_NAME).write_text("version: 1\nextends: llama\n")
    reseal(output)
    found = verify(output)
    assert codes(found) == ["RQ533"]
    assert found.diagnostics[0].value == RULES_NAME


def test_config_of_another_size(output: Path) -> None:
    """The plan is then for another model."""
    configure(output, intermediate_size=256)
    reseal(output)
    assert "RQ539" in codes(verify(output))


def test_a_second_checkpoint_in_the_folder(output: Path) -> None:
    """Neither is chosen in silence."""
    (output / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00001.safetensors"}}')
    found = verify(output)
    assert {"RQ532", "RQ539"} == set(codes(found))
