"""Which tensor of a checkpoint becomes which tensor of the model: transformers' own renaming, asked beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rulequant.errors import CheckpointError
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.skeleton import Skeleton

__all__ = ["KeyMap", "map_keys"]


@dataclass(frozen=True)
class KeyMap:
    """The keys of a source checkpoint, sorted by what becomes of them."""

    targets: dict[str, str] = field(default_factory=dict)
    """Source key to the name of the model's tensor; for a converted key, the first of its tensors."""
    converted: frozenset[str] = frozenset()
    """Source keys that transformers merges or splits while it loads."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Source keys that are not written, with the reason."""


def map_keys(skeleton: Skeleton, keys: Iterable[str]) -> KeyMap:
    """Find the tensor of the model for each source key, as `from_pretrained` would.

    Raises:
        CheckpointError: a tensor that the model needs is in no shard (it would be left random), or a shard holds
            tensors that the model does not have.
    """
    targets, converted, unexpected = _rename(skeleton.model, list(keys), set(skeleton.tensors))
    covered = set(targets.values()) | _other_targets(converted, targets)
    missing = _without_tied(skeleton.model, set(skeleton.tensors) - covered, covered)
    missing, remaining = _ignored_by_class(skeleton.model, missing, unexpected)
    if missing:
        raise CheckpointError(
            f"{skeleton.name}: {_names(missing)} of {type(skeleton.model).__name__} {_are(missing)} in no shard",
            remedy="the checkpoint is incomplete, or config.json names another architecture than its weights are for",
        )
    if remaining:
        raise CheckpointError(
            f"{skeleton.name}: {type(skeleton.model).__name__} does not have {_names(remaining)}, but the shards do",
            remedy="check `architectures` in config.json: the weights are of another class",
        )
    dropped = {key: f"{type(skeleton.model).__name__} ignores it" for key in unexpected}
    dropped |= _tied_copies(skeleton.model, targets)
    kept = {key: name for key, name in targets.items() if key not in dropped}
    return KeyMap(kept, frozenset(converted), dropped)


def _rename(model: Any, keys: list[str], names: set[str]) -> tuple[dict[str, str], dict[str, Any], set[str]]:
    """(targets, converter by converted key, unexpected keys), by the rules of `core_model_loading`."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    state: dict[str, Any] = dict.fromkeys(names, True)
    prefix = model.base_model_prefix
    targets: dict[str, str] = {}
    converted: dict[str, Any] = {}
    unexpected: set[str] = set()
    for key in keys:
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in names and key in names:
            name, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=state)
        if name not in names:
            unexpected.add(key)
            continue
        targets[key] = name
        if pattern is not None:
            converted[key] = by_pattern[pattern]
    return targets, converted, unexpected


def _other_targets(converted: dict[str, Any], targets: dict[str, str]) -> set[str]:
    """The tensors that converters make beside the first of each, which is in `targets`."""
    return {
        targets[key].replace(converter.target_patterns[0], other)
        for key, converter in converted.items()
        for other in converter.target_patterns[1:]
    }


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
    """The source keys that hold a weight a second time."""
    by_name = {name: key for key, name in targets.items()}
    copies: dict[str, str] = {}
    for source, group in _tied_groups(model).items():
        present = [name for name in (source, *sorted(group - {source})) if name in by_name]
        copies.update({by_name[name]: f"tied to {present[0]}" for name in present[1:]})
    return copies


def _names(names: set[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(f"`{printable(each)}`" for each in ordered[:3])
    return f"{shown} and {len(ordered) - 3} more tensors" if len(ordered) > 3 else shown


def _are(names: set[str]) -> str:
    return "are" if len(names) > 1 else "is"
