"""The layers that a loader would make of an output's config.json, before any weight is read, against the plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from rulequant.diagnostics import Diagnostic
from rulequant.errors import ModelError
from rulequant.inventory import ModuleInfo
from rulequant.plan import Plan
from rulequant.schemes import Scheme
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.experts import ExpertWeights
from rulequant.torch.factories import factory_for
from rulequant.torch.skeleton import Skeleton
from rulequant.unfused import expert_linears

__all__ = ["check_layers", "prepare_layers"]


def prepare_layers(skeleton: Skeleton) -> nn.Module:
    """Make the skeleton's layers as `from_pretrained` makes them of its config, ready for the weights; in place.

    Raises:
        ModelError: the config has no quantization, or one that the installed packages cannot prepare.
    """
    if skeleton.dtypes is not None:
        return _prepared_by_diffusers(skeleton)
    from transformers.quantizers import AutoHfQuantizer

    import rulequant.torch.transformers  # noqa: F401  registers the method `rulequant`

    model = cast(Any, skeleton.model)
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        raise ModelError("config.json has no `quantization_config`, so its model would load with plain layers")
    try:
        quantizer = AutoHfQuantizer.from_config(config, pre_quantized=True)
        quantizer.preprocess_model(model=model, device_map={"": "cpu"}, dtype=skeleton.dtype)
    except Exception as error:  # whatever transformers raises for what it does not know
        raise ModelError(f"transformers cannot prepare the layers of config.json: {error}") from error
    return cast(nn.Module, model)


def _prepared_by_diffusers(skeleton: Skeleton) -> nn.Module:
    from diffusers.quantizers.auto import DiffusersAutoQuantizer

    import rulequant.torch.diffusers  # noqa: F401  registers the method `rulequant`
    from rulequant.torch.checkpoint.diffusion_container import as_diffusers_loads

    model = cast(Any, skeleton.model)
    settings = model.config.get("quantization_config")
    if settings is None:
        raise ModelError("config.json has no `quantization_config`, so its model would load with plain layers")
    try:
        if settings.get("quant_method") == "rulequant":
            DiffusersAutoQuantizer.from_config(settings, pre_quantized=True).preprocess_model(model=model)
            return cast(nn.Module, model)
        return as_diffusers_loads(model, settings)
    except Exception as error:  # whatever diffusers raises for what it does not know
        raise ModelError(f"diffusers cannot prepare the layers of config.json: {error}") from error


def check_layers(prepared: nn.Module, plain: Skeleton, plan: Plan) -> Iterator[Diagnostic]:
    """The modules of which a loader would make another layer than the plan says."""
    modules = dict(prepared.named_modules())
    loader = "transformers" if plain.dtypes is None else "diffusers"
    for name, wanted in _wanted(plain, plan):
        found = modules.get(name)
        if found is None or _describe(found) != _describe(wanted):
            text = f"{loader} would make {_words(found)} of `{printable(name)}`, the plan says {_words(wanted)}"
            yield Diagnostic("RQ536", text, value=name, remedy="make the output again with `rulequant apply`")


def _wanted(plain: Skeleton, plan: Plan) -> Iterator[tuple[str, nn.Module]]:
    """What the plan makes of each module, on meta, by its name in the output."""
    modules, inventory = dict(plain.model.named_modules()), plain.inventory()
    for decision in plan.decisions:
        info, scheme = inventory.by_name[decision.name], plan.schemes[decision.scheme] if decision.scheme else None
        if plan.container == "bitsandbytes" and info.stock_linears:
            for each in expert_linears(info):
                yield each.name, _layer(_linear(each, plain), scheme)
        else:
            yield decision.name, _layer(modules[decision.name], scheme)


def _layer(module: nn.Module, scheme: Scheme | None) -> nn.Module:
    return factory_for(scheme.method).build(module, scheme) if scheme else module


def _linear(info: ModuleInfo, plain: Skeleton) -> nn.Module:
    """A matrix of an expert as the Linear layer that the loader makes of it."""
    rows, columns = info.tensors[0].shape
    return nn.Linear(columns, rows, bias=False, device="meta", dtype=plain.dtype)


def _describe(module: nn.Module) -> tuple[object, ...]:
    """What two layers have to share to be the same to a user: class, size, and the settings that config.json holds."""
    children = [type(each).__name__ for each in module.children() if isinstance(each, ExpertWeights)]
    state: Any = getattr(module, "state", None)
    settings = [getattr(module, "compute_dtype", None), getattr(state, "threshold", None)]
    return type(module).__name__, *children, *settings


def _words(module: nn.Module | None) -> str:
    if module is None:
        return "nothing"
    name, *rest = _describe(module)
    details = ", ".join(str(each) for each in rest if each is not None)
    return f"{name} ({details})" if details else str(name)
