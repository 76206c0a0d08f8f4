"""The architectures that there are: a model_type, and the class that a checkpoint of it is of."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

__all__ = ["Architecture", "architectures"]

_FIRST = (
    "IMAGE_TEXT_TO_TEXT",
    "MULTIMODAL_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "MASKED_LM",
    "CAUSAL_LM",
)
"""The tasks whose class is the one that checkpoints of a language model are of, a part of a model last."""


_WHOLE = {
    "musicgen": "MusicgenForConditionalGeneration",
    "musicgen_melody": "MusicgenMelodyForConditionalGeneration",
}
"""Where another task than the first has the class of this config, and not of a part of it."""


@dataclass(frozen=True)
class Architecture:
    """A `config.model_type`, and the name of the class that a checkpoint of it is of."""

    model_type: str
    model_class: str

    def config_class(self) -> Any:
        """The class of its config."""
        return CONFIG_MAPPING[self.model_type]

    def load_class(self) -> Any:
        """The class of the model, imported."""
        own = self.config_class().__module__
        module = importlib.import_module(own.rpartition(".")[0])
        if not hasattr(transformers, self.model_class) and not hasattr(module, self.model_class):
            module = importlib.import_module(own.replace(".configuration_", ".modeling_"))  # not exported
        return getattr(transformers, self.model_class, None) or getattr(module, self.model_class)


def architectures() -> tuple[Architecture, ...]:
    """All model types of transformers with a model class, sorted; a config without a model is part of another's."""
    return tuple(sorted(_found(), key=lambda each: each.model_type))


def _found() -> Iterator[Architecture]:
    mappings = _mappings()
    for model_type in CONFIG_MAPPING:
        name = next((found for mapping in mappings if (found := mapping.get(model_type))), None)
        if name:
            yield Architecture(model_type, _WHOLE.get(model_type, name if isinstance(name, str) else name[0]))


def _mappings() -> list[dict[str, Any]]:
    """{model_type: class} by task, in the order in which they are asked."""
    named = {
        name.removesuffix("_MAPPING_NAMES").removeprefix("MODEL_FOR_"): mapping
        for name, mapping in vars(modeling_auto).items()
        if name.endswith("_MAPPING_NAMES") and name != "CONFIG_MAPPING_NAMES"
    }
    order = [*_FIRST, "MODEL", *sorted(named.keys() - {*_FIRST, "MODEL"})]
    return [named[each] for each in order if each in named]
