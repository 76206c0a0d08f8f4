"""Which modules a skip or a rule is about: globs over names, minus exceptions, narrowed by type and layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from rulequant.globs import Glob
from rulequant.globtext import GlobError

if TYPE_CHECKING:  # start-up: the model's side is not needed to read a rule file
    from rulequant.inventory import LayerIndex, ModuleInfo

__all__ = [
    "GlobPattern",
    "LayerSlice",
    "LayerSlicePattern",
    "OneOrMore",
    "Selector",
    "TypePattern",
    "type_matches",
]

_SLICE = re.compile(r"(-?\d{1,9})?:(-?\d{1,9})?(?::(-?\d{1,9})?)?", re.A)
_INDEX = re.compile(r"-?\d{1,9}", re.A)
_TYPE = re.compile(r"[A-Za-z_*?\[][A-Za-z0-9_*?\[\]!-]*")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LayerSlice:
    """A Python index (`3`, `-1`) or slice (`0:2`, `-2:`, `::2`) over the layers of a stack."""

    text: str
    start: int | None
    stop: int | None
    step: int | None

    @classmethod
    def parse(cls, value: Any) -> LayerSlice:
        """Read an integer, or the text of an index or slice.

        Raises:
            ValueError: it is neither, or the step is 0.
        """
        text = str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
        if _INDEX.fullmatch(text):
            index = int(text)
            # -1 is the last layer: the stop after it is the end, which no integer says.
            return cls(text, index, None if index == -1 else index + 1, None)
        found = _SLICE.fullmatch(text)
        if not found:
            raise ValueError(f"{value!r} is neither an index nor a slice of layers")
        start, stop, step = (int(each) if each else None for each in found.groups())
        if step == 0:
            raise ValueError(f"{value!r} has the step 0")
        return cls(text, start, stop, step)

    def covers(self, layer: LayerIndex | None) -> bool:
        """Whether a layer is in the slice; a module outside any stack is in none."""
        return layer is not None and layer.index in range(layer.length)[self.start : self.stop : self.step]


def type_matches(type_name: str, pattern: str) -> bool:
    """Whether a class name matches a pattern: exactly, or with fnmatch wildcards; a subclass is not its base."""
    return type_name == pattern or fnmatchcase(type_name, pattern)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _glob(value: Any) -> Glob:
    if isinstance(value, Glob):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "Input should be a pattern over module names")
    try:
        return Glob.parse(value)
    except GlobError as error:
        context = {"code": error.code, "reason": error.message, "remedy": error.remedy, "offset": error.offset}
        raise PydanticCustomError("glob", "{reason}", context) from error


def _layer_slice(value: Any) -> LayerSlice:
    if isinstance(value, LayerSlice):
        return value
    try:
        return LayerSlice.parse(value)
    except ValueError as error:
        remedy = 'layers are Python indices or slices: 0, -1, "0:2", "-2:", "::2"'
        context = {"code": "RQ204", "reason": str(error), "remedy": remedy}
        raise PydanticCustomError("layer_slice", "{reason}", context) from error


def _type_pattern(value: Any) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "Input should be a class name")
    if not _TYPE.fullmatch(value):
        remedy = 'write the class name alone, such as Linear, or with wildcards: "*Experts"'
        context = {"code": "RQ205", "reason": f"{value!r} is not a class name", "remedy": remedy}
        raise PydanticCustomError("type_pattern", "{reason}", context)
    return value


def _one_or_more(value: Any) -> Any:
    return _as_list(value)


_GLOB_SCHEMA = {"type": "string", "minLength": 1, "maxLength": 1000}
_LAYER_TEXT = r"^\s*(-?\d{1,9}|(-?\d{1,9})?:(-?\d{1,9})?(:(-?\d{1,9})?)?)\s*$"
_LAYER_SCHEMA = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": _LAYER_TEXT}]}

GlobPattern = Annotated[Glob, PlainValidator(_glob), WithJsonSchema(_GLOB_SCHEMA)]
LayerSlicePattern = Annotated[LayerSlice, PlainValidator(_layer_slice), WithJsonSchema(_LAYER_SCHEMA)]
TypePattern = Annotated[
    str, PlainValidator(_type_pattern), WithJsonSchema({"type": "string", "pattern": f"^{_TYPE.pattern}$"})
]


class _OneOrMoreSchema:
    """In the JSON Schema a list may be written as its only item."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        listed = handler(core_schema)
        listed["minItems"] = listed.pop("minLength")  # pydantic takes what a validator precedes for text
        return {"anyOf": [listed["items"], listed]}


OneOrMore = Annotated[tuple[T, ...], BeforeValidator(_one_or_more), Field(strict=False, min_length=1), _OneOrMoreSchema]


class Selector(BaseModel):
    """A set of modules. A bare string is short for `{modules: ...}`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    modules: OneOrMore[GlobPattern] = Field(
        description="Globs over module names; what is inside a selected module is selected too."
    )
    except_: OneOrMore[GlobPattern] = Field(
        default=(), alias="except", description="Globs over module names to leave out again."
    )
    types: OneOrMore[TypePattern] = Field(default=(), description="Only modules of these classes.")
    layers: OneOrMore[LayerSlicePattern] = Field(
        default=(), description="Only these layers of the outermost ModuleList around the module."
    )
    optional: bool = Field(
        default=False,
        description="The selector may match nothing, in a sibling of the family that lacks the part.",
    )
    reason: str | None = Field(default=None, min_length=1, description="Why; printed by plan and why.")

    def narrows(self, info: ModuleInfo) -> bool:
        """Whether a module that the globs select passes `types` and `layers`."""
        if self.types and not any(type_matches(info.type, each) for each in self.types):
            return False
        return not self.layers or any(each.covers(info.layer) for each in self.layers)
