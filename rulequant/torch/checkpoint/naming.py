"""What the tensors of an output are called: so that the renamings of a loader lead each to its place in the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rulequant.errors import CheckpointError
from rulequant.inventory import Inventory, ModuleInfo, TensorInfo
from rulequant.plan import Plan
from rulequant.schemes import Scheme
from rulequant.torch.checkpoint.files import printable
from rulequant.torch.checkpoint.keys import KeyMap

__all__ = ["Naming"]


@dataclass(frozen=True)
class Naming:
    """The names to choose from are those of the source and of the model; the choice is proven by the renamings."""

    keys: KeyMap
    layers: frozenset[str] | None
    """All encoded layers, where the loader is rulequant's own; else None.

    It looks for them before anything is converted; and under the name that was written, where the renamed one is none.
    """

    @classmethod
    def of(cls, keys: KeyMap, plan: Plan, inventory: Inventory) -> Naming:
        """How the tensors of an output by a plan are named."""
        if plan.container == "bitsandbytes":
            return cls(keys, None)
        names = (name for each in plan.quantized for name in _layers(inventory.by_name[each.name], plan))
        return cls(keys, frozenset(form for name in names for form in keys.forms(name)))

    def encoded(self, key: str, target: str, info: ModuleInfo, scheme: Scheme, tensor: TensorInfo) -> str:
        """What a weight would be called if it were not encoded; `prefix` is what its tensors begin with.

        Raises:
            CheckpointError: a loader would take all names that there are for something else.
        """
        ends = (*(each.name for each in scheme.encoded_tensors(info, tensor)), *scheme.record_names)
        wanted = {self.prefix(form, info) for form in self.keys.forms(target)}
        for name in self._styles(key, target, info):
            if all(self._arrives(self.prefix(name, info), end, wanted) for end in ends):
                return name
        if self.layers is not None and not self._is_mistaken(self.prefix(target, info), ends):
            return target
        other = "" if self.layers is not None else "let the container be `rulequant`, "
        raise CheckpointError(
            f"`{printable(key)}`: transformers renames it while it loads, and would rename its quantized form wrongly",
            remedy=f"{other}skip `{info.name}` with a reason, or apply in memory: rulequant.torch.apply(model, rules)",
        )

    def kept(self, key: str, target: str, info: ModuleInfo) -> str:
        """What a tensor is called that is not encoded, and made of what others are made of that are.

        Raises:
            CheckpointError: as above.
        """
        for name in self._styles(key, target, info):
            renamed = self.keys.renamed(name)
            if renamed in self.keys.forms(target) and not self.keys.is_converted(renamed):
                return name
        raise CheckpointError(
            f"`{printable(target)}` is made of `{printable(key)}` while transformers loads it, and has no name of its "
            "own to be loaded by",
            remedy=f"quantize `{info.name}` as well, or skip all that is made of that tensor",
        )

    def prefix(self, name: str, info: ModuleInfo) -> str:
        """Of a layer what is before `weight`; of a parameter of experts, which is a module once encoded, its name."""
        return name.removesuffix("weight") if name.endswith("weight") and info.kind != "experts" else f"{name}."

    def _styles(self, key: str, target: str, info: ModuleInfo) -> tuple[str, ...]:
        """The names to choose from, the best first: the source's own key, or the model's name.

        A key of another form than that of a weight is one that transformers renames, and not with a suffix behind it.
        The own key of what it converts is what that becomes before it is renamed.
        """
        if key not in self.keys.converted:
            return (key, target) if key.endswith("weight") and info.kind != "experts" else (target, key)
        conversion = self.keys.converted[key]
        number = conversion.targets(self.keys.targets[key]).index(target)
        return target, conversion.targets(conversion.alone(key))[number]

    def _arrives(self, prefix: str, end: str, wanted: Iterable[str]) -> bool:
        name = self.keys.renamed(f"{prefix}{end}")
        # rulequant's loader takes what it knows before a converter does.
        return name in {f"{each}{end}" for each in wanted} and (
            self.layers is not None or not self.keys.is_converted(name)
        )

    def _is_mistaken(self, prefix: str, ends: Iterable[str]) -> bool:
        """Whether a renamed name is that of an encoded layer, which then is another one."""
        renamed = ((self.keys.renamed(f"{prefix}{end}"), end) for end in ends)
        return any(name.removesuffix(f".{end}") in (self.layers or ()) for name, end in renamed)


def _layers(info: ModuleInfo, plan: Plan) -> list[str]:
    scheme = plan.by_name[info.name].scheme
    if info.kind != "experts" or scheme is None:
        return [info.name]
    return [f"{info.name}.{local}" for local in plan.schemes[scheme].quantized_tensors(info)]
