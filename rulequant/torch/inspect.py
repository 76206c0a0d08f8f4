"""The inventory of an `nn.Module`, on meta or real: names, tensors, ties, and what the model declares of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from rulequant.errors import ModelError
from rulequant.inventory import Inventory, Kind, LayerIndex, ModuleInfo, TensorInfo
from rulequant.torch.experts import expert_parameters
from rulequant.torch.initial_readers import initial_reads
from rulequant.torch.standins import obstacle
from rulequant.torch.stock_experts import stock_linears
from rulequant.torch.weight_readers import weight_reads

__all__ = ["inspect_model", "is_conv1d", "kind_of", "with_dtypes"]

_HEAD_ROOT = re.compile(r"For(?!ConditionalGeneration|CausalLM|PreTraining)[A-Z]")
"""Names of model classes whose direct Linear children are heads even where no base model can be told apart."""


@dataclass
class _Visit:
    """One module as the walk meets it."""

    name: str
    module: nn.Module
    layer: LayerIndex | None
    aliases: list[str] = field(default_factory=list)
    reader: str | None = None


def inspect_model(model: nn.Module, *, name: str | None = None) -> Inventory:
    """Take the inventory of a model; nothing of it is changed and no weight is read.

    `name` is how messages call the model; its class by default.
    """
    visits = _walk(model)
    outputs = _output_embeddings(model)
    roots = _roots(visits)
    context = _Context(
        owners=_tensor_owners(visits),
        outputs={id(each) for each in outputs},
        output_parameters={id(each) for module in outputs for each in module.parameters()},
        heads={id(each) for _, root in roots for each in _output_heads(root)},
        keep=tuple(
            (prefix, declared, _is_of_diffusers(root)) for prefix, root in roots if (declared := _keep_in_fp32(root))
        ),
    )
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return Inventory(
        model=name or type(model).__name__,
        modules=tuple(_info(visit, context) for visit in visits),
        model_type=model_type if isinstance(model_type, str) and model_type else None,
        architecture=type(model).__name__,
        versions=_versions(type(model)),
    )


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' `Conv1D`, a linear layer with a transposed weight."""
    return any(
        each.__name__ == "Conv1D" and each.__module__ == "transformers.pytorch_utils" for each in type(module).__mro__
    )


@dataclass(frozen=True)
class _Context:
    owners: dict[int, str]
    outputs: set[int]
    output_parameters: set[int]
    heads: set[int]
    keep: tuple[tuple[str, tuple[str, ...], bool], ...]
    """(prefix of a model's name, what it declares to be kept in float32, whether it is one of diffusers)."""


def _walk(model: nn.Module) -> list[_Visit]:
    """All modules in the order of `named_modules()`, each once, with every name it goes by."""
    seen: dict[int, _Visit] = {}
    _visit(seen, "", model, None, frozenset())
    visits = list(seen.values())
    _mark_readers(visits)
    return visits


# No closure inside `_walk`: one that calls itself is a reference cycle, which would keep the weights alive.
def _visit(
    seen: dict[int, _Visit], name: str, module: nn.Module, layer: LayerIndex | None, path: frozenset[int]
) -> None:
    known = seen.get(id(module))
    if known:
        known.aliases.append(name)
    else:
        seen[id(module)] = _Visit(name, module, layer)
    if id(module) in path:  # a module that contains itself
        return
    stack = isinstance(module, nn.ModuleList) and layer is None
    for index, (segment, child) in enumerate(module._modules.items()):
        if child is not None:
            inner = LayerIndex(index, len(module._modules)) if stack else layer
            _visit(seen, f"{name}.{segment}" if name else segment, child, inner, path | {id(module)})


def _mark_readers(visits: list[_Visit]) -> None:
    by_module = {id(each.module): each for each in visits}
    for visit in visits:
        for path, reader in weight_reads(visit.module).items():
            for target in _descend(visit.module, path.split(".")):
                by_module[id(target)].reader = reader
    for visit in visits:
        for target, reader in initial_reads(visit.module):
            if kind_of(target) in {"embedding", "convolution"}:  # others only have the scale of what is drawn from it
                by_module[id(target)].reader = reader


def _descend(module: nn.Module, path: list[str]) -> Iterator[nn.Module]:
    """The modules at a path below a module; `*` in it is any child."""
    if not path:
        yield module
        return
    for name, child in module._modules.items():
        if child is not None and path[0] in {name, "*"}:
            yield from _descend(child, path[1:])


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """(local name, tensor, whether it is a buffer) of all that a checkpoint holds of a module itself."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter, False
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer, True


def _tensor_owners(visits: list[_Visit]) -> dict[int, str]:
    """The full name under which each tensor object comes first."""
    owners: dict[int, str] = {}
    for visit in visits:
        for name, tensor, _ in _tensors(visit.module):
            owners.setdefault(id(tensor), f"{visit.name}.{name}" if visit.name else name)
    return owners


def _info(visit: _Visit, context: _Context) -> ModuleInfo:
    module, tensors = visit.module, list(_tensors(visit.module))
    is_output = id(module) in context.outputs
    return ModuleInfo(
        name=visit.name,
        type=type(module).__name__,
        kind=kind_of(module),
        tensors=tuple(_tensor_info(visit.name, *each, context) for each in tensors),
        aliases=tuple(visit.aliases),
        layer=visit.layer,
        output_embedding=is_output,
        output_head=id(module) in context.heads and not is_output,
        shares_output_embedding=not is_output and any(id(each) in context.output_parameters for _, each, _ in tensors),
        keep_in_fp32=bool(tensors) and any(_kept(visit.name, *each) for each in context.keep),
        stock_linears=stock_linears(module),
        weight_reader=visit.reader,
        obstacle=obstacle(module),
    )


def _tensor_info(module: str, name: str, tensor: torch.Tensor, buffer: bool, context: _Context) -> TensorInfo:
    full = f"{module}.{name}" if module else name
    if is_lazy(tensor):
        raise ModelError(
            f"`{full}` has no shape yet: its module is initialized by its first forward pass",
            remedy="run the model once before",
        )
    owner = context.owners[id(tensor)]
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorInfo(name, tuple(tensor.shape), dtype, buffer=buffer, tied_to=owner if owner != full else None)


def kind_of(module: nn.Module) -> Kind:
    """How a module uses its weight."""
    if expert_parameters(module):
        return "experts"
    if module._modules:  # adapters, parametrizations: there is more to it than its own weight
        return "other"
    if is_conv1d(module):
        return "conv1d"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution"
    return "other"


def _output_embeddings(model: nn.Module) -> list[nn.Module]:
    """The output embeddings of the model and of every model inside it."""
    found: dict[int, nn.Module] = {}
    for module in model.modules():
        for each in _declared_output(module):
            found.update((id(inner), inner) for inner in each.modules())
    return list(found.values())


def _declared_output(module: nn.Module) -> Iterable[nn.Module]:
    getter = getattr(module, "get_output_embeddings", None)
    if not callable(getter):
        return ()
    try:
        found = getter()
    except (NotImplementedError, AttributeError, TypeError):
        return ()
    candidates = found if isinstance(found, list | tuple) else [found]
    return [each for each in candidates if isinstance(each, nn.Module)]


def _roots(visits: list[_Visit]) -> list[tuple[str, nn.Module]]:
    """(prefix of the names, model) of the outermost models of transformers and diffusers: itself, or those it wraps."""
    found: list[tuple[str, nn.Module]] = []
    for visit in visits:
        declares = hasattr(type(visit.module), "base_model_prefix") or _is_of_diffusers(visit.module)
        if declares and not any(visit.name.startswith(prefix) for prefix, _ in found):
            found.append((f"{visit.name}." if visit.name else "", visit.module))
    return found


def _is_of_diffusers(module: nn.Module) -> bool:
    return any(
        each.__module__.startswith("diffusers.models.") and each.__name__ == "ModelMixin"
        for each in type(module).__mro__
    )


def _output_heads(model: nn.Module) -> Iterator[nn.Module]:
    """The Linear layers of heads: direct children of the model beside its base model, and those in ...Head modules."""
    base = getattr(model, "base_model", model)
    separate = isinstance(base, nn.Module) and base is not model
    if not separate and not _HEAD_ROOT.search(type(model).__name__):
        return
    for child in model.children():
        if child is base:
            continue
        if isinstance(child, nn.Linear):
            yield child
        elif separate and "Head" in type(child).__name__:
            yield from (each for each in child.modules() if isinstance(each, nn.Linear))


def _keep_in_fp32(model: nn.Module) -> tuple[str, ...]:
    declared: set[str] = set()
    for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
        declared |= set(getattr(model, attribute, None) or ())
    return tuple(sorted(declared))


def _kept(name: str, prefix: str, declared: tuple[str, ...], of_diffusers: bool) -> bool:
    """Whether a module would be kept for this declaration: by transformers' own matcher, so that both agree.

    diffusers keeps what has it for one segment of its name (`load_model_dict_into_meta`).
    """
    if not name.startswith(prefix):
        return False
    local = name.removeprefix(prefix)
    if of_diffusers:
        return not set(declared).isdisjoint(local.split("."))
    from transformers.quantizers.quantizers_utils import should_convert_module  # only its models declare

    return not should_convert_module(local, list(declared))


def _versions(model_class: type[Any]) -> dict[str, str]:
    packages = {"torch", model_class.__module__.split(".")[0]} & {"torch", "transformers", "diffusers"}
    return {each: metadata.version(each) for each in sorted(packages)}


def with_dtypes(inventory: Inventory, dtypes: dict[str, str]) -> Inventory:
    """The inventory with other dtypes for some tensors, by full name, as a checkpoint will store them."""

    def change(info: ModuleInfo) -> ModuleInfo:
        tensors = tuple(
            replace(each, dtype=dtypes.get(f"{info.name}.{each.name}" if info.name else each.name, each.dtype))
            for each in info.tensors
        )
        return replace(info, tensors=tensors)

    return replace(inventory, modules=tuple(change(each) for each in inventory.modules))
