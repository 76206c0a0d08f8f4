"""What a change of the rules, or of the model since a lock, changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from inventories import changed, linear, llama, norm, of, ruleset, weight

from rulequant.inventory import Inventory
from rulequant.lock_file import make_lock
from rulequant.plan import Plan
from rulequant.plan_diff import PlanDiff, compare, compare_locks
from rulequant.planner import make_plan

SCHEMES = "schemes: {nf4: {method: bnb_4bit}, int8: {method: bnb_int8}}\n"


def _plan(text: str) -> Plan:
    return make_plan(ruleset(text), llama())


@pytest.mark.parametrize(
    ("a", "b", "changed"),
    [
        pytest.param("scheme: nf4", "scheme: nf4", 0, id="the same"),
        pytest.param("scheme: nf4", "scheme: int8", 14, id="another scheme"),
        pytest.param("scheme: nf4", 'skip_modules: ["**.o_proj"]', 2, id="a skip"),
        pytest.param('skip_modules: ["**.o_proj"]', 'skip_modules: ["**.o_pro[j]"]', 0, id="the same in other words"),
        pytest.param("scheme: nf4", "quantizable_types: [Conv1D]", 14, id="another class"),
        pytest.param('skip_modules: ["**.o_proj"]', "quantizable_types: [Conv1D]", 14, id="another reason"),
    ],
)  # fmt: skip
def test_changes(a: str, b: str, changed: int) -> None:
    """The modules that get another scheme, or stay for another reason."""
    texts = [SCHEMES + (each if "scheme:" in each else f"scheme: nf4\n{each}") for each in (a, b)]
    found = compare(*(_plan(each) for each in texts))
    assert len([each for each in found.changes if each.before.type == "Linear" and each.name != "lm_head"]) == changed


def test_a_scheme_counts_by_its_settings() -> None:
    """A new name for the same settings changes nothing; other settings under the name do."""
    a = _plan("schemes: {x: {method: bnb_4bit}}\nscheme: x")
    b = _plan("schemes: {y: {method: bnb_4bit}}\nscheme: y")
    c = _plan("schemes: {x: {method: bnb_4bit, blocksize: 128}}\nscheme: x")
    assert compare(a, b).changes == ()
    assert len(compare(a, c).changes) == 14
    assert compare(a, c).schemes == ("x",)


def test_size() -> None:
    """The change of size is that of the plans, and has a sign."""
    small, large = _plan(SCHEMES + "scheme: nf4"), _plan(SCHEMES + "scheme: int8")
    found = compare(small, large)
    assert found.bytes_change == large.summary["bytes_after"] - small.summary["bytes_after"]
    assert found.bytes_change > 0
    assert compare(large, small).bytes_change == -found.bytes_change


def test_data() -> None:
    """The difference as data names both sides."""
    data = compare(_plan("models: [llama]"), _plan('skip_modules: ["**.layers.0.mlp.up_proj"]')).to_dict()
    assert data["format_version"] == 1
    (change,) = data["changes"]
    assert change["name"] == "model.layers.0.mlp.up_proj"
    assert change["a"]["scheme"] == "nf4"
    assert change["b"]["reason"] == "skip"
    assert change["b"]["rule"] == {"file": "rules.yaml", "line": 1}


def _since(old: Inventory, new: Inventory, text: str = "name: x") -> PlanDiff:
    return compare_locks(*(make_lock(make_plan(ruleset(text), each), each) for each in (old, new)))


def _renamed(inventory: Inventory, rename: Callable[[str], str]) -> Inventory:
    return of(*(replace(each, name=rename(each.name)) for each in inventory.modules))


def test_nothing_since_the_lock() -> None:
    """The same model and rules: no difference, and false."""
    found = _since(llama(), llama())
    assert not found
    assert (found.modules, found.bytes_change) == (0, 0)


def test_another_order_is_no_change() -> None:
    """Modules registered in another order are the same modules."""
    model = llama()
    assert not _since(model, replace(model, modules=model.modules[::-1]))


def test_renamed_modules() -> None:
    """Modules under another name are paired, those decided otherwise now among them."""
    new = _renamed(llama(), lambda name: name.replace("o_proj", "out_proj").replace("model.", "body."))
    found = _since(llama(), new, 'skip_modules: [{modules: "**.o_proj", optional: true}]')
    names = {each.name: each.after.name for each in found.renamed}
    assert names["model.layers.0.self_attn.o_proj"] == "body.layers.0.self_attn.out_proj"
    assert names["model.layers.1.self_attn.q_proj"] == "body.layers.1.self_attn.q_proj"
    assert names["model.norm"] == "body.norm"
    assert (found.removed, found.added, found.changes) == ((), (), ())
    moved = {each.name for each in found.renamed if each.before.scheme != each.after.scheme}
    assert moved == {f"model.layers.{index}.self_attn.o_proj" for index in range(2)}


def test_modules_added_and_removed() -> None:
    """What has no counterpart is gone or new, and the rest of a longer model is the same."""
    found = _since(llama(2), llama(3))
    assert {each.name.split(".")[2] for each in found.added} == {"2"}
    assert len(found.added) == 9
    assert found.bytes_change == sum(each.bytes_after for each in found.added)
    back = _since(llama(3), llama(2))
    assert [each.name for each in back.removed] == [each.name for each in found.added]
    merged = _since(of(linear("a.q", 64, 64), linear("a.k", 64, 64)), of(linear("a.qkv", 128, 64)))
    assert [each.name for each in (*merged.removed, *merged.added)] == ["a.q", "a.k", "a.qkv"]


def test_class_shape_and_dtype_count() -> None:
    """A module that is decided alike and is not the same any more is a change, and its tensors are told."""
    name = "model.layers.0.mlp.up_proj"
    for facts in (
        {"type": "Linear_"},
        {"tensors": (weight(129, 64),)},
        {"tensors": (weight(128, 64, dtype="float32"),)},
    ):
        (change,) = _since(llama(), changed(llama(), name, **facts)).changes
        assert change.contents is not None
        assert change.to_dict()["a"]["tensors"] == {"weight": "bfloat16[128,64]"}
        assert change.to_dict()["b"]["type"] == facts.get("type", "Linear")


def test_a_norm_that_became_another_class_and_name_is_no_rename() -> None:
    """Class and tensors tell a renamed module; otherwise one is gone and one is new."""
    found = _since(of(norm("a.norm")), of(replace(norm("a.norm_"), type="RMSNorm")))
    assert (len(found.removed), len(found.added), found.renamed) == (1, 1, ())


def test_since_as_data() -> None:
    """Every kind of difference is in the data."""
    new = _renamed(llama(), lambda name: name.replace("o_proj", "out_proj"))
    data = _since(llama(), of(*new.modules, norm("extra.norm", layer=None), linear("more", 8, 64))).to_dict()
    assert {each["name_after"] for each in data["renamed"]} >= {"model.layers.0.self_attn.out_proj"}
    assert {each["name"] for each in data["added"]} == {"more", "extra.norm"}
    assert data["removed"] == []
