"""What vLLM makes of a plan, by its own rules."""

from __future__ import annotations

from typing import Any

import pytest
from inventories import llama, of, ruleset

from rulequant.diagnostics import Severity
from rulequant.inventory import Inventory, ModuleInfo, TensorInfo
from rulequant.planner import make_plan
from rulequant.vllm import skipped_by_vllm, vllm_notes


def _notes(text: str, inventory: Inventory | None = None, container: Any = "auto") -> list[tuple[str, str]]:
    model = inventory or llama()
    plan = make_plan(ruleset(text), model, container)
    notes = list(vllm_notes(plan, model))
    assert all(each.severity is Severity.NOTE for each in notes)
    assert set(notes) <= set(plan.diagnostics)
    return [(each.code, each.message) for each in notes]


@pytest.mark.parametrize(
    ("name", "entries", "skipped"),
    [
        pytest.param("model.layers.1.mlp.down_proj", ["down_proj"], True, id="component"),
        pytest.param("model.layers.1.mlp.down_proj", ["model.layers.1"], True, id="start"),
        pytest.param("model.layers.11.mlp.down_proj", ["model.layers.1"], False, id="start within a component"),
        pytest.param("model.layers.1.mlp.down_proj", ["layers.1"], False, id="middle"),
        pytest.param("model.layers.1.mlp.down_proj", ["proj", "mlp.down_proj", "^model"], False, id="no match"),
        pytest.param("lm_head", ["lm_head"], True, id="whole"),
        pytest.param("lm_head", [], False, id="nothing"),
    ],
)
def test_skipped(name: str, entries: list[str], skipped: bool) -> None:
    """An entry is a component of the name, or its start up to a dot; nothing is a regular expression."""
    assert skipped_by_vllm(name, entries) is skipped


def test_nothing_to_say() -> None:
    """A llama that is quantized alike loads."""
    assert _notes("name: x") == []
    assert _notes('skip_modules: ["**.self_attn"]') == []


def test_own_container() -> None:
    """The own container is none of vLLM's, chosen or needed."""
    assert [code for code, _ in _notes("name: x", container="rulequant")] == ["RQ451"]
    assert [code for code, _ in _notes('rules: [{modules: "**.mlp", scheme: int8}]')] == ["RQ451"]


def test_merged_layers() -> None:
    """Parts of a merged layer that are not decided alike are told by the name of the whole."""
    ((code, message),) = _notes('skip_modules: ["**.k_proj"]')
    assert code == "RQ452"
    assert message == (
        "vLLM merges the parts of model.layers.0.self_attn.qkv_proj, which are not quantized alike "
        "(q_proj nf4, k_proj not, v_proj nf4), and so 1 more"
    )
    ((_, message),) = _notes('skip_modules: ["model.layers.1.mlp.gate_proj"]')
    assert "the parts of model.layers.1.mlp.gate_up_proj" in message


def _with_experts() -> Inventory:
    tensors = (TensorInfo("gate_up_proj", (4, 64, 256), "bfloat16"), TensorInfo("down_proj", (4, 128, 64), "bfloat16"))
    experts = ModuleInfo("model.layers.0.experts", "Llama4TextExperts", "experts", tensors, stock_linears=True)
    return of(*llama().modules, experts, model_type="llama4")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param('quantizable_types: [Linear, "*Experts"]', None, id="nf4"),
        pytest.param("quantizable_types: [Linear]", "stays as it is", id="kept"),
        pytest.param(
            'quantizable_types: [Linear, "*Experts"]\nschemes: {nf4: {method: bnb_4bit, quant_type: fp4}}\nscheme: nf4',
            "has the scheme `nf4`", id="fp4",
        ),
        pytest.param(
            'quantizable_types: [Linear, "*Experts"]\nschemes: {int8: {method: bnb_int8}}\nscheme: int8',
            "has the scheme `int8`", id="int8",
        ),
    ],
)  # fmt: skip
def test_experts(text: str, found: str | None) -> None:
    """Experts are NF4, or vLLM does not load them."""
    notes = _notes(text, _with_experts())
    expected = [("RQ453", f"vLLM takes all fused experts for NF4, and model.layers.0.experts {found}")]
    assert notes == (expected if found else [])


def test_storage() -> None:
    """Packed bytes in another dtype are told with the scheme."""
    ((code, message),) = _notes("schemes: {a: {method: bnb_4bit, quant_storage: bfloat16}}\nscheme: a")
    assert (code, message) == ("RQ454", "vLLM takes packed bytes for uint8, and `a` stores them as bfloat16")
