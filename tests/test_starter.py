"""The rule file to start from: it validates cleanly, plans without errors, and says what the model has."""

from __future__ import annotations

from dataclasses import replace

import pytest
from inventories import check, linear, llama, norm, of

from rulequant.across import check_across
from rulequant.inventory import Inventory, LayerIndex, ModuleInfo, TensorInfo
from rulequant.lint import lint
from rulequant.loader import Loader
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.starter import starter_text


def _routed() -> Inventory:
    """A mixture of experts with Linear routers, of a type that has no bundled file."""
    layers = []
    for index in range(2):
        name, layer = f"model.layers.{index}.mlp", LayerIndex(index, 2)
        layers += [
            linear(f"{name}.gate", 8, 64, layer=layer),
            ModuleInfo(f"{name}.experts", "ModuleList", layer=layer),
            *(linear(f"{name}.experts.{expert}.up", 512, 64, layer=layer) for expert in range(8)),
            linear(f"{name}.gate_proj", 64, 64, layer=layer),
        ]
    return of(*layers, norm("model.norm"), model="routed", model_type="my_moe", architecture="MyMoe")


def _two_towers() -> Inventory:
    """A language model beside a vision tower."""
    return of(
        ModuleInfo("model.visual", "Tower"),
        linear("model.visual.fc", 64, 64),
        linear("model.language.fc", 64, 64),
        model="towers",
        model_type="my_vlm",
    )


def _custom() -> Inventory:
    """Heavy classes of its own: one that works like a Linear, and one that no method can hold."""
    own = linear("fc", 64, 64, type="MyLinear")
    odd = ModuleInfo("odd", "MyGrid", tensors=(TensorInfo("weight", (8, 8, 8, 8), "float32"),))
    return of(own, odd, linear("other", 64, 64), model="custom")


def _encoder() -> Inventory:
    """A BERT with a pooler, which the bundled file skips."""
    layers = [linear(f"encoder.layer.{index}.fc", 64, 64, layer=LayerIndex(index, 2)) for index in range(2)]
    return of(*layers, linear("pooler.dense", 8, 8), model="bert", model_type="bert", architecture="BertModel")


MODELS = {
    "encoder": _encoder(),
    "llama": llama(),
    "tied": llama(tied=True),
    "unknown type": replace(llama(), model_type="llama99"),
    "no type": replace(llama(), model_type=None, architecture=None),
    "experts": _routed(),
    "towers": _two_towers(),
    "custom classes": _custom(),
    "subclass": of(linear("h.0.fc", 64, 64, type="FalconLinear"), model="falcon", model_type="my_falcon"),
    "nothing to quantize": of(norm("norm"), model="norm"),
    "odd names": replace(llama(), model="a\x1b[2K: #'\"", model_type="x: y"),
}
every_model = pytest.mark.parametrize("inventory", MODELS.values(), ids=MODELS.keys())


def _planned(text: str, inventory: Inventory) -> Plan:
    rules, diagnostics = check(text)
    assert diagnostics == []
    assert rules is not None
    return make_plan(rules, inventory)


@every_model
def test_validates_cleanly(inventory: Inventory) -> None:
    """Neither reading nor the checks without a model nor those with it have anything to say."""
    loader = Loader()
    loaded = loader.load_text(starter_text(inventory), file="rules.yaml")
    assert loaded is not None
    rules = loader.resolve(loaded)
    assert rules is not None
    chain = loader.chain(loaded)
    assert chain is not None
    findings = [*loader.diagnostics, *lint(chain, rules), *check_across(rules, [inventory])]
    assert [each.concise() for each in findings] == []


@every_model
def test_plans_without_errors(inventory: Inventory) -> None:
    """The plan is fine, its floor included."""
    assert _planned(starter_text(inventory), inventory).ok


@every_model
def test_every_proposal_is_a_rule_file(inventory: Inventory) -> None:
    """The commented entries are right too: without their `#` the file still loads."""
    lines = starter_text(inventory).splitlines()
    keys = ("quantizable_types:", "output_embeddings:", "skip_modules:", "remove_skips:", "rules:", "  - ", "    ")
    body = [line.replace("# ", "", 1) if line.lstrip().startswith("# ") and line.lstrip()[2:].startswith(keys) else line
            for line in lines if not line.startswith("#   ") or line[2:].startswith(("  - ", "    "))]  # fmt: skip
    text = "\n".join(line for line in body if not _is_table(line))
    rules, diagnostics = check(text)
    assert [each.concise() for each in diagnostics] == []
    assert rules is not None


def _is_table(line: str) -> bool:
    """A row of the table of classes, which looks like an entry without its sign."""
    return line.rstrip().endswith(("modules", "module")) and "%" in line


def test_extends_the_family() -> None:
    """A model with a bundled file gets that, and no `models` of its own."""
    text = starter_text(llama())
    assert "\nextends: llama" in text
    assert "\nmodels:" not in text


def test_names_inherited_skips() -> None:
    """Those that select something can be taken back by their patterns."""
    text = starter_text(_encoder())
    assert '\n# What bert skips is taken back by its patterns:\n# remove_skips: ["**.pooler"]\n' in text
    assert "remove_skips" not in starter_text(llama())


def test_says_why_it_is_not_the_family_s_file() -> None:
    """A family's file whose floor the model misses is not extended, and the reason is given."""
    odd = of(norm("norm"), linear("fc", 8, 8, kind="other", type="Odd"), model="odd", model_type="llama")
    text = starter_text(odd)
    assert "\n# llama, the bundled file of the family, does not fit: 0.00% of the parameters outside " in text
    assert "\nmodels: [llama]" in text


def test_extends_the_base() -> None:
    """A model without one gets the base of all, and its type as `models`."""
    text = starter_text(MODELS["unknown type"])
    assert "\nextends: causal_lm" in text
    assert "\nmodels: [llama99]" in text


def test_sets_a_floor_below_the_plan() -> None:
    """The floor is the share that is quantized now, cut to whole percents."""
    inventory = MODELS["unknown type"]
    plan = _planned(starter_text(inventory), inventory)
    floor = float(starter_text(inventory).rpartition("min_quantized: ")[2].split()[0])
    assert 0 < floor <= plan.summary["coverage"] < floor + 0.01


def test_no_floor_where_nothing_is_quantized() -> None:
    """A floor of 0 would say nothing."""
    assert "min_quantized" not in starter_text(MODELS["nothing to quantize"])


def test_keeps_routers() -> None:
    """A router beside experts stays, with the reason; a projection called gate_proj does not."""
    text = starter_text(_routed())
    assert '  - modules: "**.mlp.gate"\n    reason: ' in text
    plan = _planned(text, _routed())
    assert plan.by_name["model.layers.0.mlp.gate"].reason == "skip"
    assert plan.by_name["model.layers.0.mlp.gate_proj"].quantize


def test_no_router_no_skip() -> None:
    """A gate that chooses no experts is not touched."""
    assert "\nskip_modules:" not in starter_text(llama())


def test_proposes_towers() -> None:
    """A tower beside a language model is proposed as a skip, and not skipped."""
    text = starter_text(_two_towers())
    assert "#   - modules: model.visual\n" in text
    assert _planned(text, _two_towers()).by_name["model.visual.fc"].quantize


def test_lists_classes_that_the_scheme_can_hold() -> None:
    """A class that works like a Linear is listed where its name is known."""
    lines = starter_text(MODELS["subclass"]).splitlines()
    (types,) = (line for line in lines if line.startswith("quantizable_types: "))
    assert types.endswith(", FalconLinear]")


def test_says_why_a_heavy_class_stays() -> None:
    """What no method can hold is named with the reason."""
    assert "# MyGrid stays as it is: bnb_4bit has no layer for MyGrid" in starter_text(_custom())


@pytest.mark.parametrize(("tied", "said"), [(False, True), (True, False)], ids=["untied", "tied"])
def test_embeddings_are_mentioned_and_not_listed(tied: bool, said: bool) -> None:
    """A heavy table of its own can be listed, but is not by itself: the result needs rulequant to load."""
    text = starter_text(llama(tied=tied))
    assert ("# Embedding can be listed too; then only transformers with rulequant loads the result." in text) is said
    assert "Embedding" not in next(line for line in text.splitlines() if "quantizable_types: " in line)


def test_names_output_embeddings() -> None:
    """The output embedding is named, with the number of modules tied to it."""
    assert "# Output: lm_head (Linear). 1 module tied to it stays too." in starter_text(llama(tied=True))


def test_control_characters_are_escaped() -> None:
    """The model's own name cannot break out of its comment."""
    text = starter_text(MODELS["odd names"])
    assert "\x1b" not in text
    assert 'models: ["x: y"]' in text
