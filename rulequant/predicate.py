"""The predicate, stated once:

    Quantize(M) = M in QuantizableTypes and M not in SkipModules and M not in OutputEmbeddings

Three named tests, each of which passes or gives the reason for its "no". Beside them the model itself may object, and
the scheme that the rules choose may not be able to hold the module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from rulequant.diagnostics import Location
from rulequant.inventory import ModuleInfo
from rulequant.ruleset import RuleSet
from rulequant.schemes import Scheme
from rulequant.selection import Selection
from rulequant.selector import type_matches

__all__ = [
    "Objection",
    "Reason",
    "in_output_embeddings",
    "in_quantizable_types",
    "in_skip_modules",
    "objections",
]

Reason = Literal["type", "skip", "output_embedding", "tied", "keep_in_fp32", "weight_read_directly", "unsupported"]


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a module is not quantized: the reason of the closed set, in words, and the line of a rule file behind it."""

    reason: Reason
    detail: str
    location: Location | None = None


def in_quantizable_types(info: ModuleInfo, rules: RuleSet) -> Objection | None:
    """`M in QuantizableTypes`: its class name is listed, exactly or by a wildcard."""
    if any(type_matches(info.type, each) for each in rules.quantizable_types):
        return None
    return Objection("type", f"{info.type} is not one of quantizable_types ({', '.join(rules.quantizable_types)})")


def in_skip_modules(info: ModuleInfo, selection: Selection) -> Objection | None:
    """`M not in SkipModules`: no selector of `skip_modules` selects it."""
    skips = selection.skips_of(info)
    if not skips:
        return None
    first = skips[0]
    text = first.selector.reason or f"skip_modules: {', '.join(each.text for each in first.selector.modules)}"
    return Objection("skip", text, first.location)


def in_output_embeddings(info: ModuleInfo, rules: RuleSet) -> Objection | None:
    """`M not in OutputEmbeddings`: it is no output embedding by identity, tied to none, and no output head."""
    if rules.output_embeddings == "quantize":
        return None
    if info.output_embedding:
        return Objection("output_embedding", "it is the model's output embedding")
    if info.shares_output_embedding:
        return Objection("output_embedding", "it shares a parameter with the output embedding")
    if info.output_head:
        return Objection("output_embedding", "it is an output head on top of the base model")
    return None


def _tied(info: ModuleInfo, held: Mapping[str, str]) -> Objection | None:
    if info.name not in held:
        return None
    return Objection("tied", held[info.name])


def _kept_in_fp32(info: ModuleInfo) -> Objection | None:
    if not info.keep_in_fp32:
        return None
    return Objection("keep_in_fp32", "the model declares it in _keep_in_fp32_modules")


def _weight_read_directly(info: ModuleInfo) -> Objection | None:
    if not info.weight_reader:
        return None
    return Objection("weight_read_directly", f"{info.weight_reader} reads its weight directly")


def objections(
    info: ModuleInfo, rules: RuleSet, selection: Selection, scheme: Scheme | None, held: Mapping[str, str]
) -> Iterator[Objection]:
    """Every reason against quantizing a module, in the order of the tests; none means `Quantize(M)`.

    `held` says why modules have to keep a weight that is also another module's, by their names.
    """
    tests = (
        in_quantizable_types(info, rules),
        in_skip_modules(info, selection),
        in_output_embeddings(info, rules),
        _tied(info, held),
        _kept_in_fp32(info),
        _weight_read_directly(info),
        _unsupported(info, scheme),
    )
    return (each for each in tests if each)


def _unsupported(info: ModuleInfo, scheme: Scheme | None) -> Objection | None:
    reason = scheme.unsupported(info) if scheme else "the rule set names no scheme for it"
    return Objection("unsupported", reason) if reason else None
