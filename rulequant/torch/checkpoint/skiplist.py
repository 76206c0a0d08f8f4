"""The `llm_int8_skip_modules` of a plan: short, readable, and proven with transformers' own matcher."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from rulequant.errors import ModelError
from rulequant.torch.checkpoint.siblings import sibling_models
from rulequant.torch.inspect import is_conv1d
from rulequant.torch.stock_experts import as_loaded
from rulequant.torch.submodules import submodule
from rulequant.vllm import MERGED, called_by_vllm, skipped_by_vllm

__all__ = ["stock_skip_list", "vllm_dispute"]

Wanted = Mapping[str, bool]
"""Module names, and whether transformers is to make a quantized layer of each."""

_SPECIAL = re.compile(r"[\\^$*+?{}\[\]|()]")
_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_MAX_ENTRIES = 256
"""transformers matches each module against each entry, as regular expressions, of which Python keeps 512 compiled."""


class _Regex(str):
    """An entry that is a regular expression, and not a name that looks like one."""

    __slots__ = ()


def stock_skip_list(model: nn.Module, quantized: set[str]) -> list[str]:
    """The `llm_int8_skip_modules` with which transformers' matcher decides as the plan does, for every module.

    It holds for the other classes of the same config too, since they load the same folder: the bare model, whose names
    lack the prefix, and classes with heads that the checkpoint does not have. A subtree that stays as it is as a whole
    is one entry; so is a last component that stays as it is everywhere. Names that vLLM gives to merged layers, and to
    the parts of a model with images, are added, as far as they keep the promise, and so are plain names where vLLM
    would find nothing in an expression.

    Raises:
        ModelError: no such list exists; the module in dispute is named.
    """
    # As the loader comes across them: each module once, by its first name.
    own = {name: name in quantized for name, module in model.named_modules() if _stock_type(module)}
    _refuse_foreign(model, quantized, own)
    prefix = _prefix(model)
    keep = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    related = _related(model, own, prefix)
    dispute = ""
    moved = {name: own[each] for each, name in called_by_vllm(own).items()}
    for wanted in (_with_fused(moved | related | own), _with_fused(related | own), own | related, own):
        entries = _entries(wanted)
        short = entries if len(entries) <= _MAX_ENTRIES else _by_layer(entries)
        entries, dispute = _settle(short, wanted, keep)
        if not dispute:
            return [str(each) for each in (*entries, *_literal_names(entries, wanted))]
    raise ModelError(f"transformers would decide differently about {dispute}, whatever the skip list says")


def vllm_dispute(model: nn.Module, quantized: set[str], entries: Iterable[str]) -> str | None:
    """The first module about which vLLM, which reads the entries literally, would decide otherwise than the plan."""
    known = tuple(entries)
    names = called_by_vllm(name for name, module in model.named_modules() if _stock_type(module))
    return next((own for own, name in names.items() if skipped_by_vllm(name, known) is (own in quantized)), None)


def _literal_names(entries: list[str], wanted: Wanted) -> list[str]:
    """The skipped names that vLLM finds in no entry, as far as they say nothing else to transformers."""
    plain = [each for each in entries if not isinstance(each, _Regex)]
    missing = [name for name, decision in wanted.items() if not decision and not skipped_by_vllm(name, plain)]
    if len(entries) + len(missing) > _MAX_ENTRIES:
        return []
    quantized = [name for name, decision in wanted.items() if decision]
    return [
        name for name in missing if not _SPECIAL.search(name) and all(_converts(each, [name]) for each in quantized)
    ]


def _stock_type(module: nn.Module) -> bool:
    """What `replace_with_bnb_linear` replaces."""
    return type(module) is nn.Linear or is_conv1d(module)


def _refuse_foreign(model: nn.Module, quantized: set[str], own: Wanted) -> None:
    """Refuse what the loader does not replace at all, or not everywhere."""
    for name in sorted(quantized):
        if name not in own:
            kind = type(submodule(model, name)).__name__
            raise ModelError(f"transformers' bitsandbytes loader does not make a quantized layer of {name} ({kind})")
    objects = {id(submodule(model, name)): name for name in quantized}
    for alias, module in model.named_modules(remove_duplicate=False):
        name = objects.get(id(module), alias)
        if name != alias:
            raise ModelError(f"transformers' bitsandbytes loader replaces {name} only there, and not as {alias}")


def _prefix(model: nn.Module) -> str:
    """The base model's name with a dot, where the model is not the base model itself."""
    prefix = getattr(model, "base_model_prefix", "") or ""
    return f"{prefix}." if prefix and prefix in dict(model.named_children()) else ""


def _related(model: nn.Module, own: Wanted, prefix: str) -> dict[str, bool]:
    """Names that other classes of the config have for these modules, and the modules that only they have."""
    inner = {name.removeprefix(prefix): decision for name, decision in own.items()}
    names: dict[str, bool] = dict(inner) if prefix else {}
    for sibling in sibling_models(model):
        theirs = _prefix(sibling)
        if prefix and theirs not in {prefix, ""}:
            continue  # its loader finds none of our keys
        layers = [name for name, module in as_loaded(sibling).named_modules() if _stock_type(module)]
        if not any(name.removeprefix(theirs) in inner for name in layers):
            continue  # nor here, where the prefixes do not tell
        for name in layers:
            names.setdefault(name, inner.get(name.removeprefix(theirs), False))
    return {name: decision for name, decision in names.items() if name not in own}


def _with_fused(wanted: Wanted) -> dict[str, bool]:
    """The names with those of merged layers whose parts are decided alike."""
    fused: dict[str, bool] = {}
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in wanted):
        for whole, parts in MERGED.items():
            decisions = {wanted.get(f"{parent}.{part}") for part in parts}
            decision = decisions.pop() if len(decisions) == 1 else None
            if parent and decision is not None:
                fused.setdefault(f"{parent}.{whole}", decision)
    return {**fused, **wanted}


def _entries(wanted: Wanted) -> list[str]:
    """The skipped names in few entries: whole subtrees by their root, recurring layers by their last component."""
    quantized = [name for name, decision in wanted.items() if decision]
    covered: dict[str, list[str]] = {}
    ancestors = {prefix for name in quantized for prefix in _ancestors(name)}
    for name, decision in wanted.items():
        if not decision:
            free = next((each for each in _ancestors(name) if each not in ancestors), name)
            covered.setdefault(free, []).append(name)
    groups: dict[str, list[str]] = {}
    for entry in covered:
        groups.setdefault(entry.rpartition(".")[2], []).append(entry)
    taken = _Taken(quantized)
    entries: dict[str, None] = {}
    for group in groups.values():
        ends = dict.fromkeys(name.rpartition(".")[2] for entry in group for name in covered[entry])
        short = len(ends) < len(group) and all(taken.free(each) for each in ends)
        entries |= dict.fromkeys(ends if short else group)
    return list(entries)


class _Taken:
    """What the names of quantized modules rule out as an entry of one component."""

    def __init__(self, quantized: Iterable[str]) -> None:
        names = list(quantized)
        self._components = {part for name in names for part in name.split(".")}
        self._last = {name.rpartition(".")[2] for name in names}

    def free(self, component: str) -> bool:
        """Whether no quantized module is hit, whether a reader compares the end of a name or whole components."""
        if component.isdigit() or _SPECIAL.search(component) or component in self._components:
            return False
        return not any(each.endswith(component) for each in self._last)


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _by_layer(entries: list[str]) -> list[str]:
    """Many entries as few: those that differ in the number of a layer as one regular expression."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        found = _LAYER.search(entry)
        around = (entry[: found.start()], entry[found.end() :]) if found else (entry, "")
        groups.setdefault(around, []).append(found[0] if found else "")
    return [
        _Regex(f"^{re.escape(head)}(?:{'|'.join(numbers)}){re.escape(tail)}")
        if len(numbers) > 1
        else f"{head}{numbers[0]}{tail}"
        for (head, tail), numbers in groups.items()
    ]


def _settle(entries: list[str], wanted: Wanted, keep: tuple[str, ...]) -> tuple[list[str], str]:
    """The entries, as regular expressions where the plain text says too much; and the first name still in dispute."""
    settled = [_anchored(each) if _is_awkward(each) else each for each in entries]
    while disputed := _disputed(settled, wanted, keep):
        changed = [_anchored(each) if _is_cause(each, disputed) else each for each in settled]
        if changed == settled:
            return settled, disputed[0]
        settled = changed
    return settled, ""


def _is_awkward(entry: str) -> bool:
    """Whether a plain name holds what a regular expression would take for something else."""
    return not isinstance(entry, _Regex) and _SPECIAL.search(entry) is not None


def _anchored(entry: str) -> str:
    """An entry that only matches from the start of a name on."""
    return _Regex(f"^{re.escape(entry)}")


def _is_cause(entry: str, disputed: list[str]) -> bool:
    return not isinstance(entry, _Regex) and any(not _converts(name, [entry]) for name in disputed)


def _disputed(entries: list[str], wanted: Wanted, keep: tuple[str, ...]) -> list[str]:
    """The modules about which transformers would decide otherwise."""
    # Those are always added by the quantizer, whatever the list says.
    patterns = [*entries, *keep]
    return [name for name, decision in wanted.items() if _converts(name, patterns) != decision]


def _converts(name: str, patterns: list[str]) -> Any:
    from transformers.quantizers.quantizers_utils import should_convert_module

    return should_convert_module(name, patterns)
