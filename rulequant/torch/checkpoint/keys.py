"""Which tensor of a checkpoint becomes which tensor of the model: transformers' own renaming, asked beforehand."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.siblings import sibling_models
from rulequant.torch.skeleton import Skeleton

__all__ = ["Conversion", "KeyMap", "map_keys", "prefix_forms", "renamed", "renamings_of"]


class Conversion(NamedTuple):
    """The `WeightConverter` of transformers that takes a source key, and the pattern by which it does."""

    converter: Any
    pattern: str

    def targets(self, first: str) -> tuple[str, ...]:
        """The names of all tensors that the converter makes, by that of the first."""
        patterns = self.converter.target_patterns
        return tuple(first.replace(patterns[0], each, 1) for each in patterns)

    def alone(self, key: str) -> str:
        """What the first of them is called in the style of the source: the key without the converter's pattern."""
        name: str = self.converter.rename_source_key(key)[0]
        return name


@dataclass(frozen=True)
class KeyMap:
    """The keys of a source checkpoint, sorted by what becomes of them."""

    targets: dict[str, str] = field(default_factory=dict)
    """Source key to the name of the model's tensor; for a converted key, the first of its tensors."""
    converted: dict[str, Conversion] = field(default_factory=dict)
    """Source keys that transformers merges or splits while it loads."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Source keys that are not written, with the reason."""
    copies: dict[str, str] = field(default_factory=dict)
    """Of the dropped keys those that hold a tied weight a second time, and the key that is written instead."""
    absent: frozenset[str] = frozenset()
    """Tensors of the model that are in no shard, and that its class loads without."""
    renamings: tuple[Any, ...] = ()
    """The `WeightRenaming`s of transformers, which are applied to the names in the output too when that is loaded."""
    converters: tuple[Any, ...] = ()
    """Its `WeightConverter`s; one that matches a renamed name takes the tensor."""
    base_prefix: str = ""
    """What the names of the model begin with, and those of its base model do not."""

    def renamed(self, name: str) -> str:
        """What transformers makes of a name, its converters and the base model's prefix aside."""
        return renamed(name, self.renamings)

    def is_converted(self, name: str) -> bool:
        """Whether a converter would take what has this name once it is renamed."""
        return any(each.rename_source_key(name)[1] is not None for each in self.converters)

    def forms(self, name: str) -> frozenset[str]:
        """A name of the model, and what the loader finds it under as well."""
        return prefix_forms(name, self.base_prefix)


def prefix_forms(name: str, prefix: str) -> frozenset[str]:
    """A name with and without the base model's prefix, which transformers adds or drops as a model needs it."""
    return frozenset({name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"} if prefix else {name})


def renamed(name: str, renamings: Iterable[Any]) -> str:
    """A name after all `WeightRenaming`s of transformers."""
    for each in renamings:
        name, _ = each.rename_source_key(name)
    return name


def renamings_of(model: Any) -> tuple[Any, ...]:
    """The `WeightRenaming`s of a model; none for one that is not of transformers."""
    from transformers import PreTrainedModel

    return _mapping(model)[0] if isinstance(model, PreTrainedModel) else ()


def _mapping(model: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(the `WeightRenaming`s, the `WeightConverter`s) of a model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    mapping = get_model_conversion_mapping(model)
    renamings = tuple(each for each in mapping if isinstance(each, WeightRenaming))
    return renamings, tuple(each for each in mapping if isinstance(each, WeightConverter))


class _Fit(NamedTuple):
    """How the keys of a checkpoint and the tensors of a model meet."""

    targets: dict[str, str]
    converted: dict[str, Conversion]
    missing: set[str]
    """Tensors of the model that nothing fills in."""
    absent: set[str]
    """Those that nothing fills in and that the model class declares to be of no concern."""
    ignored: set[str]
    """Source keys that the model class declares to be of no concern."""
    extra: set[str]
    """The other source keys that the model has no tensor for."""
    renamings: tuple[Any, ...]
    converters: tuple[Any, ...]
    """By which the names were found."""


def map_keys(skeleton: Skeleton, keys: Iterable[str]) -> KeyMap:
    """Find the tensor of the model for each source key, as `from_pretrained` would.

    Raises:
        CheckpointError: a tensor that the model needs is in no shard (it would be left random), or a shard holds
            tensors that the model does not have.
    """
    model, known = skeleton.model, list(keys)
    fit = _fit(model, known, skeleton.tensors)
    if fit.missing or fit.extra:
        raise _misfit(skeleton, fit, known)
    _check_unique(skeleton, fit)
    copies = _tied_copies(model, fit.targets)
    dropped = {key: f"{type(model).__name__} ignores it" for key in sorted(fit.ignored)}
    dropped |= {key: f"tied to {kept}" for key, kept in copies.items()}
    kept = {key: name for key, name in fit.targets.items() if key not in dropped}
    return KeyMap(
        kept,
        fit.converted,
        dropped,
        copies,
        frozenset(fit.absent),
        fit.renamings,
        fit.converters,
        str(model.base_model_prefix or ""),
    )


def _fit(model: Any, keys: list[str], tensors: Collection[str]) -> _Fit:
    names = set(tensors)
    renamings, converters = _mapping(model)
    targets, converted, unexpected = _rename(model, keys, names, renamings, converters)
    covered = {name for key, each in converted.items() for name in each.targets(targets[key])} | {*targets.values()}
    unfilled = _without_tied(model, names - covered, covered)
    missing, extra = _ignored_by_class(model, unfilled, unexpected)
    return _Fit(targets, converted, missing, unfilled - missing, unexpected - extra, extra, renamings, converters)


def _misfit(skeleton: Skeleton, fit: _Fit, keys: list[str]) -> CheckpointError:
    kind = type(skeleton.model).__name__
    parts = []
    if fit.missing:
        parts.append(f"{_names(fit.missing)} of {kind} {_are(fit.missing)} in no shard")
    if fit.extra:
        parts.append(f"{kind} does not have {_names(fit.extra)}, but the shards do")
    other = _fitting_class(skeleton.model, keys)
    remedy = "the checkpoint is incomplete, or config.json names another architecture than its weights are for"
    if other:
        remedy = f"all of it fits {other}: make that the `architectures` of config.json"
    return CheckpointError(f"{skeleton.name}: {'; '.join(parts)}", remedy=remedy)


def _fitting_class(model: Any, keys: list[str]) -> str | None:
    """Another class of the same config that has just the tensors of the checkpoint."""
    for sibling in sibling_models(model):
        fit = _fit(sibling, keys, sibling.state_dict())
        if not fit.missing and not fit.extra:
            return type(sibling).__name__
    return None


def _check_unique(skeleton: Skeleton, fit: _Fit) -> None:
    """Refuse two tensors for one name: a loader would take either, and say nothing."""
    first: dict[str, str] = {}
    for key, name in fit.targets.items():
        if key not in fit.converted and first.setdefault(name, key) != key:
            raise CheckpointError(
                f"{skeleton.name}: `{printable(first[name])}` and `{printable(key)}` are both "
                f"`{name}` of {type(skeleton.model).__name__}",
                remedy="remove one of the two from the shards",
            )


def _rename(
    model: Any, keys: list[str], names: set[str], renamings: tuple[Any, ...], converters: tuple[Any, ...]
) -> tuple[dict[str, str], dict[str, Conversion], set[str]]:
    """(targets, converter by converted key, unexpected keys), by the rules of `core_model_loading`."""
    from transformers.core_model_loading import rename_source_key

    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    state: dict[str, Any] = dict.fromkeys(names, True)
    prefix = model.base_model_prefix
    targets: dict[str, str] = {}
    converted: dict[str, Conversion] = {}
    unexpected: set[str] = set()
    for key in keys:
        name, pattern = rename_source_key(key, list(renamings), list(converters), prefix, state)
        if name not in names and key in names:
            name, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=state)
        if name not in names:
            unexpected.add(key)
            continue
        targets[key] = name
        if pattern is not None:
            converted[key] = Conversion(by_pattern[pattern], pattern)
    return targets, converted, unexpected


def _tied_groups(model: Any) -> dict[str, set[str]]:
    """The names tied to each source, the source among them."""
    groups: dict[str, set[str]] = {}
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        groups.setdefault(source, {source}).add(target)
    return groups


def _without_tied(model: Any, missing: set[str], covered: set[str]) -> set[str]:
    """The missing names that no tied weight fills in."""
    filled = {name for group in _tied_groups(model).values() if group & covered for name in group}
    return missing - filled


def _ignored_by_class(model: Any, missing: set[str], unexpected: set[str]) -> tuple[set[str], set[str]]:
    """The two sets without what the model class declares as of no concern, by transformers' own rule."""
    from transformers.modeling_utils import LoadStateDictInfo

    info = LoadStateDictInfo(
        missing_keys=set(missing), unexpected_keys=set(unexpected), mismatched_keys=set(), error_msgs=[],
        conversion_errors={}, skipped_pp_keys=set(),
    )  # fmt: skip
    model._adjust_missing_and_unexpected_keys(info)
    return info.missing_keys, info.unexpected_keys


def _tied_copies(model: Any, targets: dict[str, str]) -> dict[str, str]:
    """The source keys that hold a weight a second time, each with the key that holds it first."""
    by_name = {name: key for key, name in targets.items()}
    copies: dict[str, str] = {}
    for source, group in _tied_groups(model).items():
        present = [by_name[name] for name in (source, *sorted(group - {source})) if name in by_name]
        copies.update(dict.fromkeys(present[1:], present[0]) if present else {})
    return copies


def _names(names: set[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(f"`{printable(each)}`" for each in ordered[:3])
    return f"{shown} and {len(ordered) - 3} more tensors" if len(ordered) > 3 else shown


def _are(names: set[str]) -> str:
    return "are" if len(names) > 1 else "is"
