"""pydantic's complaints about a rule file, as diagnostics at the place in the text that they are about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rulequant.diagnostics import Diagnostic, Location, closest, did_you_mean
from rulequant.edits import convert_value, rename_key, respell_value, to_braces
from rulequant.globtext import MULTI_DIGIT_CLASS
from rulequant.remedies import GIVE_VALUE, PATTERN_LISTS, key_remedy, keys_of, meant_by, share_remedy, type_remedy
from rulequant.rulefile import Expect, RemoveSkips, Rule, RuleFile, SkipModules
from rulequant.schemes import scheme_class
from rulequant.source import MAX_PROBLEMS, DataPath, Document

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
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("greater than", "gt"),
    "less_than": ("less than", "lt"),
    "finite_number": ("a finite number", ""),
}
_MANY_KEYS = 50
"""More keys than any mapping of a rule file has."""
_EMPTY = {"string_too_short": "empty", "too_short": "an empty list"}


def schema_diagnostics(error: ValidationError, document: Document) -> list[Diagnostic]:
    """One diagnostic for each complaint, in the order of the text; no more than MAX_PROBLEMS."""

    def place(each: ErrorDetails) -> Location:
        return document.value(_data_path(each["loc"], document.data))

    # Cut before the messages are made: to find what a name may have meant is what takes time.
    errors = [each for each in error.errors(include_url=False) if not _is_explained(each, document)]
    first = sorted(errors, key=place)[:MAX_PROBLEMS]
    found = [_diagnostic(each, document) for each in first]
    return sorted(found, key=lambda each: each.location or Location(document.file, 1, 1, 1, 1))


def _diagnostic(error: ErrorDetails, document: Document) -> Diagnostic:
    path = _data_path(error["loc"], document.data)
    kind = error["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path, document)
    if kind == "missing":
        return _missing(error, document)
    if kind in {"literal_error", "unknown_method"}:
        return _not_allowed(error, path, document)
    if kind in _WRONG_TYPE:
        return _wrong_type(error, path, document)
    return _invalid(error, path, document)


def _is_explained(error: ErrorDetails, document: Document) -> bool:
    """Whether a key is missing because it is misspelt: the unknown key is a problem of its own, which says so."""
    if error["type"] != "missing":
        return False
    path, key = _parent(error, document), str(error["loc"][-1])
    known, present = _allowed_keys(path, document.data), _keys_at(path, document.data)
    if path[:1] in PATTERN_LISTS and len(present) == 1 and present[0] not in known:
        return True  # `- lm_head: a reason`
    unknown = [each for each in present if each not in known][:_MANY_KEYS]
    return bool(known) and any(key in {meant_by(each, known), *closest(each, known)[:1]} for each in unknown)


def _parent(error: ErrorDetails, document: Document) -> DataPath:
    """The mapping in which a key is missing."""
    path = _data_path(error["loc"], document.data)
    return path[:-1] if path and path[-1] == error["loc"][-1] else path


def _unknown_key(path: DataPath, document: Document) -> Diagnostic:
    key = str(path[-1])
    allowed, present = _allowed_keys(path[:-1], document.data), _keys_at(path[:-1], document.data)
    return Diagnostic(
        "RQ101",
        f"unknown key `{key}`{_within(path[:-1])}",
        document.key(path),
        value=key,
        allowed=tuple(allowed),
        remedy=key_remedy(key, path[:-1], _value_at(path, document.data), allowed),
        fix=rename_key(document, path, allowed, present),
    )


def _missing(error: ErrorDetails, document: Document) -> Diagnostic:
    key = str(error["loc"][-1])
    remedies = {
        "version": "add `version: 1` as the first line",
        "modules": 'say which modules it is about: `modules: "**.lm_head"`',
        "scheme": "say how: `scheme: NAME`, one of the keys of `schemes`",
        "method": "say which method: `method: bnb_4bit` or `method: bnb_int8`",
    }
    parent = _parent(error, document)
    known = _allowed_keys(parent, document.data)
    present = [each for each in _keys_at(parent, document.data) if each not in known]
    typo = did_you_mean(key, present)
    remedy = f"is `{_only(typo)}` a misspelling of `{key}`?" if typo else remedies.get(key, f"add `{key}`")
    # Where other keys are allowed, the misspelt one is a problem of its own, which offers this.
    fix = rename_key(document, (*parent, _only(typo)), [key], present) if typo and not known else None
    place = document.key(parent)
    return Diagnostic("RQ102", f"`{key}` is missing{_within(parent)}", place, value=key, remedy=remedy, fix=fix)


def _only(remedy: str) -> str:
    return remedy.split("`")[1]


def _not_allowed(error: ErrorDetails, path: DataPath, document: Document) -> Diagnostic:
    given = error["input"]
    context = error.get("ctx") or {}
    allowed = [str(each) for each in context.get("allowed") or _literals(context.get("expected", ""))]
    remedy = did_you_mean(given, allowed) if isinstance(given, str) else None
    if given in allowed:  # a number in quotes
        remedy = f"write it without quotes: {given}"
    return Diagnostic(
        "RQ103",
        f"{_name(path)} cannot be {_show(given)}",
        document.value(path),
        value=_text(given),
        allowed=tuple(allowed),
        remedy=remedy or f"allowed: {', '.join(allowed)}",
        fix=respell_value(document, path, given, allowed),
    )


def _wrong_type(error: ErrorDetails, path: DataPath, document: Document) -> Diagnostic:
    given = error["input"]
    wanted = _WRONG_TYPE[error["type"]]
    or_pattern = "a pattern or " if wanted == "a mapping" and path[:1] in PATTERN_LISTS else ""
    return Diagnostic(
        "RQ104",
        f"{_name(path)} must be {or_pattern}{wanted}, not {_show(given)}",
        document.value(path),
        value=_text(given),
        remedy=type_remedy(wanted, given, path, document.raw(path)),
        fix=convert_value(document, path, given, wanted),
    )


def _invalid(error: ErrorDetails, path: DataPath, document: Document) -> Diagnostic:
    given, kind = error["input"], error["type"]
    context: Mapping[str, Any] = error.get("ctx") or {}
    code, remedy = str(context.get("code") or "RQ105"), context.get("remedy")
    if "reason" in context:
        message = str(context["reason"])
    elif kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        words += f" {_show(context[bound])}" if bound in context else ""
        message = f"{_name(path)} cannot be {_show(given)}: it must be {words}"
        code, remedy = "RQ106", share_remedy(given) if path[:1] == ("expect",) else None
    elif kind in _EMPTY:
        message, remedy = f"{_name(path)} is {_EMPTY[kind]}", GIVE_VALUE
    else:
        message = f"{_name(path)}: {error['msg'][:1].lower()}{error['msg'][1:]}"
    fix = to_braces(document, path, given, context["offset"]) if code == MULTI_DIGIT_CLASS else None
    return Diagnostic(code, message, document.value(path), value=_text(given), remedy=remedy, fix=fix)


def _data_path(loc: Iterable[int | str], data: Any) -> DataPath:
    """pydantic's path without parts that the text lacks, such as the index in a list written as its item."""
    path: list[int | str] = []
    parts = tuple(loc)
    for number, part in enumerate(parts, 1):
        if isinstance(data, dict) and isinstance(part, str) and (part in data or number == len(parts)):
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
        case ("remove_skips", int()):
            return RemoveSkips
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
    return keys_of(model)


def _keys_at(path: DataPath, data: Any) -> list[str]:
    found = _value_at(path, data)
    return list(found) if isinstance(found, dict) else []


def _value_at(path: DataPath, data: Any) -> Any:
    for part in path:
        data = data[part]
    return data


def _literals(expected: str) -> list[str]:
    """pydantic's `'nf4' or 'fp4'` and `32, 64 or 128` as a list."""
    return [each.strip().strip("'") for each in expected.replace(" or ", ", ").split(", ") if each.strip()]


def _name(path: DataPath) -> str:
    """`skip_modules[2].modules`, where entries count from 1."""
    text = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in path)
    return f"`{text.removeprefix('.')}`" if text else "the file"


def _within(path: DataPath) -> str:
    return f" in {_name(path)}" if path else ""


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
        case float():
            return f"{value:g}"
        case str():
            return f'"{value}"' if len(value) <= 80 else f'"{value[:77]}..."'
        case _:
            return str(value)
