"""What to do about a value that the models refuse, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from rulequant.diagnostics import did_you_mean
from rulequant.rulefile import Expect, RemoveSkips, Rule, RuleFile, SkipModules
from rulequant.scalars import NumberTooLongError, quote, resolve
from rulequant.schemes import BUILTIN
from rulequant.source import DataPath
from rulequant.sourcetext import shorten

__all__ = ["GIVE_VALUE", "PATTERN_LISTS", "key_remedy", "keys_of", "meant_by", "share_remedy", "type_remedy"]

GIVE_VALUE = "remove the key, or give it a value"

_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "y"), "true"),
    **dict.fromkeys(("false", "no", "off", "n"), "false"),
}
PATTERN_LISTS = {("skip_modules",), ("remove_skips",)}
"""Lists whose entries may be a pattern alone."""
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("skip", "skips", "exclude", "ignore", "keep", "modules_to_not_convert"), ("skip_modules", "except")
    ),
    **dict.fromkeys(("unskip", "unskip_modules", "remove"), ("remove_skips",)),
    **dict.fromkeys(("pattern", "patterns", "match", "include", "target", "targets"), ("modules",)),
    **dict.fromkeys(("base", "parent", "inherit", "inherits"), ("extends",)),
    **dict.fromkeys(("why", "comment", "note"), ("reason",)),
    "bnb_4bit_quant_type": ("quant_type",),
    "bnb_4bit_use_double_quant": ("double_quant",),
    "bnb_4bit_compute_dtype": ("compute_dtype",),
    "bnb_4bit_quant_storage": ("quant_storage",),
    "llm_int8_skip_modules": ("skip_modules",),
    "llm_int8_threshold": ("threshold",),
    "block_size": ("blocksize",),
    "group_size": ("blocksize",),
}
"""What others call the keys: bitsandbytes' config, quantization configs of other libraries, tools with rule files."""
_LOAD_IN = {"load_in_4bit": ("nf4", "{method: bnb_4bit}"), "load_in_8bit": ("int8", "{method: bnb_int8}")}
_HOMES: tuple[tuple[type[BaseModel], str], ...] = (
    (RuleFile, "at the top level of the file"),
    (Rule, "in an entry of `rules`"),
    (SkipModules, "in an entry of `skip_modules`"),
    (RemoveSkips, "in an entry of `remove_skips`"),
    (Expect, "under `expect`"),
    *((model, f"in a scheme of the method {name}") for name, model in BUILTIN.items()),
)


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys of a model, as a file spells them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def meant_by(key: str, allowed: Sequence[str]) -> str | None:
    """The allowed key that another program calls so."""
    return next((each for each in _SYNONYMS.get(key, ()) if each in allowed), None)


def key_remedy(key: str, path: DataPath, value: Any, allowed: list[str]) -> str:
    """For a key that the mapping at a path does not have: which one was meant, where it belongs, or what there is."""
    meant = meant_by(key, allowed)
    near = f"did you mean `{meant}`?" if meant else did_you_mean(key, allowed)
    if near:
        return near
    if key in _LOAD_IN:
        name, scheme = _LOAD_IN[key]
        return f"a scheme says the method: `schemes: {{{name}: {scheme}}}` and `scheme: {name}`"
    home = _home(key, allowed)
    if home:
        return home
    if path[:1] in PATTERN_LISTS and value is None:
        return f"for a pattern, remove the colon: `- {quote(shorten(key))}`"
    if path[:1] in PATTERN_LISTS and isinstance(value, str):
        return f"for a pattern with a reason: `{{modules: {quote(shorten(key))}, reason: {shorten(value)}}}`"
    return f"allowed keys: {', '.join(allowed)}"


def _home(key: str, allowed: list[str]) -> str | None:
    """Where a key belongs that stands in the wrong place, maybe under a name of other programs."""
    name = next(iter(_SYNONYMS.get(key, ())), key)
    homes = [where for model, where in _HOMES if name in keys_of(model)]
    if not homes:
        return None
    what = "it belongs" if name == key else f"it is `{name}` here, and belongs"
    return f"{what} {' or '.join(homes)}; here: {', '.join(allowed)}" if allowed else f"{what} {homes[0]}"


def share_remedy(given: Any) -> str:
    """For a share that is not from 0 to 1."""
    percent = isinstance(given, int | float) and 1 < given <= 100
    return f"shares go from 0 to 1: {given:g}% is {given / 100:g}" if percent else "shares go from 0 to 1"


def type_remedy(wanted: str, given: Any, path: DataPath, raw: str | None) -> str:
    """For a value of the wrong type; `raw` is its text in the file, if it is a scalar."""
    if given is None:
        return _instead_of_nothing(path)
    match wanted:
        case "a string":
            return _text_remedy(given, path, raw)
        case "true or false":
            return _boolean_remedy(given, raw)
        case "a number" | "an integer":
            return _number_remedy(wanted, given, path)
        case "a list":
            return _list_remedy(given, path)
        case _:
            return _mapping_remedy(given, path, raw)


def _instead_of_nothing(path: DataPath) -> str:
    if not path:
        return "start with `version: 1`"
    return "remove the entry, or say what it should be" if isinstance(path[-1], int) else GIVE_VALUE


def _text_remedy(given: Any, path: DataPath, raw: str | None) -> str:
    if not isinstance(given, list | dict):
        return _in_quotes(given, raw)
    if path[:1] in PATTERN_LISTS or "modules" in path or "except" in path:
        return 'a pattern that starts with `[` or `{` must be quoted: "[0-9].mlp"'
    return "write one text; quote it if it holds brackets, braces or `: `"


def _in_quotes(given: Any, raw: str | None) -> str:
    text = (raw or str(given)).split()[-1]  # a tag may stand before it
    return f'quote it: "{text}"'


def _boolean_remedy(given: Any, raw: str | None) -> str:
    if not isinstance(given, str):
        return "write `true` or `false`"
    word = _WORDS.get(given.casefold())
    if word is None:
        return did_you_mean(given, ("true", "false")) or "write `true` or `false`"
    if word == given.casefold() and raw != given:
        return f"write it without quotes: {word}"
    return f"write `{word}`: yes, no, on and off are strings in YAML 1.2"


def _number_remedy(wanted: str, given: Any, path: DataPath) -> str:
    text = given if isinstance(given, str) else ""
    if _is_number(text):
        return f"write it without quotes: {text}"
    if text.endswith("%") and _is_number(text[:-1]) and path[:1] == ("expect",):
        return f"shares go from 0 to 1: {text} is {float(text[:-1]) / 100:g}"
    return f"write {wanted}"


def _is_number(text: str) -> bool:
    try:
        return bool(text) and type(resolve(text)) in (int, float)
    except NumberTooLongError:
        return False


def _list_remedy(given: Any, path: DataPath) -> str:
    if path == ("rules",):
        pattern = quote(shorten(given)) if isinstance(given, str) else "..."
        return f"start each entry with a dash: `- {{modules: {pattern}, scheme: NAME}}`"
    if isinstance(given, dict):
        return "start each entry with a dash: `- modules: ...`"
    return f"start each entry with a dash: `- {quote(shorten(str(given)))}`"


def _mapping_remedy(given: Any, path: DataPath, raw: str | None) -> str:
    match path, given:
        case (), _:
            what = "remove the dashes" if isinstance(given, list) else "write `key: value`"
            return f"{what}; a rule file starts with `version: 1`"
        case ("rules", int()), str():
            return f"a rule says how: `{{modules: {quote(shorten(given))}, scheme: NAME}}`"
        case ("skip_modules" | "remove_skips", int()), int() | float():
            return _in_quotes(given, raw)
        case ("rules" | "skip_modules" | "remove_skips", int()), _:
            return "write `modules: ...`"
        case ("schemes",), _:
            return "give each scheme a name: `NAME: {method: bnb_4bit}`"
        case ("schemes", str()), _:
            return f"name the method: `{_scheme_like(given)}`"
        case ("expect",), int() | float():
            return f"say of what: `{{min_quantized: {given}}}`"
        case _:
            return "write `key: value`"


def _scheme_like(given: Any) -> str:
    if isinstance(given, str) and given in BUILTIN:
        return f"{{method: {given}}}"
    if given in ("int8", "8bit", 8):
        return "{method: bnb_int8}"
    return f"{{method: bnb_4bit, quant_type: {given}}}" if given in ("nf4", "fp4") else "{method: bnb_4bit}"
