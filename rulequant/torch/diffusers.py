"""rulequant inside diffusers: components that diffusers' own quantizers cannot express.

Importing this module registers the quantization method `rulequant` in diffusers, and in transformers, whose text
encoders a pipeline has::

    import rulequant.torch.diffusers
    pipeline = DiffusionPipeline.from_pretrained(folder)

`rulequant apply` writes such components; nothing is quantized while loading.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from diffusers.quantizers.base import DiffusersQuantizer
from torch import Tensor, nn

import rulequant.torch.transformers  # noqa: F401  registers the method `rulequant` there
from rulequant.errors import ModelError, UsageError
from rulequant.schemes import Scheme
from rulequant.torch.factories import factory_for
from rulequant.torch.placement import check_devices
from rulequant.torch.plain import plain_layer
from rulequant.torch.quantconfig import METHOD, RuleQuantConfig
from rulequant.torch.swap import build_layers, replace_module

__all__ = ["ComponentConfig", "ComponentQuantizer"]


class _Method(str):
    """The name of the method, as diffusers' own are: strings with a value."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The name."""
        return str(self)


class ComponentConfig(RuleQuantConfig):
    """The `quantization_config` of a component: the schemes, and the modules that got each."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As `RuleQuantConfig`."""
        super().__init__(*arguments, **options)
        self.quant_method = _Method(METHOD)


class ComponentQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Swaps layers on the meta skeleton by the saved config, and fills them as the weights come in."""

    quantization_config: ComponentConfig

    def __init__(self, quantization_config: ComponentConfig, **options: Any) -> None:
        """As `DiffusersQuantizer`."""
        super().__init__(quantization_config, **options)
        self.schemes: dict[str, Scheme] = {}
        """The scheme of each quantized module."""

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Called again with the map that was made of `auto`.

        Raises:
            UsageError: there is nothing saved to load, or the map offloads quantized modules.
        """
        check_devices(device_map, self.schemes)
        if not self.pre_quantized:
            raise UsageError(
                "rulequant quantizes no component of diffusers while it is loaded",
                remedy="write it first: rulequant apply COMPONENT RULES -o OUT, and load OUT",
            )

    def update_device_map(self, device_map: Any) -> Any:
        """Without a map the model goes to the current accelerator, as bitsandbytes models do, or to the CPU."""
        if device_map is not None or not torch.cuda.is_available():
            return device_map
        return {"": torch.cuda.current_device()}

    def adjust_max_memory(self, max_memory: dict[Any, Any]) -> dict[Any, Any]:
        """Leave room, as bitsandbytes does."""
        return {key: value * 0.90 for key, value in max_memory.items()}

    def check_if_quantized_param(self, model: Any, param_value: Any, param_name: str, *_: Any, **__: Any) -> bool:
        """Whether a tensor is one of a quantized layer, its bias included."""
        del model, param_value
        return param_name.rpartition(".")[0] in self.schemes

    def check_quantized_param_shape(self, *_: Any, **__: Any) -> bool:
        """Encoded weights have shapes of their own, which their layers know."""
        return True

    def create_quantized_param(
        self,
        model: Any,
        param_value: Tensor,
        param_name: str,
        target_device: Any,
        state_dict: dict[str, Tensor],
        unexpected_keys: list[str] | None = None,
        **_: Any,
    ) -> None:
        """Give a layer its encoded weight, with all that belongs to it in the same file; or its bias."""
        name, local = param_name.rpartition(".")[::2]
        layer = model.get_submodule(name)
        if local != "weight":
            layer._parameters[local] = nn.Parameter(param_value.to(target_device), requires_grad=False)
            return
        factory = factory_for(self.schemes[name].method)
        keys = {each: f"{name}.{each}" for each in factory.tensor_names if f"{name}.{each}" in state_dict}
        factory.attach(layer, {each: state_dict[key].to(target_device) for each, key in keys.items()})
        for key in keys.values():
            if unexpected_keys is not None and key in unexpected_keys:
                unexpected_keys.remove(key)

    def _process_model_before_weight_loading(self, model: Any, device_map: Any = None, **_: Any) -> Any:
        modules = {name for name, _ in model.named_modules()}
        names = self.quantization_config.scheme_names()
        lost = sorted(names.keys() - modules)
        if lost:
            raise ModelError(
                f"{type(model).__name__} has no module {lost[0]}, which the checkpoint quantizes",
                remedy="load it with the class that config.json names",
            )
        self.schemes = {name: self.quantization_config.schemes[scheme] for name, scheme in names.items()}
        check_devices(device_map, self.schemes)
        build_layers(model, self.schemes)
        model.config.quantization_config = self.quantization_config
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        return model

    @property
    def is_serializable(self) -> bool:
        """`save_pretrained` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on top can be trained."""
        return True

    def _dequantize(self, model: Any) -> Any:
        for name, scheme in self.schemes.items():
            module = model.get_submodule(name)
            replace_module(model, module, plain_layer(module, scheme, None))
        self.schemes = {}
        return model


AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = ComponentConfig
AUTO_QUANTIZER_MAPPING[METHOD] = ComponentQuantizer
