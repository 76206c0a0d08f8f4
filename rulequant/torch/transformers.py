"""rulequant inside transformers: `from_pretrained` by a rule file, and checkpoints that stock cannot express.

Importing this module registers the quantization method `rulequant`::

    import rulequant.torch.transformers
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=RuleQuantConfig("rules.yaml"))

A checkpoint with `quant_method: rulequant` in its config.json then loads with plain `from_pretrained`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantizer

from rulequant.diagnostics import DiagnosticsError, Severity
from rulequant.errors import ModelError, UsageError
from rulequant.inventory import Kind
from rulequant.planner import make_plan
from rulequant.ruleset import RuleSet
from rulequant.schemes import Scheme
from rulequant.torch.encoded_keys import encoded_weights, initialized
from rulequant.torch.experts import ExpertWeights, expert_parameters, swap_parameters
from rulequant.torch.factories import ExpertsFactory, NotFiniteError, SharingFactory, factory_for
from rulequant.torch.inspect import inspect_model, kind_of
from rulequant.torch.placement import check_devices
from rulequant.torch.plain import plain_layer
from rulequant.torch.quantconfig import METHOD, RuleQuantConfig
from rulequant.torch.standins import StandIn, refuse_resizing
from rulequant.torch.submodules import submodule
from rulequant.torch.swap import build_layers, replace_module
from rulequant.torch.twins import Twins, keep_biases, tied_as_loaded

__all__ = ["METHOD", "RuleQuantConfig", "RuleQuantizer"]


_LOADED_IN = {"bnb_4bit": "is_loaded_in_4bit", "bnb_int8": "is_loaded_in_8bit"}


@register_quantizer(METHOD)
class RuleQuantizer(HfQuantizer):  # type: ignore[misc]
    """Swaps layers on the meta skeleton by the plan, and fills them as the weights come in."""

    requires_calibration = False
    quantization_config: RuleQuantConfig

    def __init__(self, quantization_config: RuleQuantConfig, **kwargs: Any) -> None:
        """As `HfQuantizer`."""
        super().__init__(quantization_config, **kwargs)
        self.schemes: dict[str, Scheme] = {}
        """The scheme of each quantized module."""
        self.experts: dict[str, PendingExperts] = {}
        """Fused experts that are quantized as their weights come in, by module name."""
        self.encoded: set[str] = set()
        """The modules whose weight was encoded as it came in."""
        self.twins = Twins({}, {})
        """The quantized modules that share their weights."""

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """A config without rules and without modules has nothing to say; called again with the map made of `auto`.

        Raises:
            UsageError: so it is, or the map offloads quantized modules.
        """
        check_devices(device_map, self.schemes)
        if not self.pre_quantized and self.quantization_config.rules is None:
            raise UsageError(
                "RuleQuantConfig was given no rules", remedy='pass a rule file: RuleQuantConfig("rules.yaml")'
            )

    def update_device_map(self, device_map: Any) -> Any:
        """Without a map the model goes to the current accelerator, as bitsandbytes models do, or to the CPU."""
        if device_map is not None:
            return device_map
        return {"": torch.cuda.current_device()} if torch.cuda.is_available() else {"": "cpu"}

    def adjust_max_memory(self, max_memory: dict[Any, Any]) -> dict[Any, Any]:
        """Leave room for what quantizing itself needs, as bitsandbytes does."""
        return {key: value * 0.90 for key, value in max_memory.items()}

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Whether a parameter is one that its module's scheme encodes."""
        del model
        module, local = param_name.rpartition(".")[::2]
        if module in self.experts:
            return local in self.experts[module].names
        return module in self.schemes and local == "weight"

    def param_element_size(self, model: Any, param_name: str, param: Tensor) -> float:
        """Bytes per element that a parameter will take, for device maps."""
        scheme = self.schemes.get(param_name.rpartition(".")[0])
        if scheme is None or not self.param_needs_quantization(model, param_name):
            return param.element_size()
        return 0.5 if scheme.method == "bnb_4bit" else 1.0

    def _process_model_before_weight_loading(self, model: Any, device_map: Any = None, **_: Any) -> Any:
        saved = _saved_schemes(model, self.quantization_config) if self.pre_quantized else None
        self.schemes = self._planned_schemes(model) if saved is None else saved
        self.twins = Twins.of(model, self.schemes)
        check_devices(device_map, self.schemes)
        if saved is not None:
            build_layers(model, saved)
            self.twins.rename(model)
            return model
        # Converters merge the experts of the source into the fused parameter, so that has to be there while loading.
        self.experts = {
            name: PendingExperts(submodule(model, name), scheme)
            for name, scheme in self.schemes.items()
            if kind_of(submodule(model, name)) == "experts"
        }
        others = {name: scheme for name, scheme in self.schemes.items() if name not in self.experts}
        build_layers(model, others)
        return model

    def _planned_schemes(self, model: Any) -> dict[str, Scheme]:
        with tied_as_loaded(model):
            plan = make_plan(cast(RuleSet, self.quantization_config.rules), inspect_model(model), None)
        if not plan.ok:
            raise DiagnosticsError(each for each in plan.diagnostics if each.severity is Severity.ERROR)
        self.quantization_config.adopt(plan)
        return {each.name: plan.schemes[cast(str, each.scheme)] for each in plan.quantized}

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        for name, experts in self.experts.items():
            module, first = submodule(model, name), self.twins.first(name)
            replace_module(model, module, experts.finish(module, None if first == name else self.experts[first]))
        if not self.pre_quantized:
            self._encode_rest(model)
            self.twins.rename(model)
        if self.twins:
            keep_biases(model)
        self.experts, self.encoded = {}, set()
        methods = {each.method for each in self.schemes.values()}
        # num_parameters(), the Trainer and peft ask for these; both where both are.
        for method, flag in _LOADED_IN.items():
            if method in methods:
                setattr(model, flag, True)
        refuse_resizing(model)
        # The loader keeps what it converted, to undo it on saving; here saving is the layers' own work.
        model._weight_conversions = []
        return model

    def _encode_rest(self, model: Any) -> None:
        """Encode what was not handed over: of several weights that one converter makes, the first decides for all."""
        encode = _Encode(self)
        for name in self.schemes.keys() - self.experts.keys():
            if name in self.encoded:
                continue
            key = f"{name}.weight"
            encode.convert({key: model.get_submodule(name).weight.detach()}, model=model)

    def get_quantize_ops(self) -> ConversionOps:
        """The operation that encodes a weight as it comes in."""
        return _Encode(self)

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """For a saved checkpoint: ours come first, since of several converters that match a key the first is taken."""
        methods = sorted({each.method for each in self.schemes.values()}) if self.pre_quantized else []
        names = tuple(dict.fromkeys(name for method in methods for name in factory_for(method).tensor_names))
        if not names:
            return weight_conversions
        return [*encoded_weights(self, model, names), *weight_conversions]

    def is_serializable(self) -> bool:
        """`save_pretrained` works."""
        return True

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """What `save_pretrained` writes, an encoded weight that layers share once; None for all that there is."""
        return self.twins.saved(model), {}

    @property
    def is_trainable(self) -> bool:
        """Adapters on top can be trained (QLoRA)."""
        return True

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> Any:
        wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        for name, scheme in self.schemes.items():
            module = submodule(model, name)
            replace_module(model, module, plain_layer(module, scheme, wanted))
        self.twins.tie_plain(model)
        for flag in _LOADED_IN.values():
            if getattr(model, flag, False):
                setattr(model, flag, False)
        self.schemes, self.twins = {}, Twins({}, {})
        return model


class _Encode(ConversionOps):  # type: ignore[misc]
    """A full-precision weight becomes the encoded parameter of its layer."""

    def __init__(self, hf_quantizer: RuleQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(self, input_dict: dict[str, Any], model: Any = None, **_: Any) -> dict[str, Any]:
        result = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            if not self.hf_quantizer.param_needs_quantization(model, name):
                result[name] = weight
                continue
            try:
                result[name] = self._parameter(model, name, weight)
            except NotFiniteError as error:
                raise NotFiniteError(f"{name}: {error.message}", remedy=error.remedy) from error
        return result

    def _parameter(self, model: Any, name: str, weight: Tensor) -> Tensor:
        module_name, local = name.rpartition(".")[::2]
        quantizer = self.hf_quantizer
        pending = quantizer.experts.get(quantizer.twins.first(module_name))
        if pending:
            return pending.take(local, weight)
        layer = submodule(model, module_name)
        scheme = quantizer.schemes[module_name]
        quantizer.encoded |= {module_name, *quantizer.twins.others(module_name)}
        factory = factory_for(scheme.method)
        factory.attach(layer, factory.encode(weight, _source_kind(layer), scheme))
        quantizer.twins.share(model, module_name)
        return initialized(layer)


class PendingExperts:
    """Fused experts on the way in: encoded parameter by parameter, put together when the model is loaded."""

    def __init__(self, module: nn.Module, scheme: Scheme) -> None:
        """Take the module as it is on meta, with the fused parameters in full precision."""
        self.scheme = scheme
        self.names = expert_parameters(module)
        built = factory_for(scheme.method).build(module, scheme)
        self._weights = {name: cast(ExpertWeights, submodule(built, name)) for name in self.names}
        self._taken: set[str] = set()

    def take(self, name: str, weight: Tensor) -> Tensor:
        """Encode a fused weight; what stands in for it until the end is the packed tensor."""
        factory = cast(ExpertsFactory, factory_for(self.scheme.method))
        encoded = factory.encode_experts(weight.unbind(), weight.shape, weight.dtype, self.scheme)
        factory.attach(self._weights[name], encoded)
        self._taken.add(name)
        return nn.Parameter(encoded["weight"], requires_grad=False)

    def finish(self, module: nn.Module, twin: PendingExperts | None = None) -> nn.Module:
        """The quantized module, when all its weights have come: to it, or to a twin with the same ones."""
        for name in self.names:
            if twin is not None:
                cast(SharingFactory, factory_for(self.scheme.method)).share(twin._weights[name], self._weights[name])
                continue
            # Of several tensors that one converter makes, only the first is handed over while loading.
            if name not in self._taken:
                self.take(name, cast(Tensor, getattr(module, name)).detach())
        return swap_parameters(module, self._weights)


def _saved_schemes(model: Any, config: RuleQuantConfig) -> dict[str, Scheme]:
    """The schemes of a saved config by the names of this model: the bare base model, or one with another head."""
    modules = {name for name, _ in model.named_modules()}
    prefix = getattr(model, "base_model_prefix", "")
    chosen: dict[str, Scheme] = {}
    lost: list[str] = []
    for name, scheme in config.scheme_names().items():
        candidates = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
        found = next((each for each in candidates if each in modules), None)
        if found:
            chosen[found] = config.schemes[scheme]
        else:
            lost.append(name)
    if not chosen and lost:
        raise ModelError(
            f"{type(model).__name__} has none of the checkpoint's {len(lost)} quantized modules, such as {lost[0]}",
            remedy="load it with the class that config.json names",
        )
    return chosen


def _source_kind(layer: Any) -> Kind:
    if isinstance(layer, StandIn):
        return layer.kind
    source = getattr(layer, "source_cls", nn.Linear)
    return "conv1d" if source.__name__ == "Conv1D" else "linear"
