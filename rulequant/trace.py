"""How one module's decision comes about: each test of the predicate, and each skip and rule tried, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from rulequant.diagnostics import Location, closest
from rulequant.errors import UsageError
from rulequant.globs import Glob
from rulequant.inventory import Inventory, ModuleInfo
from rulequant.plan import Decision
from rulequant.planner import decide, held_by_ties
from rulequant.predicate import Objection, Reason, objections
from rulequant.removal import taken_back
from rulequant.ruleset import OriginRule, OriginSkip, RemovedSkip, RuleSet
from rulequant.selection import Selection, select
from rulequant.selector import type_matches

__all__ = ["Attempt", "Contents", "Test", "Trace", "contents", "find_module", "trace"]

TESTS: dict[Reason, str] = {
    "type": "its class is one of quantizable_types",
    "skip": "no entry of skip_modules selects it",
    "output_embedding": "it is no output embedding, tied to none, and no output head",
    "tied": "its weight is no other module's, or one that is quantized with it",
    "keep_in_fp32": "the model does not declare it keep-in-fp32",
    "weight_read_directly": "no code of the model reads its weight directly",
    "unsupported": "the scheme can hold it",
}
"""The tests in the order in which they decide, as what must hold."""


@dataclass(frozen=True, slots=True)
class Test:
    """One test of the predicate: passed, or the objection."""

    name: Reason
    question: str
    objection: Objection | None

    @property
    def passed(self) -> bool:
        """Whether it speaks for quantizing the module."""
        return self.objection is None

    def to_dict(self) -> dict[str, Any]:
        """The test as JSON-ready data."""
        no = self.objection
        return {
            "test": self.name,
            "question": self.question,
            "passed": self.passed,
            "detail": no.detail if no else None,
            "rule": _place(no.location) if no else None,
        }


@dataclass(frozen=True, slots=True)
class Attempt:
    """A skip or a rule, tried on the module."""

    kind: str
    """`skip` or `rule`."""
    patterns: tuple[str, ...]
    location: Location
    selects: bool
    why: str
    """Which pattern selects it, or what keeps the entry from it."""
    decides: bool = False
    scheme: str | None = None
    near_miss: bool = False
    """It would select the module but for one thing, which `why` names."""
    taken_back: Location | None = None
    """Where the skip is taken back, which it then no longer is."""

    def to_dict(self) -> dict[str, Any]:
        """The attempt as JSON-ready data."""
        return {
            "kind": self.kind,
            "patterns": list(self.patterns),
            "rule": _place(self.location),
            "selects": self.selects,
            "why": self.why,
            "decides": self.decides,
            "scheme": self.scheme,
            "near_miss": self.near_miss,
            "taken_back": _place(self.taken_back),
        }


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything that was asked about a module, and the answer."""

    info: ModuleInfo
    decision: Decision
    tests: tuple[Test, ...]
    attempts: tuple[Attempt, ...]
    """The skips, then the rules, each in order of precedence."""
    default: tuple[str, Location] | None
    """The scheme of modules that no rule selects, and where it is set."""
    types: tuple[str, ...] = ()
    """The entries of quantizable_types that its class matches."""
    scheme: str | None = None
    """The scheme that the rules choose for it, whether or not the tests let it have one."""

    def to_dict(self) -> dict[str, Any]:
        """The trace as JSON-ready data."""
        return {
            "format_version": 1,
            "module": self.info.name,
            "aliases": list(self.info.aliases),
            "type": self.info.type,
            "layer": {"index": self.info.layer.index, "of": self.info.layer.length} if self.info.layer else None,
            "tensors": {each.name: {"dtype": each.dtype, "shape": list(each.shape)} for each in self.info.tensors},
            "decision": self.decision.to_dict(),
            "tests": [each.to_dict() for each in self.tests],
            "attempts": [each.to_dict() for each in self.attempts],
            "default_scheme": self.default[0] if self.default else None,
        }


@dataclass(frozen=True, slots=True)
class Contents:
    """What is inside a module that owns no parameter itself."""

    info: ModuleInfo
    decisions: tuple[Decision, ...]

    def to_dict(self) -> dict[str, Any]:
        """The contents as JSON-ready data."""
        return {
            "format_version": 1,
            "module": self.info.name,
            "type": self.info.type,
            "decision": None,
            "modules": [each.to_dict() for each in self.decisions],
        }


def find_module(name: str, inventory: Inventory) -> ModuleInfo:
    """The module of a name or alias.

    Raises:
        UsageError: there is none; the nearest names are given.
    """
    found = inventory.by_name.get(name)
    if found is not None:
        return found
    above, _, leaf = name.rpartition(".")
    owner = inventory.by_name.get(above)
    if owner is not None and owner.tensor(leaf):
        raise UsageError(f"`{name}` is a tensor, not a module", remedy=f"ask about its module: `{above}`")
    matches = _selected_names(name, inventory)
    if matches:
        listed = ", ".join(f"`{each}`" for each in matches[:3])
        raise UsageError(f"`{name}` is a pattern, and `why` is about one module", remedy=f"it selects {listed}")
    near = _near_names(name, inventory)
    raise UsageError(
        f"{inventory.model} has no module `{name}`",
        remedy=f"did you mean {' or '.join(f'`{each}`' for each in near)}?" if near else "`plan --all` lists them",
    )


def _selected_names(text: str, inventory: Inventory) -> list[str]:
    if not any(each in text for each in "*?[{"):
        return []
    try:
        glob = Glob.parse(text)
    except ValueError:
        return []
    return [each.name for each in inventory.owners if glob.selects(each.name)]


def _near_names(name: str, inventory: Inventory) -> list[str]:
    """Names that end alike first, as where the prefix of a wrapping class is missing."""
    ends = [each for each in inventory.by_name if each.endswith(f".{name}")]
    return ends[:3] or closest(name, inventory.by_name)


def contents(info: ModuleInfo, rules: RuleSet, inventory: Inventory) -> Contents:
    """The decisions about everything inside a module."""
    selection = select(rules, inventory)
    held = held_by_ties(rules, inventory, selection)
    inside = [each for each in inventory.owners if _is_inside(each.name, info.name)]
    return Contents(info, tuple(decide(each, rules, selection, held) for each in inside))


def _is_inside(name: str, outer: str) -> bool:
    return not outer or name.startswith(f"{outer}.")


def trace(info: ModuleInfo, rules: RuleSet, inventory: Inventory) -> Trace:
    """Ask every test and every entry about one module, those behind the first "no" too."""
    selection = select(rules, inventory)
    held = held_by_ties(rules, inventory, selection)
    decision = decide(info, rules, selection, held)
    rule = next(iter(selection.rules_of(info)), None)
    name = rule.selector.scheme if rule else rules.scheme
    scheme = rules.schemes.get(name) if name else None
    found = {each.reason: each for each in objections(info, rules, selection, scheme, held)}
    return Trace(
        info=info,
        decision=decision,
        tests=tuple(Test(each, TESTS[each], found.get(each)) for each in get_args(Reason)),
        attempts=tuple(_attempts(info, rules, selection, decision)),
        default=(rules.scheme, rules.origin("scheme")) if rules.scheme else None,
        types=tuple(each for each in rules.quantizable_types if type_matches(info.type, each)),
        scheme=name,
    )


def _attempts(info: ModuleInfo, rules: RuleSet, selection: Selection, decision: Decision) -> list[Attempt]:
    skips, chosen = selection.skips_of(info), selection.rules_of(info)
    deciding_skip = skips[0] if decision.reason == "skip" and skips else None
    deciding_rule = chosen[0] if decision.quantize and chosen else None
    found = [_attempt(each, info, selects=each in skips, decides=each is deciding_skip) for each in rules.skips]
    found += [_removed(each, info, selection) for each in rules.removed_skips]
    found += [_attempt(each, info, selects=each in chosen, decides=each is deciding_rule) for each in rules.rules]
    return found


def _removed(removed: RemovedSkip, info: ModuleInfo, selection: Selection) -> Attempt:
    """A skip that is taken back, and whether it would have selected the module."""
    would = removed in selection.removed_of(info)
    tried = _attempt(removed.skip, info, selects=would, decides=False)
    why = taken_back(removed) if would else tried.why
    return replace(tried, selects=False, why=why, near_miss=False, taken_back=removed.location)


def _attempt(entry: OriginSkip | OriginRule, info: ModuleInfo, *, selects: bool, decides: bool) -> Attempt:
    selector = entry.selector
    hits = [each for each in selector.modules if any(each.selects(name) for name in info.names)]
    near = None
    if selects:
        why = f"`{hits[0].text}` {_how(hits[0], info)}"
    elif hits:
        why = _narrowed(entry, hits[0], info)
        near = why
    else:
        near = next((miss for each in selector.modules if (miss := _near_miss(each, info.name))), None)
        why = near or "no pattern matches its name"
    return Attempt(
        kind="rule" if isinstance(entry, OriginRule) else "skip",
        patterns=tuple(each.text for each in selector.modules),
        location=entry.location,
        selects=selects,
        why=why,
        decides=decides,
        scheme=entry.selector.scheme if isinstance(entry, OriginRule) else None,
        near_miss=near is not None,
    )


def _how(glob: Glob, info: ModuleInfo) -> str:
    """Whether the pattern means the module itself, or one around it."""
    name = next(each for each in info.names if glob.selects(each))
    alias = "" if name == info.name else f" under its alias `{name}`"
    if glob.matches(name):
        return f"matches it{alias}"
    parts = name.split(".")
    outer = next(each for end in range(1, len(parts)) if glob.matches(each := ".".join(parts[:end])))
    return f"matches `{outer}`, and it is inside{alias}"


def _narrowed(entry: OriginSkip | OriginRule, glob: Glob, info: ModuleInfo) -> str:
    """Which of except, types and layers keeps out a module that a pattern selects."""
    selector = entry.selector
    excluded = [each.text for each in selector.except_ if any(each.selects(name) for name in info.names)]
    if excluded:
        return f"`{glob.text}` selects it, but `except: {excluded[0]}` takes it out"
    if selector.types and not any(type_matches(info.type, each) for each in selector.types):
        return f"`{glob.text}` selects it, but it is a {info.type}, and `types` has {', '.join(selector.types)}"
    layers = ", ".join(each.text for each in selector.layers)
    where = f"layer {info.layer.index} of {info.layer.length}" if info.layer else "no stack of layers"
    return f"`{glob.text}` selects it, but it is in {where}, and `layers` has {layers}"


def _near_miss(glob: Glob, name: str) -> str | None:
    """The one change that would make a pattern select the module."""
    anywhere = f"**.{glob.text}"
    if _selects(anywhere, name):
        return f"`{glob.text}` does not match from the start of the name; `{anywhere}` would"
    if _selects(glob.text.casefold(), name.casefold()):
        return f"`{glob.text}` differs in upper and lower case"
    return _one_segment(glob, name.split("."))


def _selects(text: str, name: str) -> bool:
    try:
        return Glob.parse(text).selects(name)
    except ValueError:
        return False


def _one_segment(glob: Glob, names: Sequence[str]) -> str | None:
    """A single segment without wildcards that differs, and only by a slip: `self_atn` for `self_attn`."""
    for segments in glob.alternatives:
        for index, segment in enumerate(segments):
            if any(each in segment for each in "*?["):
                continue
            for other in closest(segment, set(names) - {segment}, count=1):
                text = ".".join((*segments[:index], other, *segments[index + 1 :]))
                if _selects(text, ".".join(names)):
                    return f"`{glob.text}` has `{segment}` where the name has `{other}`"
    return None


def _place(location: Location | None) -> dict[str, Any] | None:
    return {"file": location.file, "line": location.line} if location else None
