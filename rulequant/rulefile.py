"""The rule file, version 1, as pydantic models: what one YAML file may say, before `extends` is resolved."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from rulequant.errors import UsageError
from rulequant.globtext import MAX_LENGTH
from rulequant.schemes import BUILTIN, Scheme, methods, scheme_class
from rulequant.selector import OneOrMore, Selector, TypePattern

__all__ = ["PIPELINE_KEYS", "Expect", "RemoveSkips", "Rule", "RuleFile", "SkipModules"]

PIPELINE_KEYS = frozenset({"version", "name", "description", "components"})
"""What a file that names components may say."""


PatternText = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH)]


class SkipModules(Selector):
    """Modules that stay as they are. A skip always beats a rule."""


class RemoveSkips(BaseModel):
    """Skips of the files that this one extends, taken back. A bare string is short for `{modules: ...}`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    modules: OneOrMore[PatternText] = Field(
        description="Patterns of inherited skips, letter by letter as they stand there."
    )
    reason: str | None = Field(default=None, min_length=1, description="Why; printed by plan and why.")


class Rule(Selector):
    """An exception to the default scheme; of all rules that match a module the first wins."""

    scheme: str = Field(min_length=1, description="The scheme of these modules: a key of `schemes`.")


class Expect(BaseModel):
    """What must hold of a plan; checked before any weight is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    min_quantized: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of all the model's parameters, 0 to 1.",
    )
    min_quantized_layers: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the parameters outside embeddings and output heads, 0 to 1; it holds for a family's "
        "small models too, which are mostly embeddings.",
    )


def _from_string(value: Any) -> Any:
    return {"modules": value} if isinstance(value, str) else value


def _no_bool(value: Any) -> Any:
    """Python has true == 1, and pydantic's literals follow it even when strict."""
    if isinstance(value, bool):
        raise PydanticCustomError("literal_error", "Input should be 1", {"expected": "1"})
    return value


def _scheme(value: Any) -> Scheme:
    """Choose the class by `method`, so that a third party's schemes are checked by its own model."""
    if isinstance(value, Scheme):
        return value
    if not isinstance(value, dict):
        raise PydanticCustomError("dict_type", "Input should be a valid dictionary")
    if "method" not in value:
        raise _details(("method",), PydanticCustomError("missing", "Field required"), value)
    method = value["method"]
    try:
        found = scheme_class(method) if isinstance(method, str) else None
    except UsageError as error:
        context = {"reason": error.message, "remedy": error.remedy}
        raise _details(("method",), PydanticCustomError("broken_method", "{reason}", context), method) from error
    if found is None:
        known = methods()
        raise _details(
            ("method",), PydanticCustomError("unknown_method", "Input should be a method", {"allowed": known}), method
        )
    return found.model_validate(value)


def _details(loc: tuple[str, ...], error: PydanticCustomError, value: Any) -> ValidationError:
    """A validation error that points below the value it is raised for."""
    return ValidationError.from_exception_data("Scheme", [InitErrorDetails(type=error, loc=loc, input=value)])


class _StringOrObject:
    """In the JSON Schema a selector may be written as the glob alone."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 1000}, handler(core_schema)]}


class _SchemeSchema:
    """The JSON Schema of a scheme: one of the built-in methods, or a method that a package adds."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        known = [each.model_json_schema() | {"required": ["method"]} for each in BUILTIN.values()]
        other = {
            "title": "A method of another package",
            "type": "object",
            "required": ["method"],
            "properties": {"method": {"type": "string", "not": {"enum": list(BUILTIN)}}},
        }
        return {"oneOf": [*known, other]}


SkipEntry = Annotated[SkipModules, BeforeValidator(_from_string), _StringOrObject]
RemovalEntry = Annotated[RemoveSkips, BeforeValidator(_from_string), _StringOrObject]
SchemeEntry = Annotated[Scheme, PlainValidator(_scheme), _SchemeSchema]
Many: Callable[..., Any] = partial(Field, strict=False)


class RuleFile(BaseModel):
    """Which modules of a model are quantized, how, and why the rest is not."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, title="rulequant rule file, version 1")

    version: Annotated[Literal[1], BeforeValidator(_no_bool)] = Field(description="The version of the rule language.")
    name: str | None = Field(default=None, min_length=1, description="A name for messages; the file's own by default.")
    description: str | None = Field(default=None, description="One sentence for readers and `rulequant rules`.")
    extends: OneOrMore[str] = Field(
        default=(), description="Bundled rule files by name, or paths relative to this file."
    )
    models: OneOrMore[str] = Field(
        default=(), description="The `config.model_type` values this file is for; absent: any."
    )
    quantizable_types: OneOrMore[TypePattern] = Field(
        default=(),
        description="Class names that may be quantized, matched exactly or with wildcards; Linear by default.",
    )
    skip_modules: tuple[SkipEntry, ...] = Many(
        default=(), description="Modules that stay as they are; adds to the parents'."
    )
    remove_skips: tuple[RemovalEntry, ...] = Many(
        default=(), description="Skips of the files that this one extends, taken back by their patterns."
    )
    output_embeddings: Literal["skip", "quantize"] | None = Field(
        default=None,
        description="What becomes of output embeddings, all that is tied to them, and output heads; skip by default.",
    )
    schemes: dict[str, SchemeEntry] = Field(
        default_factory=dict, description="Named settings of a method; merged with the parents'."
    )
    scheme: str | None = Field(
        default=None, min_length=1, description="The scheme of every module that no rule is about."
    )
    rules: tuple[Rule, ...] = Many(
        default=(), description="Exceptions to `scheme`; the first that matches wins, before the parents'."
    )
    expect: Expect = Field(default=Expect(), description="What must hold of a plan.")
    components: dict[str, Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict,
        description="For a pipeline of diffusers, in place of all other keys: the rule file of each component that is "
        "quantized, a bundled name or a path relative to this file.",
    )
