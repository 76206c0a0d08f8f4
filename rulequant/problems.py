"""pydantic's complaints about a rule file, as diagnostics at the place in the text that they are about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rulequant.diagnostics import Diagnostic, Location, did_you_mean
from rulequant.rulefile import Expect, Rule, RuleFile, SkipModules
from rulequant.schemes import scheme_class
from rulequant.source import DataPath, Document

__all__ = ["schema_diagnostics"]

_WRONG_TYPE = {
    "string_type": "a string",
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_OUT_OF_RANGE = {"greater_than_equal", "less_than_equal", "greater_than", "less_than", "finite_number"}


def schema_diagnostics(error: ValidationError, document: Document) -> list[Diagnostic]:
    """One diagnostic for each complaint, in the order of the text."""
    found = [_diagnostic(each, document) for each in error.errors(include_url=False)]
    return sorted(found, key=lambda each: each.location or Location(document.file, 1, 1, 1, 1))


def _diagnostic(error: ErrorDetails, document: Document) -> Diagnostic:
    path = _data_path(error["loc"], document.data)
    kind = error["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path, document)
    if kind == "missing":
        return _missing(error, path, document)
    if kind in {"literal_error", "unknown_method"}:
        return _not_allowed(error, path, document)
    if kind in _WRONG_TYPE:
        return _wrong_type(error, path, document)
    return _invalid(error, path, document)


def _unknown_key(path: DataPath, document: Document) -> Diagnostic:
    key = str(path[-1])
    allowed = _allowed_keys(path[:-1], document.data)
    remedy = did_you_mean(key, allowed)
    return Diagnostic(
        "RQ101",
        f"unknown key `{key}`{_within(path[:-1])}",
        document.key(path),
        value=key,
        allowed=tuple(allowed),
        remedy=remedy or f"allowed keys: {', '.join(allowed)}",
    )


def _missing(error: ErrorDetails, path: DataPath, document: Document) -> Diagnostic:
    key = str(error["loc"][-1])
    remedies = {
        "version": "add `version: 1` as the first line",
        "modules": 'say which modules it is about: `modules: "**.lm_head"`',
        "scheme": "say how: `scheme: NAME`, one of the keys of `schemes`",
        "method": "say which method: `method: bnb_4bit` or `method: bnb_int8`",
    }
    parent = path[:-1] if path and path[-1] == key else path
    present = [each for each in _keys_at(parent, document.data) if each not in _allowed_keys(parent, document.data)]
    typo = did_you_mean(key, present)
    remedy = f"is `{_only(typo)}` a misspelling of `{key}`?" if typo else remedies.get(key, f"add `{key}`")
    return Diagnostic("RQ102", f"`{key}` is missing{_within(parent)}", document.key(parent), value=key, remedy=remedy)


def _only(remedy: str) -> str:
    return remedy.split("`")[1]


def _not_allowed(error: ErrorDetails, path: DataPath, document: Document) -> Diagnostic:
    given = error["input"]
    context = error.get("ctx") or {}
    allowed = [str(each) for each in context.get("allowed") or _literals(context.get("expected", ""))]
    remedy = did_you_mean(given, allowed) if isinstance(given, str) else None
    return Diagnostic(
        "RQ103",
        f"`{_name(path)}` cannot be {_show(given)}",
        document.value(path),
        value=_text(given),
        allowed=tuple(allowed),
        remedy=remedy or f"allowed: {', '.join(allowed)}",
    )


def _wrong_type(error: ErrorDetails, path: DataPath, document: Document) -> Diagnostic:
    given = error["input"]
    wanted = _WRONG_TYPE[error["type"]]
    remedy = None
    if wanted == "a string" and isinstance(given, bool | int | float):
        remedy = f'quote it: "{document.raw(path) or given}"'
    elif wanted == "true or false" and isinstance(given, str):
        remedy = "write true or false, without quotes (yes, no, on and off are strings in YAML 1.2)"
    elif isinstance(given, list) and wanted == "a string":
        remedy = 'a pattern that starts with `[` must be quoted: "[0-9].mlp"'
    return Diagnostic(
        "RQ104",
        f"`{_name(path)}` must be {wanted}, not {_show(given)}",
        document.value(path),
        value=_text(given),
        remedy=remedy,
    )


def _invalid(error: ErrorDetails, path: DataPath, document: Document) -> Diagnostic:
    context: Mapping[str, Any] = error.get("ctx") or {}
    message = str(context.get("reason") or f"`{_name(path)}`: {error['msg'][:1].lower()}{error['msg'][1:]}")
    code = str(context.get("code") or ("RQ106" if error["type"] in _OUT_OF_RANGE else "RQ105"))
    return Diagnostic(code, message, document.value(path), value=_text(error["input"]), remedy=context.get("remedy"))


def _data_path(loc: Iterable[int | str], data: Any) -> DataPath:
    """pydantic's path without parts that the text lacks, such as the index in a list written as its item."""
    path: list[int | str] = []
    for part in loc:
        if isinstance(data, dict) and isinstance(part, str):
            path.append(part)
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            path.append(part)
            data = data[part]
    return tuple(path)


def _model_at(path: DataPath, data: Any) -> type[BaseModel] | None:
    """The model that a mapping of the file is read as."""
    match path:
        case ():
            return RuleFile
        case ("skip_modules", int()):
            return SkipModules
        case ("rules", int()):
            return Rule
        case ("expect",):
            return Expect
        case ("schemes", str() as name):
            schemes = data.get("schemes")
            entry = schemes.get(name) if isinstance(schemes, dict) else None
            method = entry.get("method") if isinstance(entry, dict) else None
            return scheme_class(method) if isinstance(method, str) else None
        case _:
            return None


def _allowed_keys(path: DataPath, data: Any) -> list[str]:
    model = _model_at(path, data)
    if model is None:
        return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _keys_at(path: DataPath, data: Any) -> list[str]:
    for part in path:
        data = data[part]
    return list(data) if isinstance(data, dict) else []


def _literals(expected: str) -> list[str]:
    """pydantic's `'nf4' or 'fp4'` and `32, 64 or 128` as a list."""
    return [each.strip().strip("'") for each in expected.replace(" or ", ", ").split(", ") if each.strip()]


def _name(path: DataPath) -> str:
    """`skip_modules[2].modules`"""
    text = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the file"


def _within(path: DataPath) -> str:
    return f" in `{_name(path)}`" if path else ""


def _text(value: Any) -> str | None:
    return None if isinstance(value, dict | list) else str(value)


def _show(value: Any) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return "true" if value else "false"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case str():
            return f'"{value}"' if len(value) <= 80 else f'"{value[:77]}..."'
        case _:
            return str(value)
