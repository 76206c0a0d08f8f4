"""The bundled rule files: their form, and what each makes of every architecture of its family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from family_models import BESIDE, CONFIGS, SIBLINGS, UNBUILT
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rulequant.bundled import PREFIX, bundled_names, bundled_path
from rulequant.inventory import Inventory
from rulequant.loader import check_rules, load_rules
from rulequant.plan import Plan
from rulequant.planner import make_plan
from rulequant.selection import select
from rulequant.torch.inspect import inspect_model

MODELINE = "# yaml-language-server: $schema=../schemas/ruleset.v1.schema.json"

FAMILIES = tuple(name for name in bundled_names() if load_rules(name).models)
BASES = tuple(name for name in bundled_names() if name not in FAMILIES)


@dataclass(frozen=True)
class Built:
    """What the tests need of a model once it is gone."""

    inventory: Inventory
    outputs: frozenset[str]
    """All names of the output embeddings."""
    base: str | None
    """The name of the base model inside; None where the model is its own."""


@dataclass(frozen=True)
class Family:
    """A rule file, and each architecture and published size of its model types by the name it has here."""

    name: str
    built: dict[str, Built]
    plans: dict[str, Plan]


def _architectures(model_type: str) -> Iterator[str]:
    """The model classes that transformers' auto classes give for a model type, each once."""
    mappings = (
        vars(modeling_auto)[name]
        for name in sorted(vars(modeling_auto))
        if name.endswith("_NAMES") and "BACKBONE" not in name  # parts of detectors, with settings of their own
    )
    known = (mapping[model_type] for mapping in mappings if model_type in mapping)
    names = (name for each in known for name in ([each] if isinstance(each, str) else each))
    for name in dict.fromkeys((*names, *BESIDE.get(model_type, ()))):
        model_class = getattr(transformers, name, None)
        # A type of several modalities is given the text model too, which has a config and a type of its own.
        if getattr(model_class, "config_class", None) is CONFIG_MAPPING[model_type]:
            yield name


def _build(architecture: str, config: dict[str, Any]) -> Built:
    """A model on meta, by the defaults of its config where nothing is said."""
    model_class = getattr(transformers, architecture)
    with torch.device("meta"):
        model = model_class(model_class.config_class(**config))
    output = model.get_output_embeddings()
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is output]
    return Built(
        inventory=inspect_model(model),
        outputs=frozenset(names) if output is not None else frozenset(),
        base=model.base_model_prefix if model.base_model is not model else None,
    )


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    """Every architecture of a family's model types by its default config, and the published sizes, planned."""
    rules = load_rules(request.param)
    built = {
        f"{model_type} {architecture}": _build(architecture, CONFIGS.get(architecture, CONFIGS.get(model_type, {})))
        for model_type in rules.models
        if model_type not in UNBUILT
        for architecture in _architectures(model_type)
    }
    built |= {
        label: _build(each.architecture, each.config) for label, each in SIBLINGS.items() if each.rules == request.param
    }
    return Family(
        request.param, built, {label: make_plan(rules, each.inventory, None) for label, each in built.items()}
    )


def _text(name: str) -> str:
    path = bundled_path(name)
    assert path is not None
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", bundled_names())
def test_loads_without_findings(name: str) -> None:
    """A bundled file and all that it extends give neither errors nor warnings."""
    rules, diagnostics = check_rules(name)
    assert diagnostics == []
    assert rules is not None
    assert rules.name == name


@pytest.mark.parametrize("name", bundled_names())
def test_says_what_it_is(name: str) -> None:
    """A bundled file has the editor's modeline, a comment of its own, and one sentence of description."""
    first, *lines = _text(name).splitlines()
    assert first == MODELINE
    assert any("# " in line for line in lines)
    description = load_rules(name).description
    assert description is not None
    assert description.endswith(".")
    assert ". " not in description
    assert f"\nname: {name}\n" in _text(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_has_floor(name: str) -> None:
    """A family file says which share of the layers it quantizes at least, in its own lines."""
    assert "\nexpect:\n" in _text(name)
    floor = load_rules(name).expect.min_quantized_layers
    assert floor is not None
    assert floor > 1 / 3  # the vision tower of a small model is larger than its language model


@pytest.mark.parametrize("name", BASES)
def test_base_is_for_any_model(name: str) -> None:
    """A base sets neither a family nor a floor, which whoever extends it would inherit."""
    rules = load_rules(name)
    assert rules.models == ()
    assert rules.expect.model_fields_set == set()


def test_model_types_are_real_and_claimed_once() -> None:
    """No two files are for the same model type, and transformers knows all of them."""
    claimed = [model_type for name in FAMILIES for model_type in load_rules(name).models]
    assert len(set(claimed)) == len(claimed)
    assert set(claimed) <= set(CONFIG_MAPPING)


@pytest.mark.parametrize("name", bundled_names())
def test_skips_have_reasons(name: str) -> None:
    """Every skip of a bundled file says why, for `plan` and `why` to print."""
    assert [each.location for each in load_rules(name).skips if not each.selector.reason] == []


def test_builds_all_models(family: Family) -> None:
    """Each model type that a file is for is planned below in one architecture at least."""
    models = set(load_rules(family.name).models)
    assert {each.inventory.model_type for each in family.built.values()} == models - UNBUILT


def test_plans_without_findings(family: Family) -> None:
    """A family's file plans each of its architectures and sizes without a finding, its floor included."""
    findings = {
        # Default configs have odd sizes.
        label: [each.concise() for each in plan.diagnostics if each.code not in {"RQ411", "RQ413"}]
        for label, plan in family.plans.items()
    }
    assert {label: each for label, each in findings.items() if each} == {}
    assert all(plan.summary["quantized"] for plan in family.plans.values())


def test_skips_select_something(family: Family) -> None:
    """No pattern of the file itself is dead: in some architecture or size of the family it selects a module."""
    rules = load_rules(family.name)
    uses = [
        use
        for each in family.built.values()
        for use in select(rules, each.inventory).uses
        if use.entry.location.file == f"{PREFIX}{family.name}"
    ]
    alive = {use.glob.text for use in uses if use.weighty}
    assert {use.glob.text for use in uses} <= alive


def test_heads_stay(family: Family) -> None:
    """Output embeddings stay, and so does all else outside the base model."""
    for label, built in family.built.items():
        quantized = {each.name for each in family.plans[label].quantized}
        assert quantized.isdisjoint(built.outputs), label
        if built.base:
            assert {name for name in quantized if not name.startswith(f"{built.base}.")} == set(), label


def test_published_sizes(family: Family) -> None:
    """Exactly the expected layers of the published sizes are quantized."""
    expected = {label: each.quantized for label, each in SIBLINGS.items() if each.rules == family.name}
    assert {label: family.plans[label].summary["quantized"] for label in expected} == expected
