"""The bundled rule files: what there is, and which one a model gets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from rulequant.bundled import PREFIX, bundled_names, bundled_path
from rulequant.diagnostics import DiagnosticsError, closest
from rulequant.inventory import Inventory
from rulequant.loader import LoadedFile, Loader
from rulequant.tasks import Task, task_of

__all__ = ["Bundled", "Choice", "choose", "find", "listing", "nearest_types"]


@dataclass(frozen=True, slots=True)
class Bundled:
    """A bundled rule file by its own words, before `extends` is resolved."""

    name: str
    description: str
    models: tuple[str, ...]
    """The model types that it is for; none for a base that other files extend."""
    extends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The bundled file that a model gets."""

    name: str
    default: Task | None = None
    """The task by which it was taken; None where it is the file of the model's family."""


@cache
def listing() -> tuple[Bundled, ...]:
    """All bundled files, sorted by name."""
    return tuple(_bundled(name) for name in bundled_names())


def find(model_type: str) -> str | None:
    """The name of the bundled file for a `config.model_type`: the one called like it, else the one that lists it."""
    if model_type in bundled_names() and model_type in _bundled(model_type).models:
        return model_type
    return next((each.name for each in listing() if model_type in each.models), None)


def choose(inventory: Inventory) -> Choice:
    """The file of a model's family, or else the default for what the model is for."""
    family = find(inventory.model_type) if inventory.model_type else None
    if family:
        return Choice(family)
    task = task_of(inventory)
    return Choice(task, task)


def nearest_types(model_type: str) -> list[str]:
    """The model types with a bundled file that are most like one without."""
    return closest(model_type, [each for bundled in listing() for each in bundled.models])


def _bundled(name: str) -> Bundled:
    content = _load(name).content
    return Bundled(name, content.description or "", content.models, content.extends)


@cache
def _load(name: str) -> LoadedFile:
    loader, path = Loader(), bundled_path(name)
    loaded = loader.load(path, file=f"{PREFIX}{name}") if path else None
    if loaded is None:
        raise DiagnosticsError(loader.diagnostics)
    return loaded
