"""The components of a pipeline taken as one model, whose modules have the component's name before theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from rulequant.checks import in_layers, quantized_share
from rulequant.inventory import Inventory, ModuleInfo, TensorInfo
from rulequant.pipeline_plan import PipelinePlan, in_component
from rulequant.plan import Decision, Plan

__all__ = ["as_one_model"]

_COPIED = "the rules do not name the component, so it is copied"


def as_one_model(plan: PipelinePlan, components: Mapping[str, Inventory]) -> tuple[Plan, Inventory]:
    """The plan of these components as one, and their inventory; those that the plan copies stay as they are."""
    plans = {name: plan.components.get(name) or _kept(each) for name, each in components.items()}
    merged, inventory = replace(plan, components=plans).merged, _joined(plan, components)
    inside = [each for each in merged.decisions if in_layers(inventory.by_name[each.name])]
    return replace(merged, layer_coverage=quantized_share(inside)), inventory


def _kept(inventory: Inventory) -> Plan:
    """The plan of a component that stays as it is."""
    decisions = tuple(
        Decision(each.name, each.type, each.parameters, each.nbytes, each.nbytes, reason="skip", detail=_COPIED)
        for each in inventory.owners
    )
    return Plan(inventory.model, "", "", decisions, {})


def _joined(plan: PipelinePlan, components: Mapping[str, Inventory]) -> Inventory:
    return Inventory(
        plan.model,
        tuple(info for name, each in components.items() for info in _modules(each.modules, name)),
        architecture=plan.pipeline,
        versions={package: version for each in components.values() for package, version in each.versions.items()},
    )


def _modules(modules: Iterable[ModuleInfo], component: str) -> Iterator[ModuleInfo]:
    for each in modules:
        yield replace(
            each,
            name=in_component(component, each.name),
            aliases=tuple(in_component(component, alias) for alias in each.aliases),
            tensors=tuple(_tensor(tensor, component) for tensor in each.tensors),
        )


def _tensor(tensor: TensorInfo, component: str) -> TensorInfo:
    return replace(tensor, tied_to=in_component(component, tensor.tied_to)) if tensor.tied_to else tensor
