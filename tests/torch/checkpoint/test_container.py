"""Plain bitsandbytes wherever stock can express a plan, and then it loads as planned; otherwise rulequant's own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from tiny_models import ARCHITECTURES, inputs_for, save_tiny

from rulequant.diagnostics import DiagnosticsError
from rulequant.loader import load_rules
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.schemes import Scheme
from rulequant.torch import apply
from rulequant.torch.checkpoint.apply import apply_to_folder
from rulequant.torch.checkpoint.container import choose_container
from rulequant.torch.checkpoint.finish import Applied
from rulequant.torch.skeleton import Skeleton, build_skeleton

NF4 = {"method": "bnb_4bit"}
INT8 = {"method": "bnb_int8"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints in bfloat16."""
    folder = tmp_path_factory.mktemp("container")
    made = {name: save_tiny(name, folder / name) for name in ("llama", "bert")}
    config = transformers.FalconConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=256, architectures=["FalconForCausalLM"]
    )
    torch.manual_seed(0)
    transformers.FalconForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "falcon")
    return made | {"falcon": folder / "falcon"}


def rules_of(default: dict[str, Any], rules: dict[str, dict[str, Any]] | None = None, **more: Any) -> Any:
    """One scheme for all Linear layers, others for patterns."""
    schemes = {"default": default} | {f"s{number}": each for number, each in enumerate((rules or {}).values())}
    entries = [{"modules": each, "scheme": f"s{number}"} for number, each in enumerate(rules or {})]
    return load_rules({"version": 1, "schemes": schemes, "scheme": "default", "rules": entries, **more})


def planned(source: Path, rules: Any) -> tuple[Skeleton, Plan]:
    skeleton = build_skeleton(str(source))
    return skeleton, make_plan(rules, skeleton.inventory())


def applied(source: Path, rules: Any, output: Path, **options: Any) -> Applied:
    return apply_to_folder(build_skeleton(str(source)), rules, output, **options)


def refusal(source: Path, rules: Any) -> Any:
    """The diagnostic with which plain bitsandbytes is refused; left to itself the container is rulequant's."""
    skeleton, plan = planned(source, rules)
    assert choose_container(skeleton, plan).quant_method == "rulequant"
    with pytest.raises(DiagnosticsError) as raised:
        choose_container(skeleton, plan, "bitsandbytes")
    (diagnostic,) = raised.value.diagnostics
    assert "`rulequant`" in diagnostic.remedy
    return diagnostic


MIXED = {
    "**.q_proj": {"method": "bnb_4bit", "quant_type": "fp4"},
    "**.k_proj": {"method": "bnb_4bit", "blocksize": 32},
    "**.v_proj": {"method": "bnb_4bit", "double_quant": True, "blocksize": 32},
    "model.layers.0.mlp.down_proj": {"method": "bnb_4bit", "quant_type": "fp4", "double_quant": True, "blocksize": 128},
}
"""Each with blocks that divide a row of 64 or 128, as bitsandbytes' CPU kernels want them."""


def test_mixed_4bit_reloads_bit_exactly(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Codes, block sizes and double quantization mix in one plain checkpoint, beside layers left as they are."""
    rules = rules_of(NF4, MIXED, skip_modules=["**.o_proj"])
    done = applied(checkpoints["llama"], rules, tmp_path / "out", container="bitsandbytes")
    assert done.container == "bitsandbytes"
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    memory = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    apply(memory, rules)
    wanted, found = memory.state_dict(), stock.state_dict()
    assert sorted(wanted) == sorted(found)
    for name, tensor in wanted.items():
        assert tensor.reshape(-1).view(torch.uint8).equal(found[name].reshape(-1).view(torch.uint8)), name
    layers = {name: each for name, each in stock.named_modules() if isinstance(each, Linear4bit)}
    assert set(layers) == {each.name for each in done.plan.quantized}
    for each in layers.values():
        each.support_avx512bf16_for_cpu = False  # a kernel of other precision, which our layers leave alone
    batch = inputs_for(stock)
    with torch.no_grad():
        assert stock(**batch).logits.equal(memory(**batch).logits)


@pytest.mark.parametrize("storage", ["bfloat16", "float32"])
def test_quant_storage_reloads(storage: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Packed bytes in a float dtype survive: no cast on the way."""
    rules = rules_of({"method": "bnb_4bit", "quant_storage": storage})
    applied(checkpoints["llama"], rules, tmp_path / "out", container="bitsandbytes")
    applied(checkpoints["llama"], rules_of(NF4), tmp_path / "usual")
    models = [transformers.AutoModelForCausalLM.from_pretrained(tmp_path / each) for each in ("out", "usual")]
    assert str(models[0].model.layers[0].mlp.up_proj.weight.dtype) == f"torch.{storage}"
    with torch.no_grad():
        first, second = (each(**inputs_for(each)).logits for each in models)
    assert first.equal(second)


@pytest.mark.parametrize("scheme", [NF4, INT8], ids=["nf4", "int8"])
@pytest.mark.parametrize(
    ("name", "model_class"),
    [
        ("llama", "AutoModel"),
        ("llama", "AutoModelForSequenceClassification"),
        ("bert", "AutoModel"),
        ("bert", "AutoModelForSequenceClassification"),
        ("bert", "AutoModelForQuestionAnswering"),
    ],
)
def test_other_classes_load_the_folder(
    name: str, model_class: str, scheme: Any, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The bare model and one with a new head quantize the same layers, and run."""
    done = applied(checkpoints[name], rules_of(scheme), tmp_path / "out", container="bitsandbytes")
    model = getattr(transformers, model_class).from_pretrained(tmp_path / "out")
    model.config.pad_token_id = 0
    prefix = f"{'model' if name == 'llama' else 'bert'}."
    found = {
        key.removeprefix(prefix) for key, each in model.named_modules() if isinstance(each, Linear4bit | Linear8bitLt)
    }
    assert found == {each.name.removeprefix(prefix) for each in done.plan.quantized}
    with torch.no_grad():
        output = model(**inputs_for(model))
    assert all(each.isfinite().all() for each in output.values() if isinstance(each, torch.Tensor))


def test_int8_beside_4bit(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Not in one bitsandbytes checkpoint, so rulequant's own: it loads after the import, and runs."""
    rules = rules_of(NF4, {"**.self_attn": INT8})
    diagnostic = refusal(checkpoints["llama"], rules)
    assert diagnostic.code == "RQ503"
    assert "`default` on model.layers.0.mlp.gate_proj and 5 more" in diagnostic.message
    assert "`s0` on model.layers.0.self_attn.q_proj and 7 more" in diagnostic.message
    assert applied(checkpoints["llama"], rules, tmp_path / "out").container == "rulequant"
    _check_own_container(tmp_path / "out", checkpoints["llama"], rules)


def test_falcon(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """FalconLinear, which stock leaves alone without a word, is quantized, loads, and runs."""
    rules = rules_of(NF4, quantizable_types=["FalconLinear"])
    diagnostic = refusal(checkpoints["falcon"], rules)
    assert diagnostic.code == "RQ551"
    assert (
        "no quantized layer of the class FalconLinear: transformer.h.0.self_attention.query_key_value"
        in diagnostic.message
    )
    assert diagnostic.message.endswith(" and 5 more")
    done = applied(checkpoints["falcon"], rules, tmp_path / "out")
    assert (done.container, done.plan.summary["quantized"]) == ("rulequant", 8)
    _check_own_container(tmp_path / "out", checkpoints["falcon"], rules)


def _check_own_container(output: Path, source: Path, rules: Any) -> None:
    import rulequant.torch.transformers  # noqa: F401

    model, info = transformers.AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    memory = transformers.AutoModelForCausalLM.from_pretrained(source)
    apply(memory, rules)
    batch = inputs_for(model)
    with torch.no_grad():
        assert model(**batch).logits.equal(memory(**batch).logits)


@pytest.mark.parametrize(
    ("default", "other", "setting", "values"),
    [
        (INT8, {"method": "bnb_int8", "threshold": 0.0}, "threshold", ("6.0", "0.0")),
        (NF4, {"method": "bnb_4bit", "compute_dtype": "float32"}, "compute_dtype", ("bfloat16", "float32")),
        (NF4, {"method": "bnb_4bit", "quant_storage": "float16"}, "quant_storage", ("uint8", "float16")),
    ],
    ids=["threshold", "compute_dtype", "quant_storage"],
)
def test_settings_that_a_checkpoint_has_once(
    default: Any, other: Any, setting: str, values: tuple[str, str], checkpoints: dict[str, Path]
) -> None:
    """Two values of a global setting are told with the modules that want them."""
    diagnostic = refusal(checkpoints["llama"], rules_of(default, {"**.mlp": other}))
    assert diagnostic.code == "RQ504"
    assert f"share one `{setting}`" in diagnostic.message
    assert f"{values[1]} for `s0` on model.layers.0.mlp.gate_proj and 5 more" in diagnostic.message
    assert f"{values[0]} for `default` on model.layers.0.self_attn.q_proj and 7 more" in diagnostic.message


def test_auto_is_the_dtype_of_the_model(checkpoints: dict[str, Path]) -> None:
    """`compute_dtype: auto` and the same dtype by name do not conflict."""
    rules = rules_of(NF4, {"**.mlp": {"method": "bnb_4bit", "compute_dtype": "bfloat16"}})
    chosen = choose_container(*planned(checkpoints["llama"], rules))
    assert (chosen.quant_method, chosen.config["bnb_4bit_compute_dtype"]) == ("bitsandbytes", "bfloat16")


def test_unused_schemes_do_not_count(checkpoints: dict[str, Path]) -> None:
    """Only what the plan uses has to fit."""
    rules = rules_of(NF4)
    rules = dataclasses.replace(rules, schemes=rules.schemes | rules_of(INT8, {"x": INT8}).schemes | rules.schemes)
    assert choose_container(*planned(checkpoints["llama"], rules)).quant_method == "bitsandbytes"


def test_nothing_to_quantize(checkpoints: dict[str, Path]) -> None:
    """A plan that quantizes nothing writes no checkpoint."""
    with pytest.raises(DiagnosticsError, match="RQ501 error: the plan quantizes no module"):
        choose_container(*planned(checkpoints["llama"], rules_of(NF4, skip_modules=["model"])))


def test_method_of_a_third_party(checkpoints: dict[str, Path]) -> None:
    """A method that stock does not know is named with a module that has it."""

    class Other(Scheme):
        kinds: ClassVar[frozenset[str]] = frozenset({"linear"})

    skeleton, plan = planned(checkpoints["llama"], rules_of(NF4))
    plan = dataclasses.replace(plan, schemes={"default": Other(method="other")})
    with pytest.raises(DiagnosticsError, match=r"RQ502 .* method `other` \(`default` on model\.layers\.0\.self_attn"):
        choose_container(skeleton, plan, "bitsandbytes")


def test_rulequant_can_be_asked_for(checkpoints: dict[str, Path]) -> None:
    """The own container holds what the other could too."""
    chosen = choose_container(*planned(checkpoints["llama"], rules_of(NF4)), "rulequant")
    assert chosen.quant_method == chosen.config["quant_method"] == "rulequant"


@pytest.mark.parametrize(("scheme", "bits"), [(NF4, 4), (INT8, 8)], ids=["nf4", "int8"])
def test_config_is_one_of_transformers(scheme: Any, bits: int, checkpoints: dict[str, Path]) -> None:
    """BitsAndBytesConfig takes every key and gives it back."""
    chosen = choose_container(*planned(checkpoints["bert"], rules_of(scheme)))
    config = transformers.BitsAndBytesConfig.from_dict(chosen.config)
    assert (config.load_in_4bit, config.load_in_8bit) == (bits == 4, bits == 8)
    assert json.loads(config.to_json_string(use_diff=False)) == chosen.config


def test_architectures_all_fit(tmp_path: Path) -> None:
    """Every architecture of the tests gets a plain container from its config alone."""
    for name, (model_class, config_class, settings) in ARCHITECTURES.items():
        config = getattr(transformers, config_class)(**settings, architectures=[model_class])
        config.save_pretrained(tmp_path / name)
        rules = rules_of(NF4, quantizable_types=["Linear", "Conv1D"])
        assert choose_container(*planned(tmp_path / name, rules), "bitsandbytes").config["load_in_4bit"], name
