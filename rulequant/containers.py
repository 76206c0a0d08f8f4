"""Who is to load a checkpoint: plain transformers, where its bitsandbytes loader can express the plan, or rulequant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal, cast

from rulequant.diagnostics import Diagnostic, Severity
from rulequant.escaping import module_text
from rulequant.inventory import Inventory, ModuleInfo
from rulequant.plan import Decision, Plan
from rulequant.schemes import Bnb4bit, BnbInt8, Scheme
from rulequant.ties import find_ties
from rulequant.unfused import LAYOUT, expert_count, expert_linear
from rulequant.vllm import vllm_notes

__all__ = [
    "COMPONENT_REMEDY",
    "ContainerName",
    "component_obstacle",
    "container_problem",
    "in_container",
    "used_schemes",
]

ContainerName = Literal["auto", "bitsandbytes", "rulequant"]
_REMEDY = "let the container be `rulequant`, or change the rules"
COMPONENT_REMEDY = "let the container be `auto`, or change the rules: one kind of layers in each component"
_AROUND = "for use on a CPU: let the container be `rulequant`, choose int8 for them, or skip them with a reason"
_CODES = frozenset(
    {
        "RQ411",
        "RQ451",
        "RQ452",
        "RQ453",
        "RQ454",
        "RQ553",
        "RQ502",
        "RQ503",
        "RQ504",
        "RQ505",
        "RQ541",
        "RQ542",
        "RQ546",
        "RQ551",
        "RQ552",
    }
)
"""What is said about containers, and so is no longer true of another."""
_LISTED = 3


def in_container(
    plan: Plan, inventory: Inventory, wanted: ContainerName = "auto", *, problems: Iterable[Diagnostic] = ()
) -> Plan:
    """The plan with its container, the bytes there, and what stands in the way of it or of vLLM.

    `auto` is plain bitsandbytes wherever transformers can load that. `problems` are obstacles beside those that a plan
    and an inventory tell. A plan that quantizes nothing, or not a model of transformers, has no container; a model that
    a callable returned has rulequant's own, whatever it is.
    """
    others = tuple(each for each in plan.diagnostics if each.code not in _CODES)
    if inventory.called:
        return replace(plan, container="rulequant", diagnostics=(*others, *_called(inventory, wanted)))
    if "diffusers" in inventory.versions:  # whose own code tells, when a plan is applied, what it can load
        found = (*_cautions(plan, inventory), *_of_component(plan, inventory, wanted))
        return replace(plan, container=None, diagnostics=(*others, *found))
    if inventory.model_type is None or not any(plan.quantized):
        return replace(plan, container=None, diagnostics=others)
    obstacles = [*_obstacles(plan, inventory), *problems]
    name = wanted if wanted != "auto" else "rulequant" if obstacles else "bitsandbytes"
    placed = replace(plan, container=name, decisions=tuple(_placed(plan, inventory, plain=name == "bitsandbytes")))
    said = obstacles if name == "bitsandbytes" and obstacles else vllm_notes(placed, inventory)
    cautions = [*_cautions(placed, inventory), *_expert_cautions(placed, inventory)] if name == "bitsandbytes" else []
    return replace(placed, diagnostics=(*others, *cautions, *said))


def _called(inventory: Inventory, wanted: ContainerName) -> Iterator[Diagnostic]:
    """What stands in the way of the container that is wanted for a model that has no config.json."""
    if wanted == "bitsandbytes":
        message = f"{inventory.model} is no checkpoint folder, and transformers loads no other"
        yield Diagnostic("RQ541", message, remedy="let the container be `auto`")


def _of_component(plan: Plan, inventory: Inventory, wanted: ContainerName) -> Iterator[Diagnostic]:
    """What a component of diffusers cannot have, and what its loader takes an import for."""
    other = next((each for each in plan.quantized if inventory.by_name[each.name].kind != "linear"), None)
    if other:
        message = f"with diffusers only `Linear` may be quantized, and `{other.name}` is a {other.type}"
        yield Diagnostic("RQ542", message, remedy=f"take {other.type} out of `quantizable_types`")
    obstacle = component_obstacle(plan)
    if obstacle and wanted == "bitsandbytes":
        yield Diagnostic("RQ542", obstacle, remedy=COMPONENT_REMEDY)
    elif obstacle:
        message = f"diffusers loads the output after `import rulequant.torch.diffusers` alone: {obstacle}"
        yield Diagnostic("RQ546", message, severity=Severity.NOTE)


def component_obstacle(plan: Plan) -> str | None:
    """What the own loader of diffusers cannot express."""
    used = used_schemes(plan)
    for name, scheme in used.items():
        if not isinstance(scheme, Bnb4bit | BnbInt8):
            return f"diffusers does not know the method `{scheme.method}` (`{name}` on {_module_with(plan, name)})"
        if getattr(scheme, "quant_storage", "uint8") != "uint8":
            return f"diffusers loads 4-bit weights with `quant_storage: uint8` only (`{name}`)"
    for setting in ("method", "compute_dtype", "threshold"):
        values = {getattr(scheme, setting, None): name for name, scheme in used.items()}
        if len(values) > 1:
            listed = ", ".join(f"{value} on {_module_with(plan, name)}" for value, name in values.items())
            return f"all layers of a component share one `{setting}` in diffusers: {listed}"
    return None


def _module_with(plan: Plan, scheme: str) -> str:
    return next(each.name for each in plan.quantized if each.scheme == scheme)


def container_problem(code: str, message: str) -> Diagnostic:
    """An obstacle to a plain bitsandbytes checkpoint."""
    return Diagnostic(code, message, remedy=_REMEDY)


def used_schemes(plan: Plan) -> dict[str, Scheme]:
    """The schemes that some module gets, in the order of the model."""
    names = dict.fromkeys(cast(str, each.scheme) for each in plan.quantized)
    return {name: plan.schemes[name] for name in names}


def _placed(plan: Plan, inventory: Inventory, *, plain: bool) -> Iterator[Decision]:
    """The decisions with the bytes of a container: experts that are taken apart have records of their own each."""
    for each in plan.decisions:
        info = inventory.by_name[each.name]
        if not (info.stock_linears and each.scheme):
            yield each
            continue
        scheme = plan.schemes[each.scheme]
        nbytes = _apart(info, scheme) if plain else scheme.bytes_after(info)
        yield replace(each, bytes_after=nbytes)


def _apart(info: ModuleInfo, scheme: Scheme) -> int:
    one = sum(scheme.bytes_after(expert_linear(info, 0, matrix)) for matrix in LAYOUT)
    return expert_count(info) * one


def _cautions(plan: Plan, inventory: Inventory) -> Iterator[Diagnostic]:
    """What stock layers get wrong or refuse, as the schemes tell, once for all modules of which they tell the same."""
    layers = [(each, plan.schemes[str(each.scheme)], inventory.by_name[each.name]) for each in plan.quantized]
    single = [each for each in layers if not each[2].stock_linears]
    yield from _told("RQ411", Severity.WARNING, ((each, scheme.caution(info)) for each, scheme, info in single))
    yield from _told("RQ413", Severity.NOTE, ((each, scheme.confined(info)) for each, scheme, info in single))


def _told(code: str, severity: Severity, said: Iterable[tuple[Decision, str | None]]) -> Iterator[Diagnostic]:
    found: dict[tuple[str | None, str], list[Decision]] = {}
    for each, text in said:
        if text:
            found.setdefault((each.scheme, text), []).append(each)
    for (_, text), group in found.items():
        more = len(group) - 1
        others = f" and {more:,} other module{'s' if more > 1 else ''}" if more else ""
        name, place = group[0].name, group[0].rule
        yield Diagnostic(code, f"{module_text(name)}{others}: {text}", place, severity, value=name, remedy=_AROUND)


def _expert_cautions(plan: Plan, inventory: Inventory) -> Iterator[Diagnostic]:
    """The same of the Linear layers that an expert is taken apart into, of the first of which there is something."""
    for each in plan.quantized:
        info, scheme = inventory.by_name[each.name], plan.schemes[str(each.scheme)]
        for matrix in LAYOUT if info.stock_linears else ():
            linear = expert_linear(info, 0, matrix)
            if text := scheme.caution(linear):
                yield Diagnostic("RQ552", f"`{linear.name}`: {text}", severity=Severity.WARNING, remedy=_AROUND)
                return


def _obstacles(plan: Plan, inventory: Inventory) -> Iterator[Diagnostic]:
    """All that keeps the plan out of a plain bitsandbytes checkpoint, each with modules that stand in the way."""
    used = used_schemes(plan)
    known = {name: each for name, each in used.items() if isinstance(each, Bnb4bit | BnbInt8)}
    for name in used.keys() - known.keys():
        yield container_problem(
            "RQ502",
            f"transformers' bitsandbytes loader does not know the method `{used[name].method}` "
            f"({_example(plan, name)})",
        )
    methods = {each.method: name for name, each in known.items()}
    if len(methods) > 1:
        examples = ", ".join(_example(plan, name) for _, name in sorted(methods.items()))
        yield container_problem("RQ503", f"a bitsandbytes checkpoint holds 4-bit or int8 modules, not both: {examples}")
    else:
        yield from _shared_settings(plan, inventory, known)
    yield from _foreign_modules(plan, inventory)
    yield from _shared_weights(plan, inventory)


def _shared_settings(plan: Plan, inventory: Inventory, used: Mapping[str, Scheme]) -> Iterator[Diagnostic]:
    for setting in ("threshold", "compute_dtype", "quant_storage"):
        values = {_setting(each, setting, plan, inventory): name for name, each in used.items()}
        if len(values) > 1:
            examples = ", ".join(f"{value} for {_example(plan, name)}" for value, name in values.items())
            message = f"all modules of a bitsandbytes checkpoint share one `{setting}`: {examples}"
            yield container_problem("RQ504", message)


def _setting(scheme: Scheme, name: str, plan: Plan, inventory: Inventory) -> object:
    value: object = getattr(scheme, name, None)
    if (name, value) != ("compute_dtype", "auto"):
        return value
    first = next(iter(plan.quantized))
    return inventory.by_name[first.name].tensors[0].dtype


def _foreign_modules(plan: Plan, inventory: Inventory) -> Iterator[Diagnostic]:
    """Modules that the loader does not replace: it knows `nn.Linear` itself, `Conv1D`, and experts of Llama 4."""
    foreign: dict[str, list[str]] = {}
    for each in plan.quantized:
        info = inventory.by_name[each.name]
        if not ((info.kind == "linear" and info.type == "Linear") or info.kind == "conv1d" or info.stock_linears):
            foreign.setdefault(info.type, []).append(info.name)
        elif info.aliases:
            yield container_problem(
                "RQ551",
                f"transformers' bitsandbytes loader replaces {info.name} only there, and not as {info.aliases[0]}",
            )
    for kind, names in foreign.items():
        yield container_problem(
            "RQ551", f"transformers' bitsandbytes loader makes no quantized layer of the class {kind}: {_listed(names)}"
        )


def _shared_weights(plan: Plan, inventory: Inventory) -> Iterator[Diagnostic]:
    """Modules that share a weight, unless it is a 4-bit one and they have no bias: with those the loader is right.

    The first int8 layer that runs takes the scales out of the weight, and the second takes the values for full ones;
    and where transformers ties weights it adds zeros to the bias, one for each row of the packed weight.
    """
    spoilt: dict[str, list[str]] = {}
    for names in dict.fromkeys(find_ties(inventory).twins.values()):
        decision = plan.by_name[names[0]]
        scheme = plan.schemes[decision.scheme] if decision.scheme else None
        if isinstance(scheme, BnbInt8):
            spoilt.setdefault("the scales of an int8 weight only to one of the layers that share it", []).append(
                " = ".join(names)
            )
        elif isinstance(scheme, Bnb4bit) and any(inventory.by_name[each].tensor("bias") for each in names):
            spoilt.setdefault("a wrong bias to layers that share a 4-bit weight", []).append(" = ".join(names))
    for what, groups in spoilt.items():
        yield container_problem("RQ551", f"transformers' bitsandbytes loader gives {what}: {_listed(groups)}")


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more:,} more" if more > 0 else "")


def _example(plan: Plan, scheme: str) -> str:
    names = [each.name for each in plan.quantized if each.scheme == scheme]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"`{scheme}` on {names[0]}{more}"
